//! Domains that end while others use what was theirs. Those that are killed are processes of their
//! own: this test program again, told by its environment what to be.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::{create, state_of, wait_until};
use nix::sys::resource::{Resource, setrlimit};

use crate::domain::{DomainSpec, DomainState, Domains as _};
use crate::embedded::broker::{Broker, Options};
use crate::embedded::control::Control;
use crate::embedded::{Domain, Place};
use crate::event::{Channel as _, Events};
use crate::memory::{Access, GrantStatus, Granting, MapFailed, Memory as _, Revoked, Using as _};
use crate::testing::Machine;
use crate::{DomId, EventPort, GrantRef, PAGE_SIZE};

/// Set for the other process: the machine's folder, and what to be.
const PLACE: &str = "DOMKIT_TEST_PLACE";
const ROLE: &str = "DOMKIT_TEST_ROLE";
const TEXT: &[u8] = b"written before the end";

/// Another process that joined the machine.
struct Other {
    process: Child,
    says: BufReader<ChildStdout>,
    hears: ChildStdin,
}

impl Other {
    fn start(machine: &Machine, role: &str) -> Self {
        Self::start_at(machine.place(), role)
    }

    fn start_at(place: &Place, role: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "embedded::tests::death::other_process", "--ignored", "--nocapture"])
            .env(PLACE, place.folder())
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(process.stdout.take().unwrap());
        let hears = process.stdin.take().unwrap();
        Self { process, says, hears }
    }

    /// The number that it says after `word`.
    fn said(&mut self, word: &str) -> u32 {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.says.read_line(&mut line).unwrap(), 0, "it ended before '{word}'");
            // The test runner puts words of its own in front.
            if let Some((_, number)) = line.trim_end().split_once(word) {
                return number.trim().parse().unwrap();
            }
        }
    }

    fn tell(&mut self, number: u32) {
        writeln!(self.hears, "{number}").unwrap();
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn heard() -> u32 {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}

fn domid(number: u32) -> DomId {
    DomId::new(u16::try_from(number).unwrap()).unwrap()
}

#[test]
#[ignore = "run by the tests beside it, as another process"]
fn other_process() {
    let place = Place::at(std::env::var_os(PLACE).unwrap());
    match std::env::var(ROLE).unwrap().as_str() {
        "user" => be_user(&place),
        "granter" => be_granter(&place),
        "broker" => be_broker(place),
        role => be_driver(&place, domid(role.parse().unwrap())),
    }
}

/// Maps what it is told of, and stays.
fn be_user(place: &Place) {
    let domain = Domain::join(place, &DomainSpec::new("user")).unwrap();
    println!("joined: {}", domain.id());
    let (peer, gref) = (domid(heard()), GrantRef(heard()));
    let one = domain.map(peer, &[gref], Access::ReadWrite).unwrap();
    let two = domain.map(peer, &[gref], Access::ReadOnly).unwrap();
    println!("mapped: 2");
    heard();
    drop((one, two));
}

/// Grants a page, and stays.
fn be_granter(place: &Place) {
    let domain = Domain::join(place, &DomainSpec::new("granter")).unwrap();
    println!("joined: {}", domain.id());
    let peer = domid(heard());
    let memory = Granting::allocate(&domain, 1, peer).unwrap();
    memory.write_at(0, TEXT).unwrap();
    let mut gref = [GrantRef(0)];
    domain.grant(&memory, 0, Access::ReadWrite, &mut gref).unwrap();
    println!("granted: {}", gref[0]);
    heard();
}

/// Runs a hypervisor that may open few descriptors, until nothing is to be heard any more.
fn be_broker(place: Place) {
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
    let mut options = Options::new(place);
    options.groups = false;
    let broker = Broker::start(&options).unwrap();
    println!("serving: 1");
    broker.run(std::io::stdin()).unwrap();
}

/// Enters a domain that was created, binds a port of another, and masks it.
fn be_driver(place: &Place, id: DomId) {
    let domain = Domain::enter(place, id).unwrap();
    println!("joined: {}", domain.id());
    let (peer, port) = (domid(heard()), EventPort(heard()));
    let end = domain.bind(peer, port).unwrap();
    println!("taken: {}", u32::from(end.take()));
    heard();
    drop(end);
}

#[test]
fn what_a_killed_process_had_mapped_can_be_revoked() {
    let machine = Machine::new();
    let front = machine.domain("front");
    let mut other = Other::start(&machine, "user");
    let user = domid(other.said("joined:"));
    let memory = Granting::allocate(&front, 1, user).unwrap();
    let mut gref = [GrantRef(0)];
    front.grant(&memory, 0, Access::ReadWrite, &mut gref).unwrap();
    other.tell(u32::from(front.id().get()));
    other.tell(gref[0].0);
    other.said("mapped:");
    assert_eq!(front.revoke(gref[0]), Revoked::Busy);
    other.kill();
    wait_until("its marks are gone", || front.revoke(gref[0]) == Revoked::Done);
}

#[test]
fn memory_of_a_killed_process_stays_while_it_is_mapped() {
    let machine = Machine::new();
    let back = machine.domain("back");
    let mut other = Other::start(&machine, "granter");
    let granter = domid(other.said("joined:"));
    other.tell(u32::from(back.id().get()));
    let gref = GrantRef(other.said("granted:"));
    let one = back.map(granter, &[gref], Access::ReadWrite).unwrap();
    let two = back.map(granter, &[gref], Access::ReadOnly).unwrap();
    other.kill();
    let state = || state_of(&machine, granter);
    wait_until("it is dying", || state() == Some(DomainState::Dying));
    // The bytes are there, and can be written: nothing faults.
    let mut seen = vec![0; TEXT.len()];
    two.read_at(0, &mut seen).unwrap();
    assert_eq!(seen, TEXT);
    one.fill(0, PAGE_SIZE, 7).unwrap();
    // But nothing more of it can be mapped.
    match back.map(granter, &[gref], Access::ReadOnly) {
        Err(MapFailed::Refused { status, .. }) => assert_eq!(status, GrantStatus::BAD_DOMAIN),
        other => panic!("{other:?}"),
    }
    drop(one);
    assert_eq!(state(), Some(DomainState::Dying));
    drop(two);
    wait_until("nothing is left of it", || state().is_none());
}

#[test]
fn a_process_that_comes_back_into_its_domain_binds_again() {
    let machine = Machine::new();
    let front = machine.domain("front");
    let driver = create(&machine, "driver");
    let end = Events::allocate(&front, driver).unwrap();
    for _ in 0..3 {
        let mut other = Other::start(&machine, &driver.to_string());
        assert_eq!(domid(other.said("joined:")), driver);
        other.tell(u32::from(front.id().get()));
        // Until the broker has seen the one before it end, the end is still bound.
        other.tell(end.port().0);
        assert_eq!(other.said("taken:"), 1, "a new binding notifies");
        assert!(end.take(), "on both sides");
        end.unmask();
        other.kill();
        wait_until("the end is unbound", || {
            let second = Domain::enter(machine.place(), driver).unwrap();
            second.bind(front.id(), end.port()).is_ok()
        });
        // That was a binding too.
        assert!(end.take());
        end.unmask();
        end.notify().unwrap();
    }
    assert!(state_of(&machine, driver).is_some());
}

#[test]
fn a_domain_that_is_entered_again_has_fresh_memory() {
    let machine = Machine::new();
    let back = machine.domain("back");
    let guest = create(&machine, "guest");
    let granted = |domain: &Domain, byte: u8| {
        let memory = Granting::allocate(domain, 1, back.id()).unwrap();
        memory.fill(0, PAGE_SIZE, byte).unwrap();
        let mut gref = [GrantRef(0)];
        domain.grant(&memory, 0, Access::ReadWrite, &mut gref).unwrap();
        (memory, gref)
    };
    let first = |mapping: &crate::embedded::Mapping| {
        let mut seen = [0];
        mapping.read_at(0, &mut seen).unwrap();
        seen[0]
    };
    let one = Domain::enter(machine.place(), guest).unwrap();
    let (_one_memory, gref) = granted(&one, 1);
    let old = back.map(guest, &gref, Access::ReadOnly).unwrap();
    one.leave();
    wait_until("the domain has no memory", || {
        let again = back.map(guest, &gref, Access::ReadOnly);
        matches!(again, Err(MapFailed::Refused { status: GrantStatus::BAD_DOMAIN, .. }))
    });
    let two = Domain::enter(machine.place(), guest).unwrap();
    let (_two_memory, gref) = granted(&two, 2);
    let new = back.map(guest, &gref, Access::ReadOnly).unwrap();
    assert_eq!((first(&old), first(&new)), (1, 2));
    assert_eq!(two.revoke(gref[0]), Revoked::Busy);
    drop(new);
    assert_eq!(two.revoke(gref[0]), Revoked::Done);
    assert_eq!(first(&old), 1);
}

#[test]
fn a_domain_without_a_broker_keeps_what_it_has() {
    let machine = Machine::new();
    let (front, back) = (machine.domain("front"), machine.domain("back"));
    let memory = Granting::allocate(&front, 1, back.id()).unwrap();
    let mut gref = [GrantRef(0)];
    front.grant(&memory, 0, Access::ReadWrite, &mut gref).unwrap();
    let mapped = back.map(front.id(), &gref, Access::ReadWrite).unwrap();
    let one = Events::allocate(&front, back.id()).unwrap();
    let other = back.bind(front.id(), one.port()).unwrap();
    drop(machine);
    mapped.write_at(0, TEXT).unwrap();
    let mut seen = vec![0; TEXT.len()];
    memory.read_at(0, &mut seen).unwrap();
    assert_eq!(seen, TEXT);
    other.unmask();
    one.notify().unwrap();
    assert!(Events::allocate(&front, back.id()).is_err());
    drop((mapped, one, other));
    assert_eq!(front.revoke(gref[0]), Revoked::Done);
}

#[test]
fn a_destroyed_domain_is_cut_off() {
    let machine = Machine::new();
    let (back, guest) = (machine.domain("back"), create(&machine, "guest"));
    let guest = Domain::enter(machine.place(), guest).unwrap();
    let memory = Granting::allocate(&guest, 1, back.id()).unwrap();
    let mut gref = [GrantRef(0)];
    guest.grant(&memory, 0, Access::ReadWrite, &mut gref).unwrap();
    let mapped = back.map(guest.id(), &gref, Access::ReadWrite).unwrap();
    let end = Events::allocate(&back, guest.id()).unwrap();
    let other = guest.bind(back.id(), end.port()).unwrap();
    let control = Control::connect(machine.place()).unwrap();
    control.destroy(guest.id()).unwrap();
    assert_eq!(state_of(&machine, guest.id()), Some(DomainState::Dying));
    assert!(control.destroy(guest.id()).is_err());
    assert!(Events::allocate(&guest, back.id()).is_err());
    end.notify().unwrap();
    drop((mapped, other));
    assert_eq!(state_of(&machine, guest.id()), None);
}

#[test]
fn a_broker_without_descriptors_refuses_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::at(folder.path().join("run"));
    let mut broker = Other::start_at(&place, "broker");
    broker.said("serving:");
    for round in 0..3 {
        let mut joined = Vec::new();
        let refused = loop {
            let name = format!("guest-{round}-{}", joined.len());
            match Domain::join(&place, &DomainSpec::new(name)) {
                Ok(domain) => joined.push(domain),
                Err(error) => break error,
            }
        };
        assert!((2..60).contains(&joined.len()), "{} joined: {refused}", joined.len());
        // Those who are in can still be answered.
        joined.truncate(2);
        wait_until("there is room for a channel", || {
            Events::allocate(&joined[0], joined[1].id()).is_ok()
        });
    }
    broker.kill();
}
