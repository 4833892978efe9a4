//! Event channels, from us to us.

use hypervisor::EventPort;
use hypervisor::event::{Channel as _, Events};
use hypervisor::xen::{Domain, EventChannel};

use crate::{PATIENCE, domain, readable};

fn allocate(domain: &Domain) -> EventChannel {
    Events::allocate(domain, domain.id()).unwrap()
}

/// Binds to `ours`, and takes the event that whoever binds begins with.
fn bind(domain: &Domain, ours: &EventChannel) -> EventChannel {
    let theirs = domain.bind(domain.id(), ours.port()).unwrap();
    assert!(readable(&theirs, PATIENCE), "binding notifies");
    assert!(theirs.take());
    theirs.unmask();
    theirs
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn an_event_is_taken_once_and_again_after_unmasking() {
    let domain = domain();
    let ours = allocate(&domain);
    assert!(!readable(&ours, 0) && !ours.take());
    let theirs = bind(&domain, &ours);
    assert!(!readable(&ours, 50));
    for _ in 0..3 {
        theirs.notify().unwrap();
        assert!(readable(&ours, PATIENCE));
        assert!(ours.take());
        assert!(!ours.take());
        // Masked: what comes now waits.
        theirs.notify().unwrap();
        theirs.notify().unwrap();
        assert!(!readable(&ours, 50));
        ours.unmask();
        assert!(readable(&ours, PATIENCE));
        assert!(ours.take());
        ours.unmask();
        assert!(!readable(&ours, 50));
    }
    // Unmasking what was not taken changes nothing.
    theirs.notify().unwrap();
    assert!(readable(&ours, PATIENCE));
    for _ in 0..10_000 {
        ours.unmask();
    }
    assert!(ours.take());
    assert!(!ours.take());
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn a_closed_end_leaves_the_other_unbound_and_binding_again_notifies() {
    let domain = domain();
    let ours = allocate(&domain);
    for _ in 0..100 {
        let theirs = bind(&domain, &ours);
        drop(theirs);
        // Lost without an error.
        ours.notify().unwrap();
        assert!(!readable(&ours, 0));
    }
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn binding_what_is_not_ours_to_bind_is_refused() {
    let domain = domain();
    let ours = allocate(&domain);
    let bound = domain.bind(domain.id(), ours.port()).unwrap();
    for port in [EventPort(0), EventPort(100_000), ours.port(), bound.port()] {
        let error = domain.bind(domain.id(), port).unwrap_err();
        assert_eq!(error.errno, libc::EINVAL, "{error}");
        println!("{error}");
    }
    let nobody = hypervisor::DomId::new(0x7000).unwrap();
    let error = domain.bind(nobody, ours.port()).unwrap_err();
    println!("{error}");
    assert_ne!(error.errno, libc::EINVAL, "{error}");
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn a_thousand_channels_leave_nothing_behind() {
    let domain = domain();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let mut first = None;
    let mut last = EventPort(0);
    for _ in 0..1000 {
        let ours = allocate(&domain);
        let theirs = domain.bind(domain.id(), ours.port()).unwrap();
        first.get_or_insert(ours.port());
        last = theirs.port();
    }
    assert_eq!(descriptors(), before);
    // Xen gives out the lowest port that is free.
    assert!(last.0 <= first.unwrap().0 + 8, "{first:?} {last:?}");
}
