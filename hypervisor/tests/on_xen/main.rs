//! Real Xen, asked from a process in domain 0, which is its own peer: it grants to itself, and its
//! event channels lead back to itself.
//!
//! None of it runs without Xen, so all of it is ignored by `cargo test`; `cargo testbed run hypervisor`
//! runs it inside a machine with Xen in it.
#![cfg(feature = "xen")]

mod costs;
mod events;
mod grants;
mod medium;
mod store;

use std::os::fd::AsFd;

use hypervisor::memory::{Access, Granting as _};
use hypervisor::xen::{Domain, Pages};
use hypervisor::{GrantRef, PAGE_SIZE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long anything may take that is to happen, in milliseconds.
const PATIENCE: u16 = 60_000;

fn domain() -> Domain {
    Domain::open().expect("this must run in a domain on Xen, as root")
}

/// Pages that this domain grants to itself.
fn granted(domain: &Domain, pages: usize, access: Access) -> (Pages, Vec<GrantRef>) {
    let memory = domain.allocate(pages, domain.id()).unwrap();
    let mut grefs = vec![GrantRef(0); pages];
    domain.grant(&memory, 0, access, &mut grefs).unwrap();
    (memory, grefs)
}

/// Whether `fd` becomes readable within `milliseconds`.
fn readable(fd: impl AsFd, milliseconds: u16) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(milliseconds)).unwrap() == 1
}

/// Where page `number` begins.
const fn page(number: usize) -> usize {
    number * PAGE_SIZE
}
