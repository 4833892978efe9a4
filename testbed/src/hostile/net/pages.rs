//! Pages that are no pages, and too few of them.

use anyhow::{Result, ensure};
use hypervisor::GrantRef;
use hypervisor::memory::Memory as _;
use ring::wire::netif::Status;
use ring::wire::netif::tx::Flags;

use super::{Interface, ends, with};
use crate::hostile::Case;
use crate::hostile::guest::wait_for;

/// See [`Case`].
pub const CASES: &[Case] = &[
    Case {
        name: "net-rx-hog",
        about: "has packets come without end and posts no page for them",
        counted: &["rx_starved"],
        play: |stage| with(stage, hog),
    },
    Case {
        name: "net-rx-grants",
        about: "posts pages that it has not granted",
        counted: &["rx_grant"],
        play: |stage| with(stage, grants),
    },
    Case {
        name: "net-rx-producer",
        about: "claims to have posted pages that are not there",
        counted: &["request_producer"],
        play: |stage| {
            let show = |index: u32| move |interface: &mut Interface<'_>| hungry(interface, index);
            ends(stage, &[&show(300), &show(1 << 30), &show(u32::MAX / 2)])
        },
    },
];

/// Every question brings an answer, for which there is no page.
fn hog(interface: &mut Interface<'_>) -> Result<()> {
    let question = interface.question();
    let _ = interface.received()?;
    for _ in 0..2000 {
        let status = interface.send_pieces(&question, &[question.len()])?;
        ensure!(status == Status::OKAY, "{status}");
    }
    Ok(())
}

fn grants(interface: &mut Interface<'_>) -> Result<()> {
    let question = interface.question();
    let before = interface.failed;
    wait_for("say that a page was none", || {
        for gref in [0, 60_000, u32::MAX] {
            interface.post_none(GrantRef(gref))?;
        }
        interface.send_pieces(&question, &[question.len()])?;
        interface.received()?;
        Ok(interface.failed > before)
    })
}

/// Such an index is looked at when there is something to give.
fn hungry(interface: &mut Interface<'_>, index: u32) -> Result<()> {
    interface.show_rx(index)?;
    let question = interface.question();
    interface.data.write_at(0, &question)?;
    let slot = interface.request(0, 0, u16::try_from(question.len())?, Flags::NONE)?;
    interface.put(&[slot.into()])
}
