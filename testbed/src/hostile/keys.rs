//! Nonsense in the store.

use anyhow::{Context as _, Result, ensure};
use hypervisor::DomId;
use hypervisor::event::{Channel as _, Events};
use hypervisor::store::{Permission, Store as _, StoreError, Transaction};
use hypervisor::xenbus::State;
use ring::wire::blkif::{Request, Segments, Transfer};

use super::{Case, Guest, Stage};

/// See [`Case`].
pub const CASES: &[Case] = &[
    Case {
        name: "keys-nonsense",
        about: "connects with keys that are no numbers, too large, empty or missing",
        counted: &["key is out of range", "key is missing"],
        play: nonsense,
    },
    Case {
        name: "protocol-nonsense",
        about: "speaks protocols that there are not",
        counted: &["protocol is unknown"],
        play: protocol,
    },
    Case {
        name: "ring-refs-wrong",
        about: "connects with rings that were never granted",
        counted: &["grant reference is refused"],
        play: ring_refs,
    },
    Case {
        name: "event-channels-wrong",
        about: "connects with event channels that are others', or nobody's",
        counted: &["event channel is refused"],
        play: event_channels,
    },
    Case {
        name: "queues-share-ring",
        about: "has two queues on one ring, and then on one event channel as well",
        counted: &["event channel is refused"],
        play: share_ring,
    },
    Case {
        name: "keys-closed",
        about: "does not let the backend read its keys",
        counted: &["key may not be read"],
        play: closed,
    },
    Case {
        name: "keys-large",
        about: "fills its directory with as much as the store takes",
        counted: &["key is out of range"],
        play: large,
    },
    Case {
        name: "state-nonsense",
        about: "writes states that there are not, and all there are in every order",
        counted: &[],
        play: state_nonsense,
    },
];

/// Says that it is connected with what it has published, and is given up.
fn given_up(guest: &Guest) -> Result<()> {
    guest.say(State::Initialised)?;
    guest.until(&[State::Closed])
}

/// Begins anew with `key` as it should not be; `None` for not at all.
fn with(guest: &Guest, key: &str, value: Option<&str>) -> Result<()> {
    guest.begin()?;
    let disk = guest.publish(0)?;
    match value {
        Some(value) => guest.write(key, value)?,
        None => {
            guest.remove(key)?;
            if key == "ring-ref" {
                guest.remove("ring-ref0")?;
            }
        }
    }
    let shown = value.map_or("missing", |value| value.get(..40).unwrap_or(value));
    let result = given_up(guest).with_context(|| format!("{key} is '{shown}'"));
    drop(disk);
    guest.remove(key)?;
    result
}

fn nonsense(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    for (key, value) in [
        ("ring-ref", "many"),
        ("ring-ref", ""),
        ("ring-ref", "-1"),
        ("ring-ref", "4294967296"),
        ("ring-ref", "18446744073709551616"),
        ("ring-ref", " 9"),
        ("ring-ref", "9\0"),
        ("event-channel", "0"),
        ("event-channel", "99999999999999999999"),
        ("event-channel", "one"),
        ("ring-page-order", "5"),
        ("ring-page-order", "31"),
        ("ring-page-order", "4294967295"),
        ("multi-queue-num-queues", "0"),
        ("multi-queue-num-queues", "65535"),
        ("multi-queue-num-queues", "-2"),
        ("feature-persistent", "-1"),
        ("feature-persistent", "yes"),
    ] {
        with(&guest, key, Some(value))?;
    }
    with(&guest, "event-channel", None)?;
    with(&guest, "ring-ref", None)
}

fn protocol(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    for value in ["", "x86_64", "x86_64-abi-but-longer", "ppc-abi"] {
        with(&guest, "protocol", Some(value))?;
    }
    Ok(())
}

fn ring_refs(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    for value in ["0", "60000", "65536", "4294967295"] {
        with(&guest, "ring-ref", Some(value))?;
    }
    // All pages but the last are good.
    guest.begin()?;
    let _disk = guest.publish(2)?;
    guest.write("ring-ref3", "60000")?;
    given_up(&guest)
}

fn event_channels(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    for value in ["1000000", "4294967295"] {
        with(&guest, "event-channel", Some(value))?;
    }
    let others = Events::allocate(&guest.domain, DomId::ZERO)?;
    with(&guest, "event-channel", Some(&others.port().to_string()))?;
    Ok(())
}

fn share_ring(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    for one_channel in [false, true] {
        guest.begin()?;
        let mut disk = guest.publish(0)?;
        let second = Events::allocate(&guest.domain, guest.backend)?;
        let ring = *disk.ring_grefs().first().context("no ring")?;
        let own = disk.channel.port();
        let other = if one_channel { own } else { second.port() };
        guest.write("multi-queue-num-queues", "2")?;
        for (queue, port) in [(0, own), (1, other)] {
            guest.write(&format!("queue-{queue}/ring-ref"), ring.to_string())?;
            guest.write(&format!("queue-{queue}/event-channel"), port.to_string())?;
        }
        if one_channel {
            given_up(&guest)?;
            break;
        }
        guest.say(State::Initialised)?;
        guest.until(&[State::Connected])?;
        // Both take every request and answer it, each over the other's answers.
        for id in 0..32 {
            let segments = Segments::new(&[disk.segment(0, 0, 7)?])?;
            disk.put(&Request::read(id, Transfer { sector: 0, segments }))?;
            disk.ring_bell()?;
            second.notify()?;
        }
        guest.say(State::Closing)?;
        guest.until(&[State::Closing, State::Closed])?;
    }
    guest.remove("multi-queue-num-queues")
}

fn closed(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    guest.begin()?;
    let _disk = guest.publish(0)?;
    for key in ["ring-ref", "event-channel"] {
        let nobody = [Permission { domain: guest.domain.id(), read: false, write: false }];
        guest.domain.set_permissions(Transaction::NONE, &guest.path(key), &nobody)?;
    }
    given_up(&guest)
}

fn large(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    // Up to what the store takes: values of many sizes, and keys until it refuses.
    for key in ["protocol", "ring-ref", "multi-queue-num-queues"] {
        for size in [41, 2048] {
            with(&guest, key, Some(&"9".repeat(size)))?;
        }
    }
    let mut refused = false;
    for number in 0..2000 {
        let path = guest.path(&format!("junk-{number}"));
        match guest.domain.write(Transaction::NONE, &path, &[b'9'; 2000]) {
            Ok(()) => {}
            Err(StoreError::Refused { .. }) => {
                refused = true;
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(refused, "the store takes keys without end");
    guest.say(State::Closed)?;
    guest.until(&[State::Closed])
}

fn state_nonsense(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    for value in ["", "9", "99", "-1", "four", "\0", "4\0", "18446744073709551616"] {
        guest.write("state", value)?;
    }
    for first in State::ALL {
        for then in State::ALL {
            guest.say(first)?;
            guest.say(then)?;
        }
    }
    guest.remove("state")?;
    // It takes an honest frontend after all of this.
    guest.connect(0)?.close()
}
