//! What `--stats` says of a second.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::HostError;
use hypervisor::daemon::stats::Printer;
use netback::device::Vif;
use netback::stats::Snapshot;
use serde::Serialize;

/// Prints what passes `vif` until dropped.
pub(crate) fn print(vif: &Arc<Vif>, json: bool) -> Result<Printer, HostError> {
    let vif = Arc::clone(vif);
    let mut before = vif.ever();
    Printer::start(json, move |passed| {
        let now = vif.ever();
        let line = Line::between(&before, &now, passed);
        before = now;
        line
    })
}

#[derive(Debug, Serialize)]
struct Line {
    /// Packets a second that the guest sent, and received.
    tx_packets: f64,
    rx_packets: f64,
    /// Megabits (10^6) a second.
    tx_mbit: f64,
    rx_mbit: f64,
    /// Packets that wait for the guest.
    waiting: u64,
    /// Packets that were lost a second.
    lost: f64,
}

impl Line {
    fn between(before: &Snapshot, now: &Snapshot, passed: Duration) -> Self {
        let seconds = passed.as_secs_f64().max(1e-9);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let mbit = |now: u64, before: u64| rate(now, before) * 8.0 / 1e6;
        let lost = |of: &Snapshot| of.lost.values().sum();
        Self {
            tx_packets: rate(now.tx_packets, before.tx_packets),
            rx_packets: rate(now.rx_packets, before.rx_packets),
            tx_mbit: mbit(now.tx_bytes, before.tx_bytes),
            rx_mbit: mbit(now.rx_bytes, before.rx_bytes),
            waiting: now.rx_waiting,
            lost: rate(lost(now), lost(before)),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tx {:>9.0} packets/s {:>9.1} Mb/s  rx {:>9.0} packets/s {:>9.1} Mb/s  \
             waiting {}  lost {:.0}/s",
            self.tx_packets, self.tx_mbit, self.rx_packets, self.rx_mbit, self.waiting, self.lost
        )
    }
}
