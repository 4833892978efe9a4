//! Grant references that are none.

use anyhow::{Context as _, Result, ensure};
use hypervisor::memory::{Access, Granting as _, Memory as _, Revoked};
use hypervisor::{DomId, GrantRef, PAGE_SIZE};
use ring::wire::blkif::{Indirect, MAX_INDIRECT_PAGES, Request, Segment, Segments, Transfer};
use ring::wire::blkif::{Status, operation};

use super::{Case, Disk, Stage};

/// See [`Case`].
pub const CASES: &[Case] = &[
    Case {
        name: "grant-never",
        about: "reads, writes and lists segments through references that were never granted",
        counted: &["grant_refused"],
        play: never,
    },
    Case {
        name: "grant-revoked",
        about: "uses a reference after it was revoked",
        counted: &["grant_refused"],
        play: revoked,
    },
    Case {
        name: "grant-read-only",
        about: "has the backend read into a page that is granted for reading alone",
        counted: &["grant_refused"],
        play: read_only,
    },
    Case {
        name: "grant-to-another",
        about: "uses a reference that was granted to another domain",
        counted: &["grant_refused"],
        play: to_another,
    },
    Case {
        name: "grant-many",
        about: "uses more pages than a backend would keep mapped",
        counted: &["reads"],
        play: many,
    },
];

fn through(gref: GrantRef, write: bool) -> Result<Request> {
    let segments = Segments::new(&[Segment { gref, first: 0, last: 7 }])?;
    let transfer = Transfer { sector: 0, segments };
    Ok(if write { Request::write(1, transfer) } else { Request::read(1, transfer) })
}

/// Neither way, nor as a list of segments, is it of any use.
fn refused(disk: &mut Disk<'_>, gref: GrantRef) -> Result<()> {
    for write in [false, true] {
        let status = disk.ask(&through(gref, write)?)?.status;
        ensure!(status == Status::ERROR, "grant {gref} was used: {status}");
    }
    let grefs = [gref; MAX_INDIRECT_PAGES];
    let indirect = Indirect { operation: operation::READ, sector: 0, count: 1, grefs };
    let status = disk.ask(&Request::indirect(2, indirect))?.status;
    ensure!(status == Status::ERROR, "grant {gref} was read: {status}");
    Ok(())
}

/// The backend serves on.
fn works(disk: &mut Disk<'_>) -> Result<()> {
    let segments = Segments::new(&[disk.segment(0, 0, 7)?])?;
    let status = disk.ask(&Request::read(3, Transfer { sector: 0, segments }))?.status;
    ensure!(status == Status::OKAY, "an honest request: {status}");
    Ok(())
}

fn never(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(0)?;
    for gref in [0, 1, 7, 60_000, 65_535, 65_536, 1 << 31, u32::MAX] {
        refused(&mut disk, GrantRef(gref))?;
    }
    // One bad segment among good ones spoils the request.
    let bad = Segment { gref: GrantRef(60_000), first: 0, last: 7 };
    let segments = Segments::new(&[disk.segment(0, 0, 7)?, bad, disk.segment(1, 0, 7)?])?;
    let status = disk.ask(&Request::read(1, Transfer { sector: 0, segments }))?.status;
    ensure!(status == Status::ERROR, "a bad grant among good ones: {status}");
    works(&mut disk)?;
    disk.close()
}

fn revoked(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(0)?;
    let (_page, grefs) = guest.grant(1, Access::ReadWrite)?;
    let gref = *grefs.first().context("no grant")?;
    ensure!(guest.domain.revoke(gref) == Revoked::Done, "a grant that nobody has used is busy");
    refused(&mut disk, gref)?;
    works(&mut disk)?;
    disk.close()
}

fn read_only(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(0)?;
    let (page, grefs) = guest.grant(1, Access::ReadOnly)?;
    let gref = *grefs.first().context("no grant")?;
    page.fill(0, PAGE_SIZE, 0x5A)?;
    let status = disk.ask(&through(gref, false)?)?.status;
    ensure!(status == Status::ERROR, "a read-only page was read into: {status}");
    let mut bytes = vec![0; PAGE_SIZE];
    page.read_at(0, &mut bytes)?;
    ensure!(bytes.iter().all(|byte| *byte == 0x5A), "a read-only page was written");
    works(&mut disk)?;
    disk.close()
}

fn to_another(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(0)?;
    let (_page, grefs) = guest.grant_to(DomId::ZERO, 1, Access::ReadWrite)?;
    refused(&mut disk, *grefs.first().context("no grant")?)?;
    works(&mut disk)?;
    disk.close()
}

fn many(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(4)?;
    let (_pages, grefs) = guest.grant(3000, Access::ReadWrite)?;
    for batch in grefs.chunks(11) {
        let list: Vec<Segment> =
            batch.iter().map(|&gref| Segment { gref, first: 0, last: 0 }).collect();
        let transfer = Transfer { sector: 0, segments: Segments::new(&list)? };
        disk.put(&Request::read(7, transfer))?;
    }
    for answer in disk.answers()? {
        ensure!(answer.status == Status::OKAY, "an honest request: {}", answer.status);
    }
    disk.close()
}
