//! Joining and leaving, and what the store says of it.

use crate::domain::DomainSpec;
use crate::embedded::Domain;
use crate::store::{Store as _, Transaction, Watches as _};
use crate::testing::Machine;

use super::wait_until;

#[test]
fn a_domain_has_a_home() {
    let machine = Machine::new();
    let mut spec = DomainSpec::new("guest");
    spec.vcpus = 2;
    spec.memory_kib = 32 * 1024;
    let guest = machine.domain_with(&spec);
    let read =
        |path: &str| String::from_utf8(guest.read(Transaction::NONE, path).unwrap()).unwrap();
    assert_eq!(read("name"), "guest");
    assert_eq!(read("domid"), guest.id().to_string());
    assert_eq!(read(&format!("/local/domain/{}/memory/target", guest.id())), "32768");
    assert_eq!(read("cpu/1/availability"), "online");
    // It may write below its home, but not what the hypervisor says.
    guest.write(Transaction::NONE, "device/vbd/1/state", b"1").unwrap();
    assert!(guest.write(Transaction::NONE, "name", b"other").is_err());
    assert!(guest.write(Transaction::NONE, "/local/domain/0/x", b"").is_err());
    let control = guest.open_control_store().unwrap();
    control.write(Transaction::NONE, "/local/domain/0/x", b"").unwrap();
}

#[test]
fn others_are_told_of_a_domain_that_comes_and_goes() {
    let machine = Machine::new();
    // The control domain is told; a domain would need to be let.
    let store = machine.control_store();
    let told = |token: &str| {
        wait_until("the store tells", || {
            store.changed().unwrap().is_some_and(|changed| changed.token == token)
        });
    };
    store.watch("@introduceDomain", "came").unwrap();
    store.watch("@releaseDomain", "went").unwrap();
    told("came");
    told("went");
    let guest = machine.domain("guest");
    told("came");
    let home = format!("/local/domain/{}", guest.id());
    drop(guest);
    told("went");
    let control = machine.control_store();
    assert!(control.read(Transaction::NONE, &home).is_err());
}

#[test]
fn a_name_is_taken_once() {
    let machine = Machine::new();
    let one = machine.domain("guest");
    let error = Domain::join(machine.place(), &DomainSpec::new("guest")).unwrap_err();
    assert!(error.to_string().contains("guest"), "{error}");
    drop(one);
    wait_until("the name is free", || {
        Domain::join(machine.place(), &DomainSpec::new("guest")).is_ok()
    });
}

#[test]
fn a_second_process_of_a_domain_shares_its_number_but_not_its_memory() {
    use crate::event::{Channel as _, Events};
    use crate::memory::{Access, Granting, Using as _};
    use crate::{DomId, GrantRef};
    let machine = Machine::new();
    let (first, front) = (machine.domain("driver"), machine.domain("front"));
    let second = Domain::enter(machine.place(), first.id()).unwrap();
    assert_eq!(second.id(), first.id());
    assert!(Granting::allocate(&second, 1, front.id()).is_err());
    let memory = Granting::allocate(&front, 1, first.id()).unwrap();
    let mut gref = [GrantRef(0)];
    front.grant(&memory, 0, Access::ReadWrite, &mut gref).unwrap();
    assert!(second.map(front.id(), &gref, Access::ReadWrite).is_ok());
    let end = Events::allocate(&front, first.id()).unwrap();
    assert!(second.bind(front.id(), end.port()).unwrap().take());
    // The first one's end is not the domain's.
    drop(first);
    assert!(second.read(Transaction::NONE, "name").is_ok());
    assert!(Domain::enter(machine.place(), DomId::new(4321).unwrap()).is_err());
}

#[test]
fn joining_and_leaving_keeps_descriptors_flat() {
    let machine = Machine::new();
    let stays = machine.domain("stays");
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let round = |number: u32| {
        use crate::GrantRef;
        use crate::event::{Channel as _, Events};
        use crate::memory::{Access, Granting, Using as _};
        let guest = machine.domain(&format!("guest-{number}"));
        let memory = Granting::allocate(&guest, 2, stays.id()).unwrap();
        let mut grefs = [GrantRef(0); 2];
        guest.grant(&memory, 0, Access::ReadWrite, &mut grefs).unwrap();
        let mapped = stays.map(guest.id(), &grefs, Access::ReadWrite).unwrap();
        let end = Events::allocate(&guest, stays.id()).unwrap();
        let other = stays.bind(guest.id(), end.port()).unwrap();
        match number % 3 {
            0 => guest.leave(),
            1 => drop(other),
            _ => drop(mapped),
        }
    };
    for number in 0..20 {
        round(number);
    }
    // Other tests run beside this one and open what they need, so a single count says little: the
    // lowest of many is compared, for as long as that takes.
    let lowest = |from: u32| {
        (from..from + 100)
            .map(|number| {
                round(number);
                count()
            })
            .min()
            .unwrap()
    };
    let before = lowest(20);
    let mut from = 120;
    wait_until("descriptors are as few as before", || {
        from += 100;
        lowest(from) <= before + 20
    });
}
