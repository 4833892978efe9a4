//! What mapping and copying cost, to choose between them. Printed, not judged.

use std::time::Instant;

use hypervisor::PAGE_SIZE;
use hypervisor::event::{Channel as _, Events};
use hypervisor::memory::{Access, CopyOp, Direction, GrantStatus, Memory as _, Using as _};

use crate::{domain, granted};

const ROUNDS: u32 = 200;

/// Microseconds for each of some rounds.
fn timed(mut work: impl FnMut()) -> f64 {
    work();
    let began = Instant::now();
    for _ in 0..ROUNDS {
        work();
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS)
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn of_reaching_pages() {
    let domain = domain();
    let peer = domain.id();
    let (_memory, grefs) = granted(&domain, 512, Access::ReadWrite);
    let mut local = vec![0; 512 * PAGE_SIZE];
    for count in [1, 8, 32, 256] {
        let grefs = &grefs[..count];
        let mapped = timed(|| drop(domain.map(peer, grefs, Access::ReadWrite).unwrap()));
        let singly = timed(|| {
            for gref in grefs {
                drop(domain.map(peer, &[*gref], Access::ReadWrite).unwrap());
            }
        });
        let copied = timed(|| {
            let ops = grefs.iter().zip(local.chunks_mut(PAGE_SIZE));
            let mut ops: Vec<_> = ops
                .map(|(gref, local)| CopyOp {
                    gref: *gref,
                    offset: 0,
                    direction: Direction::FromPeer,
                    local,
                    status: GrantStatus::EAGAIN,
                })
                .collect();
            domain.copy(peer, &mut ops).unwrap();
        });
        let kept = domain.map(peer, grefs, Access::ReadWrite).unwrap();
        let touched = timed(|| kept.read_at(0, &mut local[..count * PAGE_SIZE]).unwrap());
        println!(
            "{count:3} pages, us: map and unmap {mapped:.0}, singly {singly:.0}, copy {copied:.0}, \
             read what stays mapped {touched:.0}"
        );
    }
    // Among many that stay mapped.
    let kept: Vec<_> =
        grefs.iter().map(|gref| domain.map(peer, &[*gref], Access::ReadWrite)).collect();
    let one = timed(|| drop(domain.map(peer, &grefs[..1], Access::ReadWrite).unwrap()));
    println!("1 page beside {} mappings, us: map and unmap {one:.0}", kept.len());
    let channel = Events::allocate(&domain, peer).unwrap();
    println!("notify, us: {:.1}", timed(|| channel.notify().unwrap()));
}
