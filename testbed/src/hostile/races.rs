//! What changes while the backend looks at it, and events without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hypervisor::PAGE_SIZE;
use hypervisor::memory::Memory as _;
use ring::layout::HEADER;
use ring::protocol::SlotBytes as _;
use ring::wire::blkif::{
    Indirect, Layout, MAX_INDIRECT_PAGES, Request, Segment, Segments, Status, Transfer, X86_64,
    encode_segments, operation,
};

use super::{Case, Disk, Stage};

/// See [`Case`].
pub const CASES: &[Case] = &[
    Case {
        name: "overlap",
        about: "has many segments of one request, and many requests, share the same bytes",
        counted: &["reads", "writes"],
        play: overlap,
    },
    Case {
        name: "same-id",
        about: "submits one request many times, all with one id",
        counted: &["reads"],
        play: same_id,
    },
    Case {
        name: "slots-rewritten",
        about: "rewrites every slot all the time",
        counted: &["segment_count"],
        play: slots_rewritten,
    },
    Case {
        name: "lists-rewritten",
        about: "rewrites the segments of indirect requests all the time",
        counted: &["segment_past_page"],
        play: lists_rewritten,
    },
    Case {
        name: "event-storm",
        about: "sends events that bring nothing, as fast as possible",
        counted: &["storms"],
        play: event_storm,
    },
];

/// How long a storm lasts, and how long something is rewritten without end.
const LASTS: Duration = Duration::from_millis(200);

fn answered(disk: &mut Disk<'_>, requests: usize) -> Result<usize> {
    let answers = disk.answers()?;
    ensure!(answers.len() == requests, "{} answers to {requests} requests", answers.len());
    Ok(answers.iter().filter(|answer| answer.status == Status::OKAY).count())
}

fn overlap(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(0)?;
    for round in 0..20_u64 {
        for id in 0..32_u64 {
            let segments = Segments::new(&[disk.segment(0, 0, 7)?; 11])?;
            let transfer = Transfer { sector: id % 3, segments };
            disk.put(&match (id ^ round) % 3 {
                0 => Request::read(id, transfer),
                1 => Request::write(id, transfer),
                _ => Request::barrier(id, transfer),
            })?;
        }
        ensure!(answered(&mut disk, 32)? == 32, "what overlaps is nobody's business but ours");
    }
    disk.close()
}

fn same_id(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(0)?;
    for _ in 0..20 {
        for _ in 0..32 {
            let segments = Segments::new(&[disk.segment(0, 0, 7)?])?;
            disk.put(&Request::read(u64::MAX, Transfer { sector: 0, segments }))?;
        }
        ensure!(answered(&mut disk, 32)? == 32, "the id is nobody's business but ours");
    }
    disk.close()
}

/// Does `honest` while another thread does `mischief`, both over and over, and lets the backend
/// see it until the mischief has been seen a few times.
fn while_rewriting(
    disk: &mut Disk<'_>,
    mischief: impl Fn(usize) -> Result<()> + Sync,
    mut honest: impl FnMut(&mut Disk<'_>) -> Result<usize>,
) -> Result<()> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let rewriter = scope.spawn(|| -> Result<()> {
            for turn in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                mischief(turn)?;
                // On few processors the other side would see nothing but the end of a turn.
                thread::yield_now();
            }
            Ok(())
        });
        let began = Instant::now();
        let mut spoiled = 0_usize;
        let mut result = Ok(());
        // On a busy machine the two may take turns and meet rarely.
        while began.elapsed() < LASTS
            || (spoiled < 50 && began.elapsed() < LASTS.saturating_mul(50))
        {
            match honest(disk) {
                Ok(more) => spoiled = spoiled.saturating_add(more),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        let rewrote = rewriter.join().ok().context("the rewriting thread panicked")?;
        result.and(rewrote)
    })
}

fn slots_rewritten(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(0)?;
    let ring = Arc::clone(&disk.ring);
    while_rewriting(
        &mut disk,
        |turn| {
            let slot = (turn % 32).saturating_mul(<X86_64 as Layout>::Slot::LEN);
            let at = HEADER.saturating_add(slot);
            // The count of segments, and the first one's reference and end: never the operation.
            let count = if turn % 3 == 0 { 200 } else { 1 };
            ring.write_at(at.saturating_add(1), &[count])?;
            let last = if turn % 2 == 0 { 99 } else { 7 };
            ring.write_at(at.saturating_add(24), &[0, 0xFF, 0, 0, 3, last])?;
            Ok(())
        },
        |disk| {
            for id in 0..32 {
                let segments = Segments::new(&[disk.segment(0, 0, 7)?])?;
                disk.put(&Request::read(id, Transfer { sector: 0, segments }))?;
            }
            Ok(32_usize.saturating_sub(answered(disk, 32)?))
        },
    )?;
    disk.close()
}

fn lists_rewritten(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(0)?;
    let data = Arc::clone(&disk.data);
    let good = disk.segment(0, 0, 7)?.encode();
    let bad = [disk.segment(0, 7, 0)?, disk.segment(0, 0, 200)?, disk.segment(0, 3, 3)?];
    let list = disk.segment(1, 0, 0)?;
    while_rewriting(
        &mut disk,
        |turn| {
            let segment = bad.get(turn % 4).map_or(good, |bad| bad.encode());
            let at = (turn % 64).saturating_mul(Segment::SIZE);
            data.write_at(PAGE_SIZE.saturating_add(at), &segment)?;
            Ok(())
        },
        |disk| {
            let mut bytes = [0; 64 * Segment::SIZE];
            let _ = encode_segments(&[disk.segment(0, 0, 7)?; 64], &mut bytes);
            disk.data.write_at(PAGE_SIZE, &bytes)?;
            for id in 0..32 {
                let grefs = [list.gref; MAX_INDIRECT_PAGES];
                let indirect = Indirect { operation: operation::READ, sector: 0, count: 64, grefs };
                disk.put(&Request::indirect(id, indirect))?;
            }
            Ok(32_usize.saturating_sub(answered(disk, 32)?))
        },
    )?;
    disk.close()
}

fn event_storm(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut disk = guest.connect(0)?;
    let began = Instant::now();
    while began.elapsed() < LASTS {
        disk.ring_bell()?;
    }
    // In the middle of it an honest request is done.
    let segments = Segments::new(&[disk.segment(0, 0, 7)?])?;
    disk.put(&Request::read(1, Transfer { sector: 0, segments }))?;
    ensure!(answered(&mut disk, 1)? == 1, "an honest request after a storm");
    disk.close()
}
