//! Producer indexes that cannot be.

use anyhow::Result;
use hypervisor::xenbus::State;
use ring::wire::blkif::{Request, Segments, Transfer};

use super::{Case, Disk, Guest, Stage};

/// See [`Case`].
pub const CASES: &[Case] = &[
    Case {
        name: "producer-wild",
        about: "shows more requests than the ring has slots",
        counted: &["request_producer"],
        play: wild,
    },
    Case {
        name: "producer-back",
        about: "takes requests back that were answered",
        counted: &["request_producer"],
        play: back,
    },
    Case {
        name: "producer-at-start",
        about: "connects with a ring whose producer is wild already",
        counted: &["request_producer"],
        play: at_start,
    },
];

fn read(disk: &Disk<'_>, id: u64) -> Result<Request> {
    let segments = Segments::new(&[disk.segment(0, 0, 7)?])?;
    Ok(Request::read(id, Transfer { sector: 0, segments }))
}

/// The backend gives the connection up, and says why where a toolstack would look.
fn given_up(guest: &Guest) -> Result<()> {
    guest.until(&[State::Closed])
}

fn wild(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    for ahead in [1, 2, 1 << 30, u32::MAX / 2, u32::MAX / 2 + 1] {
        let mut disk = guest.connect(0)?;
        for id in 0..3 {
            let request = read(&disk, id)?;
            let _ = disk.ask(&request)?;
        }
        disk.show(disk.produced().wrapping_add(disk.slots()).wrapping_add(ahead))?;
        disk.ring_bell()?;
        given_up(&guest)?;
    }
    Ok(())
}

fn back(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    for by in [1, 3] {
        let mut disk = guest.connect(1)?;
        for id in 0..3 {
            let request = read(&disk, id)?;
            let _ = disk.ask(&request)?;
        }
        disk.show(disk.produced().wrapping_sub(by))?;
        disk.ring_bell()?;
        given_up(&guest)?;
    }
    Ok(())
}

fn at_start(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    guest.begin()?;
    let disk = guest.publish(0)?;
    disk.show(disk.slots().wrapping_add(9))?;
    guest.say(State::Initialised)?;
    given_up(&guest)
}
