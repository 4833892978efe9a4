//! Coming, going and dying at bad moments.

use anyhow::Result;
use hypervisor::xenbus::State;
use ring::wire::blkif::{Request, Segments, Transfer};

use super::{Case, Disk, Stage};

/// See [`Case`].
pub const CASES: &[Case] = &[
    Case {
        name: "reconnect",
        about: "connects and disconnects as fast as the backend follows",
        counted: &[],
        play: reconnect,
    },
    Case {
        name: "state-flapping",
        about: "connects and disconnects without waiting for the backend",
        counted: &[],
        play: flapping,
    },
    Case {
        name: "dies-in-flight",
        about: "dies while its requests are under way",
        counted: &[],
        play: |stage| dies(stage, 4),
    },
    Case {
        name: "dies-mapped",
        about: "dies while the backend has its pages mapped and nothing to do",
        counted: &["reads"],
        play: dies_mapped,
    },
    Case {
        name: "dies-connecting",
        about: "dies in every state of the handshake",
        counted: &[],
        play: dies_connecting,
    },
    Case {
        name: "begins-anew",
        about: "begins anew without having closed, while its requests are under way",
        counted: &[],
        play: begins_anew,
    },
];

/// As many reads and writes as there are slots.
fn fill(disk: &mut Disk<'_>) -> Result<()> {
    for id in 0..u64::from(disk.slots()) {
        let page = usize::try_from(id % 16).unwrap_or(0);
        let segments = Segments::new(&[disk.segment(page, 0, 7)?; 11])?;
        let transfer = Transfer { sector: id.wrapping_mul(88) % 2048, segments };
        disk.put(&match id % 2 {
            0 => Request::read(id, transfer),
            _ => Request::write(id, transfer),
        })?;
    }
    disk.ring_bell()
}

fn reconnect(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    for order in [0, 4, 1, 0, 2, 0, 3, 0, 0, 0] {
        let mut disk = guest.connect(order)?;
        fill(&mut disk)?;
        disk.close()?;
    }
    Ok(())
}

fn flapping(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    guest.begin()?;
    let _disk = guest.publish(0)?;
    for _ in 0..50 {
        for state in [
            State::Initialised,
            State::Closed,
            State::Initialising,
            State::Connected,
            State::Closing,
            State::Initialised,
            State::Connected,
            State::Initialising,
        ] {
            guest.say(state)?;
        }
    }
    guest.connect(0)?.close()
}

fn dies(stage: &Stage, order: u32) -> Result<()> {
    for _ in 0..3 {
        let guest = stage.join()?;
        let mut disk = guest.connect(order)?;
        fill(&mut disk)?;
        guest.domain.leave();
    }
    Ok(())
}

fn dies_mapped(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(2)?;
    fill(&mut disk)?;
    let _ = disk.answers()?;
    guest.domain.leave();
    Ok(())
}

fn dies_connecting(stage: &Stage) -> Result<()> {
    for until in [State::Initialising, State::Initialised, State::Connected, State::Closing] {
        let guest = stage.join()?;
        guest.begin()?;
        let _disk = guest.publish(1)?;
        guest.say(until)?;
        guest.domain.leave();
    }
    Ok(())
}

fn begins_anew(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disks = Vec::new();
    for _ in 0..5 {
        let mut disk = guest.connect(2)?;
        fill(&mut disk)?;
        guest.say(State::Initialising)?;
        guest.until(&[State::InitWait])?;
        disks.push(disk);
    }
    guest.connect(0)?.close()
}
