//! Two ends of everything, through a real broker.

mod channels;
mod death;
mod domains;
mod grants;
mod hostile;

use std::time::{Duration, Instant};

use super::control::Control;
use crate::DomId;
use crate::domain::{DomainSpec, DomainState, Domains as _};
use crate::testing::Machine;

/// Waits until `condition` holds, for as long as a loaded machine may need.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited a minute until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A domain that stays until it is destroyed.
fn create(machine: &Machine, name: &str) -> DomId {
    Control::connect(machine.place()).unwrap().create(&DomainSpec::new(name)).unwrap()
}

/// What a domain is doing; `None` where there is no such domain.
fn state_of(machine: &Machine, domain: DomId) -> Option<DomainState> {
    let listed = Control::connect(machine.place()).unwrap().list().unwrap();
    listed.iter().find(|one| one.id == domain).map(|one| one.state)
}
