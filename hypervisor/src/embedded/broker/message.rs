//! What domains and tools ask of the broker, and what it answers.
//!
//! Each request gets exactly one reply, in order; the broker never speaks first. Numbers are plain
//! here and are checked where they are used.

use serde::{Deserialize, Serialize};

use crate::domain::{DomainInfo, DomainSpec, DomainState};
use crate::{ConfigError, DomId, Error, HostError};

/// What is asked of the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Become a process of domain `domain`, or of a new one made as `spec` says.
    /// Answered by [`Reply::Joined`] with RAM, grant table and marks beside it if this process is the
    /// one that has the domain's memory, and the store's socket.
    Join {
        /// The domain, where it was created before.
        domain: Option<u16>,
        /// What a new domain is to get.
        spec: Spec,
    },
    /// Another connection to the store. Answered by [`Reply::Done`] with the socket beside it.
    OpenStore,
    /// The memory of `granter`, to map and copy what it granted. Answered by [`Reply::Shared`] with
    /// RAM, grant table and marks beside it.
    Share {
        /// Whose.
        granter: u16,
    },
    /// No longer.
    Release {
        /// As [`Reply::Shared`] named it.
        share: u64,
    },
    /// A new event channel whose other end `peer` may bind. Answered by [`Reply::Channel`].
    Allocate {
        /// For whom.
        peer: u16,
    },
    /// The end of a channel that `peer` has as `port`. Answered by [`Reply::Channel`].
    Bind {
        /// Whose.
        peer: u16,
        /// Its number there.
        port: u32,
    },
    /// Closes one's own end of a channel.
    Close {
        /// Its number.
        port: u32,
    },
    /// Makes a domain, paused, that stays until it is destroyed. Answered by [`Reply::Created`].
    Create {
        /// What it is to get.
        spec: Spec,
    },
    /// Makes a domain, paused, that ends when its last process has left it. Answered by
    /// [`Reply::Created`].
    CreateUntilLeft {
        /// What it is to get.
        spec: Spec,
    },
    /// Be a process of `domain`, held to its share, but without its memory or store.
    Enter {
        /// Which.
        domain: u16,
    },
    /// The next domains after number `after`. Answered by [`Reply::List`]; empty after the last.
    List {
        /// The last number already known.
        after: Option<u16>,
    },
    /// Holds a domain or lets it run.
    Pause {
        /// Which.
        domain: u16,
        /// Hold it.
        paused: bool,
    },
    /// Ends a domain.
    Destroy {
        /// Which.
        domain: u16,
    },
    /// Sets a domain's memory target.
    SetTarget {
        /// Which.
        domain: u16,
        /// In KiB.
        target_kib: u64,
    },
    /// Sets a domain's share of CPU time.
    SetScheduling {
        /// Which.
        domain: u16,
        /// As in [`DomainSpec`].
        weight: u16,
        /// As in [`DomainSpec`].
        cap: u16,
    },
    /// What the hypervisor has and enforces. Answered by [`Reply::Info`].
    Info,
}

/// What the broker answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Done, and there is nothing to say.
    Done,
    /// The connection is a process of that domain now.
    Joined {
        /// Its number.
        domain: u16,
        /// Its RAM in pages, if this process has it.
        pages: Option<u32>,
    },
    /// The use of a domain's memory.
    Shared {
        /// What to release.
        share: u64,
        /// The number of the bit to mark used entries with.
        slot: u32,
        /// Its RAM in pages.
        pages: u32,
    },
    /// An event channel's end. Beside it: the channel's words, our eventfd, the peer's eventfd.
    Channel {
        /// Our end's number.
        port: u32,
        /// Which of the two words is ours.
        end: u32,
    },
    /// The new domain.
    Created {
        /// Its number.
        domain: u16,
    },
    /// Some domains, by number.
    List {
        /// At most a fixed number of them.
        domains: Vec<Known>,
    },
    /// What the hypervisor has.
    Info(Info),
    /// It was not done.
    Refused(Refusal),
}

/// What the hypervisor has, and what of it it enforces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Info {
    /// Memory to share among domains, in KiB.
    pub(crate) total_kib: u64,
    /// What of it no domain has.
    pub(crate) free_kib: u64,
    /// Domains that are alive or dying.
    pub(crate) domains: u32,
    /// What cannot be enforced on this machine, each as one sentence.
    pub(crate) unenforced: Vec<String>,
}

/// [`DomainSpec`], as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    name: String,
    memory_kib: u64,
    vcpus: u32,
    weight: u16,
    cap: u16,
}

impl From<&DomainSpec> for Spec {
    fn from(spec: &DomainSpec) -> Self {
        let DomainSpec { name, memory_kib, vcpus, weight, cap } = spec.clone();
        Self { name, memory_kib, vcpus, weight, cap }
    }
}

impl From<Spec> for DomainSpec {
    fn from(spec: Spec) -> Self {
        let Spec { name, memory_kib, vcpus, weight, cap } = spec;
        Self { name, memory_kib, vcpus, weight, cap }
    }
}

/// [`DomainInfo`], as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    domain: u16,
    spec: Spec,
    target_kib: u64,
    state: State,
    cpu_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Running,
    Paused,
    Dying,
}

impl From<&DomainInfo> for Known {
    fn from(info: &DomainInfo) -> Self {
        let state = match info.state {
            DomainState::Running => State::Running,
            DomainState::Paused => State::Paused,
            DomainState::Dying => State::Dying,
        };
        Self {
            domain: info.id.get(),
            spec: Spec::from(&info.spec),
            target_kib: info.target_kib,
            state,
            cpu_ns: info.cpu_ns,
        }
    }
}

impl Known {
    /// As the control client's callers know it; `None` where the number is no domain's.
    pub(crate) fn into_info(self) -> Option<DomainInfo> {
        let state = match self.state {
            State::Running => DomainState::Running,
            State::Paused => DomainState::Paused,
            State::Dying => DomainState::Dying,
        };
        let id = DomId::new(self.domain)?;
        Some(DomainInfo::new(id, self.spec.into(), self.target_kib, state, self.cpu_ns))
    }
}

/// An error, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// [`HostError`].
    Host {
        /// What was being done.
        doing: String,
        /// Why not.
        errno: i32,
    },
    /// [`ConfigError`].
    Config {
        /// The thing at fault.
        thing: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        match error {
            Error::Host(HostError { doing, errno }) => {
                Self::Host { doing: doing.to_string(), errno: *errno }
            }
            Error::Config(ConfigError { thing, value, problem }) => Self::Config {
                thing: thing.to_string(),
                value: value.clone(),
                problem: problem.to_string(),
            },
            Error::Peer(fault) => Self::Host { doing: fault.to_string(), errno: libc::EPROTO },
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Host { doing, errno } => HostError::new(doing, errno).into(),
            Refusal::Config { thing, value, problem } => {
                ConfigError::new(thing, value, problem).into()
            }
        }
    }
}
