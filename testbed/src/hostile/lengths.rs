//! Counts, positions and lengths that cannot be, and operations that are none.
//!
//! Refused requests are answered and counted; none of them costs the guest its connection, and what
//! is asked properly between them is done.

use anyhow::{Result, ensure};
use hypervisor::GrantRef;
use hypervisor::memory::Memory as _;
use ring::protocol::{Protocol as _, SlotBytes as _};
use ring::wire::blkif::{
    Blkif, Discard, Indirect, Kind, Layout, MAX_INDIRECT_PAGES, Request, Segment, Segments, Status,
    Transfer, X86_64, encode_segments, operation,
};

use super::{Case, Disk, Stage};

/// See [`Case`].
pub const CASES: &[Case] = &[
    Case {
        name: "segment-count",
        about: "claims 12 to 255 segments where there is room for 11",
        counted: &["segment_count"],
        play: |stage| with(stage, segment_count),
    },
    Case {
        name: "indirect-count",
        about: "claims none, 257 and 65535 indirect segments",
        counted: &["segment_count"],
        play: |stage| with(stage, indirect_count),
    },
    Case {
        name: "indirect-nested",
        about: "asks indirectly for an indirect request, a flush, and for nothing known",
        counted: &["indirect_operation"],
        play: |stage| with(stage, indirect_nested),
    },
    Case {
        name: "segment-reversed",
        about: "has segments that end before they begin",
        counted: &["segment_reversed"],
        play: |stage| with(stage, |disk| segments(disk, &[(7, 0), (1, 0), (5, 4)])),
    },
    Case {
        name: "segment-past-page",
        about: "has segments that end behind their page",
        counted: &["segment_past_page"],
        play: |stage| with(stage, |disk| segments(disk, &[(0, 8), (0, 255), (255, 255), (8, 8)])),
    },
    Case {
        name: "past-end",
        about: "reads and writes at and behind the disk's end, and where sectors overflow",
        counted: &["past_end"],
        play: |stage| with(stage, past_end),
    },
    Case {
        name: "discard-past-end",
        about: "discards behind the disk's end, and more than there can be",
        counted: &["past_end"],
        play: |stage| with(stage, discard_past_end),
    },
    Case {
        name: "empty",
        about: "reads, writes and discards nothing",
        counted: &["empty"],
        play: |stage| with(stage, empty),
    },
    Case {
        name: "operation-unknown",
        about: "asks for every operation that there is not",
        counted: &["unknown_operation"],
        play: |stage| with(stage, operation_unknown),
    },
    Case {
        name: "noise",
        about: "fills slots with noise",
        counted: &["unknown_operation"],
        play: |stage| with(stage, noise),
    },
];

/// Plays on a connected disk, and looks whether it still works afterwards.
fn with(stage: &Stage, play: impl Fn(&mut Disk<'_>) -> Result<()>) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(1)?;
    play(&mut disk)?;
    let segments = Segments::new(&[disk.segment(0, 0, 7)?])?;
    let status = disk.ask(&Request::read(0, Transfer { sector: 0, segments }))?.status;
    ensure!(status == Status::OKAY, "an honest request afterwards: {status}");
    disk.close()
}

fn refused(disk: &mut Disk<'_>, request: &Request) -> Result<()> {
    let answer = disk.ask(request)?;
    ensure!(answer.id == request.id, "answer to {} instead of {}", answer.id, request.id);
    ensure!(answer.status != Status::OKAY, "{request:?} was done");
    Ok(())
}

fn indirect(count: u16, inside: u8, gref: GrantRef) -> Request {
    let grefs = [gref; MAX_INDIRECT_PAGES];
    Request::indirect(5, Indirect { operation: inside, sector: 0, count, grefs })
}

fn segment_count(disk: &mut Disk<'_>) -> Result<()> {
    let all = Segments::new(&[disk.segment(0, 0, 7)?; 11])?;
    let request = Request::read(5, Transfer { sector: 0, segments: all });
    for count in 12..=255 {
        let mut slot = <X86_64 as Layout>::Slot::ZERO;
        Blkif::<X86_64>::encode_request(&request, &mut slot);
        if let Some(claimed) = slot.get_mut(1) {
            *claimed = count;
        }
        disk.put_bytes(&slot)?;
        for answer in disk.answers()? {
            ensure!(answer.status == Status::ERROR, "{count} segments: {}", answer.status);
        }
    }
    Ok(())
}

fn indirect_count(disk: &mut Disk<'_>) -> Result<()> {
    let list = disk.segment(0, 0, 0)?;
    for count in [0, 257, 512, 513, 4096, 4097, 0x8000, u16::MAX] {
        refused(disk, &indirect(count, operation::READ, list.gref))?;
    }
    Ok(())
}

fn indirect_nested(disk: &mut Disk<'_>) -> Result<()> {
    let list = disk.segment(0, 0, 0)?;
    for inside in (operation::WRITE_BARRIER..=9).chain([u8::MAX]) {
        refused(disk, &indirect(1, inside, list.gref))?;
    }
    Ok(())
}

/// Each as a plain segment and as one of an indirect list.
fn segments(disk: &mut Disk<'_>, bad: &[(u8, u8)]) -> Result<()> {
    let list = disk.segment(1, 0, 0)?;
    for &(first, last) in bad {
        let segment = disk.segment(0, first, last)?;
        for all in [vec![segment], vec![disk.segment(0, 0, 7)?, segment]] {
            let transfer = Transfer { sector: 0, segments: Segments::new(&all)? };
            refused(disk, &Request::read(5, transfer.clone()))?;
            refused(disk, &Request::write(6, transfer.clone()))?;
            refused(disk, &Request::barrier(7, transfer))?;
            let mut bytes = [0; 2 * Segment::SIZE];
            let count = encode_segments(&all, &mut bytes);
            disk.data.write_at(hypervisor::PAGE_SIZE, &bytes)?;
            let count = u16::try_from(count)?;
            refused(disk, &indirect(count, operation::READ, list.gref))?;
        }
    }
    Ok(())
}

/// Positions that no disk has.
const BEHIND: [u64; 6] = [1 << 40, 1 << 55, (1 << 55) - 1, 1 << 63, u64::MAX - 7, u64::MAX];

fn past_end(disk: &mut Disk<'_>) -> Result<()> {
    for sector in BEHIND {
        let segments = Segments::new(&[disk.segment(0, 0, 7)?])?;
        refused(disk, &Request::read(5, Transfer { sector, segments: segments.clone() }))?;
        refused(disk, &Request::write(6, Transfer { sector, segments }))?;
    }
    Ok(())
}

fn discard_past_end(disk: &mut Disk<'_>) -> Result<()> {
    for sector in BEHIND {
        for sectors in [1, 8, u64::MAX ^ sector, u64::MAX] {
            for secure in [false, true] {
                refused(disk, &Request::discard(5, Discard { sector, sectors, secure }))?;
                let (sector, sectors) = (8, sectors.max(sector));
                refused(disk, &Request::discard(6, Discard { sector, sectors, secure }))?;
            }
        }
    }
    Ok(())
}

fn empty(disk: &mut Disk<'_>) -> Result<()> {
    for sector in [0, 1 << 40, u64::MAX] {
        let nothing = Transfer { sector, segments: Segments::EMPTY };
        refused(disk, &Request::read(5, nothing.clone()))?;
        refused(disk, &Request::write(6, nothing))?;
        refused(disk, &Request::discard(7, Discard { sector, sectors: 0, secure: false }))?;
    }
    Ok(())
}

fn operation_unknown(disk: &mut Disk<'_>) -> Result<()> {
    for operation in (operation::INDIRECT + 1..=255).chain([4]) {
        let request = Request { operation, id: 5, handle: 0, kind: Kind::Unknown(operation) };
        let answer = disk.ask(&request)?;
        let is = (answer.operation, answer.status);
        ensure!(is == (operation, Status::NOT_SUPPORTED), "operation {operation}: {answer:?}");
    }
    Ok(())
}

/// Bytes that look like nothing, the same in every run. Every answer comes, whatever it says; none
/// of the noise is a write, since what it wrote would be right.
fn noise(disk: &mut Disk<'_>) -> Result<()> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..200 {
        for _ in 0..16 {
            let mut slot = <X86_64 as Layout>::Slot::ZERO;
            for byte in &mut slot {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = (state >> 32) as u8;
            }
            if let Some(operation) = slot.first_mut() {
                *operation = if *operation & 1 == 0 { 0 } else { *operation | 8 };
            }
            disk.put_bytes(&slot)?;
        }
        let _ = disk.answers()?;
    }
    Ok(())
}
