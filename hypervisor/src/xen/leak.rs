//! Pages that could not be given back, counted and said (advisory 371).

use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// Pages of this process that stay mapped or granted although they were let go of. It is zero in a
/// process in which nothing is broken.
#[must_use]
pub fn count() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

pub(super) fn leaked(pages: usize, doing: &'static str, errno: Errno) {
    LEAKED.fetch_add(pages as u64, Ordering::Relaxed);
    tracing::error!(pages, "{doing}: {}: they are lost until this process ends", errno.desc());
}
