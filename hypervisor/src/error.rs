//! Whose doing an error is: the peer's, the host's, or that of whoever configured us.
//!
//! The three never mix. A [`PeerFault`] ends one peer's device and nothing else; a [`HostError`]
//! is ours to report and perhaps to retry; a [`ConfigError`] goes to the person who can mend it.

use alloc::borrow::Cow;
use alloc::string::String;

use core::fmt;

use crate::DomId;

/// Who is at the other end of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A domain.
    Domain(DomId),
    /// A virtual machine that a process beside us runs, or that process (vhost-user).
    Machine,
}

impl From<DomId> for Peer {
    fn from(domain: DomId) -> Self {
        Self::Domain(domain)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(domain) => write!(f, "domain {domain}"),
            Self::Machine => f.write_str("virtual machine"),
        }
    }
}

/// The other end of a device broke a protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{peer}: {what}: {value}")]
pub struct PeerFault {
    /// Who did it.
    pub peer: Peer,
    /// What was wrong, as a phrase that also serves as a counter's name.
    pub what: Cow<'static, str>,
    /// The value that was wrong.
    pub value: String,
}

impl PeerFault {
    /// `peer` gave `value` where `what` says why that is wrong.
    pub fn new(
        peer: impl Into<Peer>,
        what: impl Into<Cow<'static, str>>,
        value: impl core::fmt::Display,
    ) -> Self {
        Self { peer: peer.into(), what: what.into(), value: alloc::format!("{value}") }
    }
}

/// This machine could not do what was asked of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{doing}: {}", describe(*.errno))]
pub struct HostError {
    /// What was being done, and to what.
    pub doing: Cow<'static, str>,
    /// The kernel's or hypervisor's reason as a positive `errno` value.
    pub errno: i32,
}

impl HostError {
    /// `doing` failed with the positive error number `errno`.
    pub fn new(doing: impl Into<Cow<'static, str>>, errno: i32) -> Self {
        Self { doing: doing.into(), errno }
    }

    /// `doing` failed as `error` says.
    #[cfg(feature = "std")]
    pub fn from_io(doing: impl Into<Cow<'static, str>>, error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::new(doing, errno),
            // Only errors that never were the kernel's come here: EIO is the word for "failed,
            // and no number says how", so the words go in front.
            None => Self::new(alloc::format!("{}: {error}", doing.into()), 5),
        }
    }
}

#[cfg(feature = "std")]
fn describe(errno: i32) -> String {
    alloc::format!("{}", std::io::Error::from_raw_os_error(errno))
}

#[cfg(not(feature = "std"))]
fn describe(errno: i32) -> String {
    alloc::format!("error {errno}")
}

/// What somebody asked for cannot be had as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{thing} '{value}': {problem}")]
pub struct ConfigError {
    /// The option, key or file at fault.
    pub thing: Cow<'static, str>,
    /// Its value.
    pub value: String,
    /// What is wrong with it, and what to do about it.
    pub problem: Cow<'static, str>,
}

impl ConfigError {
    /// `thing` has `value`, and `problem` says why that will not do.
    pub fn new(
        thing: impl Into<Cow<'static, str>>,
        value: impl core::fmt::Display,
        problem: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { thing: thing.into(), value: alloc::format!("{value}"), problem: problem.into() }
    }
}

/// Any of the three.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer's doing.
    #[error(transparent)]
    Peer(#[from] PeerFault),
    /// The host's doing.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The configuration's doing.
    #[error(transparent)]
    Config(#[from] ConfigError),
}
