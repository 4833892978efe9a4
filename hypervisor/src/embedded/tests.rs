//! Two ends of everything, through a real broker.

mod channels;
mod death;
mod domains;
mod grants;
mod hostile;

use std::time::{Duration, Instant};

use super::broker::message::{Reply, Request, Spec};
use super::session::Session;
use crate::DomId;
use crate::domain::DomainSpec;
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
    let session = Session::connect(machine.place()).unwrap();
    let spec = Spec::from(&DomainSpec::new(name));
    let request = serde_json::json!({ "Create": { "spec": spec, "until_left": false } });
    match session.ask(&serde_json::from_value(request).unwrap()).unwrap() {
        (Reply::Created { domain }, _) => DomId::new(domain).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// What a domain is doing; `None` where there is no such domain.
fn state_of(machine: &Machine, domain: DomId) -> Option<String> {
    let session = Session::connect(machine.place()).unwrap();
    let (reply, _) = session.ask(&Request::List { after: None }).unwrap();
    let listed = serde_json::to_value(&reply).unwrap();
    let all = listed["List"]["domains"].as_array().unwrap();
    let one = all.iter().find(|one| one["domain"] == domain.get())?;
    Some(one["state"].as_str().unwrap().to_owned())
}
