//! Ending when asked: the first SIGTERM or SIGINT lets the guest finish, the next one does not wait.

use std::thread;

use anyhow::{Context as _, Result};
use blkback::device::Message;
use hypervisor::backend::Slot;
use hypervisor::backend::watch::Event;
use nix::sys::signal::{SigSet, Signal};

/// The signals that ask for the end, held back from every thread that is started from now on.
pub(crate) fn hold() -> Result<SigSet> {
    hold_these(&[Signal::SIGTERM, Signal::SIGINT])
}

/// The same, and the one that tells of a child's end.
pub(crate) fn hold_with_children() -> Result<SigSet> {
    hold_these(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD])
}

fn hold_these(which: &[Signal]) -> Result<SigSet> {
    let mut signals = SigSet::empty();
    for signal in which {
        signals.add(*signal);
    }
    signals.thread_block().context("hold signals back")?;
    Ok(signals)
}

/// Passes them on to a device's loop.
pub(crate) fn pass_on(signals: SigSet, slot: Slot<Message>) -> Result<()> {
    let mut force = false;
    listen(signals, move |signal| {
        tracing::info!(%signal, "asked to end");
        let told = slot.put(Message::Leave { force, reply: None }).is_ok();
        force = true;
        told
    })
}

/// Passes them on to a watcher.
pub(crate) fn pass_on_events(signals: SigSet, slot: Slot<Event>) -> Result<()> {
    listen(signals, move |signal| {
        let event = if signal == Signal::SIGCHLD { Event::Child } else { Event::Leave };
        slot.put(event).is_ok()
    })
}

/// Has each signal told until nobody listens any more. The thread ends with the process.
fn listen(signals: SigSet, mut tell: impl FnMut(Signal) -> bool + Send + 'static) -> Result<()> {
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            if !tell(signal) {
                return;
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("wait for signals")?;
    Ok(())
}
