//! Granting, mapping, copying and revoking, with the statuses that Xen gives.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::embedded::grant_table::{ENTRIES, USERS};
use crate::embedded::{Domain, Pages};
use crate::memory::{
    Access, CopyOp, Direction, GrantStatus, Granting as _, MapFailed, Memory as _, Revoked,
    Using as _,
};
use crate::testing::Machine;
use crate::{DomId, GrantRef, PAGE_SIZE};

fn offered(from: &Domain, to: DomId, pages: usize, access: Access) -> (Pages, Vec<GrantRef>) {
    let memory = from.allocate(pages, to).unwrap();
    let mut grefs = vec![GrantRef(0); pages];
    from.grant(&memory, 0, access, &mut grefs).unwrap();
    (memory, grefs)
}

fn refused(user: &Domain, peer: DomId, gref: GrantRef, access: Access) -> GrantStatus {
    match user.map(peer, &[gref], access).unwrap_err() {
        MapFailed::Refused { domain, gref: named, status } => {
            assert_eq!((domain, named), (peer, gref));
            status
        }
        MapFailed::Host(error) => panic!("{error}"),
    }
}

fn copy(user: &Domain, peer: DomId, op: (GrantRef, u16, Direction, &mut [u8])) -> GrantStatus {
    let (gref, offset, direction, local) = op;
    let mut ops = [CopyOp { gref, offset, direction, local, status: GrantStatus(99) }];
    user.copy(peer, &mut ops).unwrap();
    ops[0].status
}

#[test]
fn both_see_the_same_bytes() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let (memory, grefs) = offered(&front, back.id(), 1, Access::ReadWrite);
    memory.write_at(100, b"from the front").unwrap();
    let mapping = back.map(front.id(), &grefs, Access::ReadWrite).unwrap();
    let mut seen = [0; 14];
    mapping.read_at(100, &mut seen).unwrap();
    assert_eq!(&seen, b"from the front");
    mapping.write_at(200, b"from the back").unwrap();
    let mut seen = [0; 13];
    memory.read_at(200, &mut seen).unwrap();
    assert_eq!(&seen, b"from the back");
    assert_eq!(mapping.len(), PAGE_SIZE);
}

#[test]
fn pages_lie_in_the_order_named() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let (memory, grefs) = offered(&front, back.id(), 4, Access::ReadOnly);
    for page in 0..4_u8 {
        memory.fill(usize::from(page) * PAGE_SIZE, PAGE_SIZE, page).unwrap();
    }
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 2, 0, 3]] {
        let named = order.map(|page: usize| grefs[page]);
        let mapping = back.map(front.id(), &named, Access::ReadOnly).unwrap();
        assert_eq!(mapping.len(), 4 * PAGE_SIZE);
        for (at, page) in order.into_iter().enumerate() {
            let mut seen = [9];
            mapping.read_at(at * PAGE_SIZE + 17, &mut seen).unwrap();
            assert_eq!(usize::from(seen[0]), page);
        }
    }
}

#[test]
fn what_is_refused_is_refused_as_on_xen() {
    let machine = Machine::new();
    let (front, back, other) =
        (machine.domain("front"), machine.domain("back"), machine.domain("other"));
    let (memory, writable) = offered(&front, back.id(), 1, Access::ReadWrite);
    let (_also, readable) = offered(&front, back.id(), 1, Access::ReadOnly);
    let id = front.id();
    let nobody = DomId::new(999).unwrap();
    let general = GrantStatus::GENERAL_ERROR;
    // Somebody else's, an entry never used, a reserved one, one beyond the table, no such domain.
    assert_eq!(refused(&other, id, writable[0], Access::ReadOnly), general);
    assert_eq!(refused(&back, id, GrantRef(5000), Access::ReadOnly), general);
    assert_eq!(refused(&back, id, GrantRef(0), Access::ReadOnly), general);
    assert_eq!(refused(&back, id, GrantRef(ENTRIES), Access::ReadOnly), GrantStatus::BAD_GNTREF);
    assert_eq!(refused(&back, id, GrantRef(u32::MAX), Access::ReadOnly), GrantStatus::BAD_GNTREF);
    assert_eq!(refused(&back, nobody, writable[0], Access::ReadOnly), GrantStatus::BAD_DOMAIN);
    // Writing through what was offered to be read.
    assert_eq!(refused(&back, id, readable[0], Access::ReadWrite), general);
    let mut byte = [1];
    let to = Direction::ToPeer;
    assert_eq!(copy(&back, id, (readable[0], 0, to, &mut byte)), general);
    assert_eq!(copy(&back, id, (writable[0], 0, to, &mut byte)), GrantStatus::OKAY);
    assert_eq!(copy(&other, id, (writable[0], 0, to, &mut byte)), general);
    assert_eq!(copy(&back, nobody, (writable[0], 0, to, &mut byte)), GrantStatus::BAD_DOMAIN);
    // Bytes that leave the page.
    let mut page = [0; PAGE_SIZE];
    assert_eq!(copy(&back, id, (writable[0], 1, to, &mut page)), GrantStatus::BAD_COPY_ARG);
    assert_eq!(copy(&back, id, (writable[0], 4096, to, &mut byte)), GrantStatus::BAD_COPY_ARG);
    assert_eq!(copy(&back, id, (writable[0], 0, to, &mut page)), GrantStatus::OKAY);
    // After it was taken back.
    assert_eq!(front.revoke(writable[0]), Revoked::Done);
    assert_eq!(refused(&back, id, writable[0], Access::ReadOnly), general);
    drop(memory);
}

#[test]
fn each_operation_of_a_batch_has_its_own_status() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let (memory, grefs) = offered(&front, back.id(), 2, Access::ReadWrite);
    memory.write_at(8, b"abc").unwrap();
    let (mut out, mut bad, mut into) = ([0; 3], [0; 3], *b"xyz");
    let status = GrantStatus(99);
    let mut ops = [
        CopyOp {
            gref: grefs[0],
            offset: 8,
            direction: Direction::FromPeer,
            local: &mut out,
            status,
        },
        CopyOp {
            gref: GrantRef(7777),
            offset: 8,
            direction: Direction::FromPeer,
            local: &mut bad,
            status,
        },
        CopyOp {
            gref: grefs[1],
            offset: 4093,
            direction: Direction::ToPeer,
            local: &mut into,
            status,
        },
    ];
    back.copy(front.id(), &mut ops).unwrap();
    assert_eq!(
        ops.map(|op| op.status),
        [GrantStatus::OKAY, GrantStatus::GENERAL_ERROR, GrantStatus::OKAY]
    );
    assert_eq!(&out, b"abc");
    let mut seen = [0; 3];
    memory.read_at(2 * PAGE_SIZE - 3, &mut seen).unwrap();
    assert_eq!(&seen, b"xyz");
}

#[test]
fn a_refused_batch_leaves_nothing_mapped() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let (_memory, mut grefs) = offered(&front, back.id(), 3, Access::ReadWrite);
    grefs.push(GrantRef(9999));
    let failed = back.map(front.id(), &grefs, Access::ReadWrite).unwrap_err();
    assert!(matches!(failed, MapFailed::Refused { gref: GrantRef(9999), .. }), "{failed}");
    for gref in &grefs[..3] {
        assert_eq!(front.revoke(*gref), Revoked::Done);
    }
}

#[test]
fn what_is_mapped_is_busy_until_its_last_mapping_goes() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let (_memory, grefs) = offered(&front, back.id(), 2, Access::ReadWrite);
    let one = back.map(front.id(), &grefs, Access::ReadWrite).unwrap();
    let two = back.map(front.id(), &grefs[..1], Access::ReadOnly).unwrap();
    assert_eq!(front.revoke(grefs[0]), Revoked::Busy);
    assert_eq!(front.revoke(grefs[1]), Revoked::Busy);
    drop(one);
    assert_eq!(front.revoke(grefs[0]), Revoked::Busy);
    assert_eq!(front.revoke(grefs[1]), Revoked::Done);
    // A busy grant still stands.
    drop(back.map(front.id(), &grefs[..1], Access::ReadWrite).unwrap());
    drop(two);
    assert_eq!(front.revoke(grefs[0]), Revoked::Done);
}

#[test]
fn pages_dropped_while_granted_are_not_handed_out_again() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let (memory, grefs) = offered(&front, back.id(), 3, Access::ReadWrite);
    memory.fill(0, memory.len(), 0xAA).unwrap();
    assert_eq!(front.revoke(grefs[0]), Revoked::Done);
    let held = back.map(front.id(), &grefs[1..2], Access::ReadOnly).unwrap();
    drop(memory);
    assert_eq!(front.pages_in_use(), 2);
    assert_eq!(front.revoke(grefs[1]), Revoked::Busy);
    assert_eq!(front.revoke(grefs[2]), Revoked::Done);
    assert_eq!(front.pages_in_use(), 1);
    drop(held);
    assert_eq!(front.revoke(grefs[1]), Revoked::Done);
    assert_eq!(front.pages_in_use(), 0);
    // What comes back is zeroed.
    let again = front.allocate(3, back.id()).unwrap();
    let mut seen = vec![1; again.len()];
    again.read_at(0, &mut seen).unwrap();
    assert!(seen.iter().all(|byte| *byte == 0));
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let machine = Machine::new();
    let mut spec = crate::domain::DomainSpec::new("small");
    spec.memory_kib = 64;
    let (small, back) = (machine.domain_with(&spec), machine.domain("back"));
    let held = small.allocate(10, back.id()).unwrap();
    let error = small.allocate(7, back.id()).unwrap_err();
    assert_eq!(error.errno, libc::ENOMEM);
    assert!(error.to_string().contains("10 of 16 pages"), "{error}");
    assert!(small.allocate(usize::MAX, back.id()).is_err());
    assert!(small.allocate(0, back.id()).is_err());
    let mut grefs = [GrantRef(0); 11];
    assert!(small.grant(&held, 0, Access::ReadWrite, &mut grefs).is_err());
    assert!(small.grant(&held, usize::MAX, Access::ReadWrite, &mut grefs[..1]).is_err());
    // Of another domain's memory there is nothing to grant.
    assert!(back.grant(&held, 0, Access::ReadWrite, &mut grefs[..1]).is_err());
    drop(held);
    assert!(small.allocate(16, back.id()).is_ok());
}

#[test]
fn a_full_grant_table_is_refused_and_recovers() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let memory = front.allocate(1, back.id()).unwrap();
    let mut all = vec![GrantRef(0); 1];
    let mut held = Vec::new();
    while front.grant(&memory, 0, Access::ReadOnly, &mut all).is_ok() {
        held.push(all[0]);
    }
    assert_eq!(held.len(), ENTRIES as usize - 8);
    for gref in held {
        assert_eq!(front.revoke(gref), Revoked::Done);
    }
    assert!(front.grant(&memory, 0, Access::ReadOnly, &mut all).is_ok());
    assert_eq!(front.revoke(all[0]), Revoked::Done);
    assert_eq!(front.revoke(all[0]), Revoked::Done);
}

#[test]
fn more_users_than_there_are_marks_for_are_refused() {
    let machine = Machine::new();
    let front = machine.domain("front");
    let memory = front.allocate(1, DomId::ZERO).unwrap();
    let mut held = Vec::new();
    for user in 0..=USERS {
        let user = machine.domain(&format!("user-{user}"));
        let memory = front.allocate(1, user.id()).unwrap();
        let mut gref = [GrantRef(0)];
        front.grant(&memory, 0, Access::ReadOnly, &mut gref).unwrap();
        held.push((user.map(front.id(), &gref, Access::ReadOnly), gref, user, memory));
    }
    let (last, gref, user, _memory) = held.pop().unwrap();
    let Err(MapFailed::Host(error)) = last else { panic!("{last:?}") };
    assert_eq!(error.errno, libc::EUSERS);
    assert!(error.to_string().contains("31"), "{error}");
    assert!(held.iter().all(|(mapping, ..)| mapping.is_ok()));
    // One makes room by unmapping.
    drop(held.pop());
    assert!(user.map(front.id(), &gref, Access::ReadOnly).is_ok());
    drop(memory);
}

#[test]
fn a_domain_can_use_its_own_grants() {
    let machine = Machine::new();
    let domain = machine.domain("self");
    let (memory, grefs) = offered(&domain, domain.id(), 1, Access::ReadWrite);
    let mapping = domain.map(domain.id(), &grefs, Access::ReadWrite).unwrap();
    mapping.write_at(0, b"x").unwrap();
    let mut seen = [0];
    memory.read_at(0, &mut seen).unwrap();
    assert_eq!(&seen, b"x");
}

// The user counts its uses of one reference and marks it once: whatever two threads of it and the
// granter do at the same time, what is mapped is never revoked, and nothing stays busy for ever.
#[test]
fn revoking_never_succeeds_under_a_mapping() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    // Keeps the peer's memory mapped throughout.
    let (_ring, ring) = offered(&front, back.id(), 1, Access::ReadWrite);
    let _mapped = back.map(front.id(), &ring, Access::ReadWrite).unwrap();
    let memory = front.allocate(1, back.id()).unwrap();
    let mut gref = [GrantRef(0)];
    front.grant(&memory, 0, Access::ReadWrite, &mut gref).unwrap();
    let [gref] = gref;
    let revoked = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut mapped = 0_u32;
                    while mapped < 2_000 || revoked.load(Ordering::Relaxed) < 200 {
                        let Ok(mapping) = back.map(front.id(), &[gref], Access::ReadWrite) else {
                            std::hint::spin_loop();
                            continue;
                        };
                        mapped += 1;
                        // Were the grant revoked now, the granter would fill the page.
                        mapping.write_at(0, &[1]).unwrap();
                        let mut seen = [0];
                        mapping.read_at(0, &mut seen).unwrap();
                        assert_eq!(seen, [1]);
                    }
                })
            })
            .collect();
        while users.iter().any(|user| !user.is_finished()) {
            if front.revoke(gref) == Revoked::Done {
                memory.fill(0, 1, 0xFF).unwrap();
                let before = revoked.fetch_add(1, Ordering::Relaxed);
                let mut again = [GrantRef(0)];
                front.grant(&memory, 0, Access::ReadWrite, &mut again).unwrap();
                assert_eq!(again, [gref]);
                // Where there is one processor, the others get it while the grant stands.
                if before.is_multiple_of(8) {
                    std::thread::yield_now();
                }
            }
        }
    });
    assert_eq!(front.revoke(gref), Revoked::Done);
}
