//! Keys that cannot be, and coming, going and dying.

use anyhow::{Context as _, Result};
use hypervisor::xenbus::State;
use ring::wire::netif::tx::Flags;

use super::{Interface, with};
use crate::hostile::{Case, Stage};

/// See [`Case`].
pub const CASES: &[Case] = &[
    Case {
        name: "net-keys",
        about: "writes keys that cannot be",
        counted: &["key is out of range", "key is missing"],
        play: keys,
    },
    Case {
        name: "net-rings-refused",
        about: "names rings and channels that are not there",
        counted: &["grant reference is refused", "event channel is refused"],
        play: refused,
    },
    Case {
        name: "net-flapping",
        about: "goes through states as fast as it can",
        counted: &["connections"],
        play: flapping,
    },
    Case {
        name: "net-comes-back",
        about: "comes back with other rings while it says that it is connected",
        counted: &["connections"],
        play: comes_back,
    },
    Case {
        name: "net-dies",
        about: "dies with packets on its rings",
        counted: &["tx_packets"],
        play: dies,
    },
    Case {
        name: "net-storm",
        about: "sends events that bring nothing",
        counted: &["storms"],
        play: |stage| with(stage, storm),
    },
];

/// Begins anew with `key` as it should not be; `None` for not at all.
fn wrong(stage: &Stage, key: &str, value: Option<&str>) -> Result<()> {
    let guest = stage.join()?;
    guest.begin()?;
    let _interface = Interface::publish(&guest)?;
    match value {
        Some(value) => guest.write(key, value)?,
        None => guest.remove(key)?,
    }
    guest.say(State::Connected)?;
    let shown = value.map_or("missing", |value| value.get(..40).unwrap_or(value));
    guest.until(&[State::Closed]).with_context(|| format!("{key} is '{shown}'"))
}

fn keys(stage: &Stage) -> Result<()> {
    for (key, value) in [
        ("tx-ring-ref", Some("4294967296")),
        ("tx-ring-ref", Some("-1")),
        ("rx-ring-ref", Some("")),
        ("rx-ring-ref", None),
        ("event-channel-rx", Some("0")),
        ("event-channel-tx", None),
        ("multi-queue-num-queues", Some("65")),
        ("multi-queue-num-queues", Some("2")),
        ("request-rx-copy", None),
        ("feature-sg", Some("perhaps")),
        ("xdp-headroom", Some("99999")),
        ("event-channel-ctrl", None),
    ] {
        wrong(stage, key, value)?;
    }
    wrong(stage, "feature-gso-tcpv6", Some(&"9".repeat(2000)))
}

fn refused(stage: &Stage) -> Result<()> {
    for key in ["tx-ring-ref", "rx-ring-ref", "ctrl-ring-ref"] {
        wrong(stage, key, Some("60000"))?;
    }
    for key in ["event-channel-tx", "event-channel-rx", "event-channel-ctrl"] {
        wrong(stage, key, Some("1000000"))?;
    }
    Ok(())
}

fn flapping(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    guest.begin()?;
    let _interface = Interface::publish(&guest)?;
    for _ in 0..50 {
        for state in [
            State::Initialised,
            State::Connected,
            State::Reconfiguring,
            State::Closed,
            State::Initialising,
            State::Connected,
            State::Closing,
            State::Initialising,
        ] {
            guest.say(state)?;
        }
    }
    let mut interface = Interface::connect(&guest)?;
    interface.ask()?;
    interface.close()
}

fn comes_back(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut kept = vec![Interface::connect(&guest)?];
    for _ in 0..5 {
        // The backend may see any of this, or only the last of it.
        let mut interface = Interface::publish(&guest)?;
        guest.say(State::Connected)?;
        interface.ask()?;
        kept.push(interface);
    }
    match kept.pop() {
        Some(last) => last.close(),
        None => Ok(()),
    }
}

fn dies(stage: &Stage) -> Result<()> {
    for _ in 0..3 {
        let guest = stage.join()?;
        let mut interface = Interface::connect(&guest)?;
        interface.ask()?;
        let question = interface.question();
        for _ in 0..20 {
            let slot = interface.request(0, 0, u16::try_from(question.len())?, Flags::NONE)?;
            interface.put(&[slot.into()])?;
        }
        guest.domain.leave();
    }
    Ok(())
}

fn storm(interface: &mut Interface<'_>) -> Result<()> {
    for _ in 0..20_000 {
        interface.ring_all()?;
    }
    Ok(())
}
