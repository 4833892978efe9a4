//! Grants that stay mapped, as the frontend names them and takes them back.

use hypervisor::memory::{Access, Granting, Memory, Revoked};
use hypervisor::{GrantRef, PAGE_SIZE};
use netback::kept::Kept;
use ring::wire::netif::control::{Gref, Status};

use super::scene::Scene;

const PAGES: usize = 6;

fn named(gref: GrantRef, access: Access) -> Gref {
    let flags = if access == Access::ReadOnly { Gref::READ_ONLY } else { 0 };
    Gref { gref, flags, status: 0 }
}

#[test]
fn pages_that_were_named_together_are_given_up_one_by_one() {
    let scene = Scene::new();
    let (guest, back, ours) = (&scene.guest, &scene.back, scene.guest.id());
    let memory = Granting::allocate(guest, PAGES, back.id()).unwrap();
    // Every other page may only be read.
    let accesses = [Access::ReadWrite, Access::ReadOnly].repeat(PAGES / 2);
    let mut list = Vec::new();
    for (page, access) in accesses.iter().enumerate() {
        let mut gref = [GrantRef(0)];
        memory.write_at(page * PAGE_SIZE + 7, &[page as u8; 9]).unwrap();
        guest.grant(&memory, page, *access, &mut gref).unwrap();
        list.push(named(gref[0], *access));
    }
    let kept = Kept::default();
    assert_eq!(kept.add(back, ours, &list), Status::SUCCESS);
    assert_eq!(kept.add(back, ours, &list[..1]), Status::INVALID_PARAMETER, "there already");
    for gone in 0..PAGES {
        let look = kept.look().unwrap();
        for (page, entry) in list.iter().enumerate() {
            let mut bytes = [0; 9];
            let read = look.read(entry.gref, 7, &mut bytes);
            assert_eq!(read, (page >= gone).then_some(true), "{page}, {gone} gone");
            if page >= gone {
                assert_eq!(bytes, [page as u8; 9]);
                let may = accesses[page] == Access::ReadWrite;
                assert_eq!(look.write(entry.gref, 7, &bytes), Some(may));
                assert_eq!(look.read(entry.gref, 4090, &mut bytes), Some(false), "the next page's");
            }
        }
        drop(look);
        assert_eq!(guest.revoke(list[gone].gref), Revoked::Busy);
        assert_eq!(kept.remove(back, ours, &mut list[gone..=gone]), 1);
        assert_eq!(kept.len(), PAGES - gone - 1);
        assert_eq!(guest.revoke(list[gone].gref), Revoked::Done, "{gone} is let go of");
    }
    assert!(kept.look().is_none());
}
