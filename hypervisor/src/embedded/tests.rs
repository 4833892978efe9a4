//! Two ends of everything, through a real broker.

mod channels;
mod death;
mod domains;
mod grants;

use std::time::{Duration, Instant};

/// Waits until `condition` holds, for as long as a loaded machine may need.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited a minute until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
