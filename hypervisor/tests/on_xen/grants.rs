//! Granting, mapping, copying.

use hypervisor::event::{Channel as _, Events};
use hypervisor::memory::{
    Access, CopyOp, Direction, GrantStatus, Granting, MapFailed, Memory as _, Revoked, Using as _,
};
use hypervisor::{GrantRef, PAGE_SIZE};

use crate::{PATIENCE, domain, granted, page, readable};

/// No domain has that many.
const NONE: GrantRef = GrantRef(0x00ff_ffff);

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn pages_are_mapped_in_the_order_named() {
    let domain = domain();
    let (memory, grefs) = granted(&domain, 3, Access::ReadWrite);
    for number in 0..3 {
        memory.fill(page(number), PAGE_SIZE, number as u8 + 1).unwrap();
    }
    let order = [grefs[2], grefs[0], grefs[1]];
    let mapping = domain.map(domain.id(), &order, Access::ReadWrite).unwrap();
    assert_eq!(mapping.len(), 3 * PAGE_SIZE);
    let mut seen = [0];
    for (at, expected) in [(0, 3), (page(1), 1), (page(2), 2), (page(3) - 1, 2)] {
        mapping.read_at(at, &mut seen).unwrap();
        assert_eq!(seen[0], expected, "at {at}");
    }
    mapping.write_at(page(1) + 7, &[9]).unwrap();
    memory.read_at(7, &mut seen).unwrap();
    assert_eq!(seen[0], 9);
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn what_was_there_before_granting_is_there_after_it_and_after_revoking() {
    let domain = domain();
    let memory = Granting::allocate(&domain, 2, domain.id()).unwrap();
    memory.fill(0, page(2), 5).unwrap();
    let mut grefs = [GrantRef(0)];
    domain.grant(&memory, 1, Access::ReadWrite, &mut grefs).unwrap();
    let mapping = domain.map(domain.id(), &grefs, Access::ReadWrite).unwrap();
    let mut seen = [0; PAGE_SIZE];
    mapping.read_at(0, &mut seen).unwrap();
    assert_eq!(seen, [5; PAGE_SIZE]);

    // The peer keeps what it has mapped, and no longer has ours.
    mapping.fill(0, PAGE_SIZE, 6).unwrap();
    assert_eq!(domain.revoke(grefs[0]), Revoked::Done);
    mapping.fill(0, PAGE_SIZE, 7).unwrap();
    memory.read_at(page(1), &mut seen).unwrap();
    assert_eq!(seen, [6; PAGE_SIZE]);
    let again = domain.map(domain.id(), &grefs, Access::ReadOnly);
    assert!(matches!(again, Ok(_) | Err(MapFailed::Refused { .. })), "{again:?}");
    assert_eq!(domain.pages_granted(), 0);
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn the_first_reference_that_is_refused_is_named() {
    let domain = domain();
    let (_memory, grefs) = granted(&domain, 2, Access::ReadWrite);
    let (_other, read_only) = granted(&domain, 1, Access::ReadOnly);
    for (batch, expected, access) in [
        (vec![NONE], NONE, Access::ReadOnly),
        (vec![grefs[0], NONE, grefs[1]], NONE, Access::ReadOnly),
        (vec![grefs[0], NONE, grefs[1]], NONE, Access::ReadWrite),
        (vec![grefs[0], grefs[1], read_only[0]], read_only[0], Access::ReadWrite),
        (vec![read_only[0], NONE], read_only[0], Access::ReadWrite),
    ] {
        match domain.map(domain.id(), &batch, access) {
            Err(MapFailed::Refused { domain: peer, gref, status }) => {
                assert_eq!((peer, gref), (domain.id(), expected), "{batch:?}");
                assert!(!status.is_okay());
                println!("{batch:?} {access:?}: {gref} refused: {status}");
            }
            other => panic!("{batch:?}: {other:?}"),
        }
    }
    domain.map(domain.id(), &read_only, Access::ReadOnly).unwrap();
    let nobody = hypervisor::DomId::new(0x7000).unwrap();
    let refused = domain.map(nobody, &grefs, Access::ReadOnly).unwrap_err();
    println!("a domain that is not there: {refused}");
    assert!(matches!(refused, MapFailed::Refused { .. }), "{refused:?}");
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn every_copy_has_a_status_of_its_own() {
    let domain = domain();
    let (memory, grefs) = granted(&domain, 2, Access::ReadWrite);
    let (_other, read_only) = granted(&domain, 1, Access::ReadOnly);
    memory.fill(0, PAGE_SIZE, 3).unwrap();
    let op = |gref, offset, direction, local| CopyOp {
        gref,
        offset,
        direction,
        local,
        status: GrantStatus::EAGAIN,
    };
    // Ours crosses a page of our own wherever it lies.
    let mut from = vec![0; PAGE_SIZE];
    let mut to = vec![8; 512];
    let [mut a, mut b, mut c] = [[0; 16]; 3];
    let mut ops = [
        op(grefs[0], 0, Direction::FromPeer, &mut from[..]),
        op(NONE, 0, Direction::FromPeer, &mut a),
        op(grefs[1], 3584, Direction::ToPeer, &mut to),
        op(grefs[1], 4090, Direction::ToPeer, &mut b),
        op(read_only[0], 0, Direction::ToPeer, &mut c),
    ];
    domain.copy(domain.id(), &mut ops).unwrap();
    let statuses: Vec<_> = ops.iter().map(|op| op.status).collect();
    println!("{statuses:?}");
    assert_eq!(statuses[0], GrantStatus::OKAY);
    assert!(!statuses[1].is_okay());
    assert_eq!(statuses[2], GrantStatus::OKAY);
    assert_eq!(statuses[3], GrantStatus::BAD_COPY_ARG);
    assert!(!statuses[4].is_okay());
    assert!(from.iter().all(|byte| *byte == 3));
    let mut seen = [0; 514];
    memory.read_at(page(1) + 3582, &mut seen).unwrap();
    assert_eq!(seen[..2], [0, 0]);
    assert!(seen[2..].iter().all(|byte| *byte == 8));
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn long_batches_are_copied_whole() {
    let domain = domain();
    let (memory, grefs) = granted(&domain, 100, Access::ReadWrite);
    for number in 0..100 {
        memory.fill(page(number), PAGE_SIZE, number as u8).unwrap();
    }
    let mut local = vec![255; page(100)];
    let mut ops: Vec<_> = grefs
        .iter()
        .zip(local.chunks_mut(PAGE_SIZE))
        .map(|(gref, local)| CopyOp {
            gref: *gref,
            offset: 0,
            direction: Direction::FromPeer,
            local,
            status: GrantStatus::EAGAIN,
        })
        .collect();
    domain.copy(domain.id(), &mut ops).unwrap();
    assert!(ops.iter().all(|op| op.status.is_okay()));
    for (number, bytes) in local.chunks(PAGE_SIZE).enumerate() {
        assert!(bytes.iter().all(|byte| *byte == number as u8), "page {number}");
    }
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn a_page_is_granted_once_at_a_time_and_only_where_there_is_one() {
    let domain = domain();
    let (memory, mut grefs) = granted(&domain, 2, Access::ReadWrite);
    let error = domain.grant(&memory, 1, Access::ReadWrite, &mut grefs[..1]).unwrap_err();
    assert_eq!(error.errno, libc::EBUSY, "{error}");
    let mut more = [GrantRef(0); 2];
    let error = domain.grant(&memory, 1, Access::ReadWrite, &mut more).unwrap_err();
    assert_eq!(error.errno, libc::EINVAL, "{error}");
    assert_eq!(domain.pages_granted(), 2);
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn the_limit_is_said_and_nothing_of_the_batch_stays() {
    let domain = domain();
    let limit = hypervisor::xen::about().gntalloc_limit.expect("xen_gntalloc says its limit");
    let pages = usize::try_from(limit).unwrap() + 1;
    let memory = Granting::allocate(&domain, pages, domain.id()).unwrap();
    let mut grefs = vec![GrantRef(0); pages];
    let error = domain.grant(&memory, 0, Access::ReadWrite, &mut grefs).unwrap_err();
    assert_eq!(error.errno, libc::ENOSPC, "{error}");
    assert!(error.to_string().contains("parameters/limit"), "{error}");
    assert_eq!(domain.pages_granted(), 0);
    // And all of them are there to be had again.
    domain.grant(&memory, 0, Access::ReadWrite, &mut grefs[1..]).unwrap();
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn three_thousand_cycles_leave_nothing_behind() {
    let domain = domain();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let ranges = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let (_kept, grefs) = granted(&domain, 1, Access::ReadWrite);
    drop(domain.map(domain.id(), &grefs, Access::ReadWrite).unwrap());
    let before = (descriptors(), ranges());
    let mut kept = Vec::new();
    // A page that stays mapped stays counted against gntalloc's limit of 1024.
    for round in 0..1500_u32 {
        let (memory, grefs) = granted(&domain, 2, Access::ReadWrite);
        memory.write_at(0, &round.to_ne_bytes()).unwrap();
        let mapping = domain.map(domain.id(), &grefs, Access::ReadWrite).unwrap();
        let mut seen = [0; 4];
        mapping.read_at(0, &mut seen).unwrap();
        assert_eq!(u32::from_ne_bytes(seen), round);
        assert!(domain.map(domain.id(), &[grefs[0], NONE], Access::ReadOnly).is_err());
        for gref in grefs {
            assert_eq!(domain.revoke(gref), Revoked::Done);
        }
        // Unmapped after it was revoked, a few rounds later or at once.
        kept.push(mapping);
        kept.truncate(usize::try_from(round % 5).unwrap());
    }
    drop(kept);
    assert_eq!((descriptors(), ranges()), before);
    assert_eq!(domain.pages_granted(), 1);
    assert_eq!(hypervisor::xen::leak::count(), 0);
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn unmapping_clears_a_byte_and_notifies() {
    let domain = domain();
    let (memory, grefs) = granted(&domain, 2, Access::ReadWrite);
    memory.fill(0, page(2), 1).unwrap();
    let ours = Events::allocate(&domain, domain.id()).unwrap();
    let theirs = domain.bind(domain.id(), ours.port()).unwrap();
    let mapping = domain.map(domain.id(), &grefs, Access::ReadWrite).unwrap();
    mapping.on_unmap(page(1) + 5, true, Some(&theirs)).unwrap();
    assert!(mapping.on_unmap(page(2), true, None).is_err());
    assert!(!readable(&ours, 0));
    drop(mapping);
    assert!(readable(&ours, PATIENCE) && ours.take());
    let mut seen = [9; 3];
    memory.read_at(page(1) + 4, &mut seen).unwrap();
    assert_eq!(seen, [1, 0, 1]);
}
