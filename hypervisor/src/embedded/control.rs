//! Control over the embedded hypervisor's domains, for tools.
//!
//! One connection to the broker that joined no domain: it speaks as the control domain does on
//! Xen. Whoever may open the hypervisor's folder may do all of this.

use std::os::fd::IntoRawFd as _;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::domain::{DomainInfo, DomainSpec, Domains};
use crate::{ConfigError, DomId, Error, HostError};

use super::broker::message::{Reply, Request, Spec};
use super::place::Place;
use super::session::{Session, unexpected};

/// A connection through which domains are made, listed and ended.
#[derive(Debug)]
pub struct Control {
    session: Session,
}

/// What a hypervisor has, and what of it it enforces.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineInfo {
    /// Memory there is for domains, in KiB.
    pub total_kib: u64,
    /// What of it no domain was promised, in KiB.
    pub free_kib: u64,
    /// Domains that are alive or dying.
    pub domains: u32,
    /// What cannot be enforced on this machine, and why, one item each.
    pub unenforced: Vec<String>,
}

impl Control {
    /// Connects to the hypervisor at `place`.
    ///
    /// # Errors
    ///
    /// No hypervisor runs there.
    pub fn connect(place: &Place) -> Result<Self, HostError> {
        Ok(Self { session: Session::connect(place)? })
    }

    /// What the hypervisor has and enforces.
    ///
    /// # Errors
    ///
    /// It cannot be asked.
    pub fn info(&self) -> Result<MachineInfo, Error> {
        let doing = || "ask what the hypervisor has".to_owned();
        match self.ask(&Request::Info, &doing)? {
            Reply::Info(info) => Ok(MachineInfo {
                total_kib: info.total_kib,
                free_kib: info.free_kib,
                domains: info.domains,
                unenforced: info.unenforced,
            }),
            _ => Err(unexpected(doing()).into()),
        }
    }

    /// The hypervisor's process.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub fn pid(&self) -> Result<i32, HostError> {
        self.session
            .peer_pid()
            .map_err(|errno| failed(|| "ask for the hypervisor's pid".to_owned(), errno))
    }

    /// Makes a domain that ends when the last process in it has left, and not, as one from
    /// [`create`](Domains::create), only when it is destroyed.
    ///
    /// # Errors
    ///
    /// As for [`create`](Domains::create).
    pub fn create_until_left(&self, spec: &DomainSpec) -> Result<DomId, Error> {
        self.make(spec, Request::CreateUntilLeft { spec: Spec::from(spec) })
    }

    /// Puts this process into domain `id`, without its memory or store: from here on it, and what
    /// it starts, is held to the domain's share of the machine, and is stopped and ended with it.
    /// The connection is handed on to whatever program this process becomes, so that the process
    /// stays in the domain until it ends.
    ///
    /// If the domain is paused, this waits with everything else in it.
    ///
    /// # Errors
    ///
    /// There is no such domain.
    pub fn place_self(self, id: DomId) -> Result<(), Error> {
        let doing = || format!("enter domain {id}");
        self.done(&Request::Enter { domain: id.get() }, &doing)?;
        let socket = self.session.into_socket();
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| failed(doing, errno))?;
        let kept = socket.into_raw_fd();
        tracing::debug!("descriptor {kept} keeps this process in domain {id}");
        Ok(())
    }

    /// The living domain whose name or number is `wanted`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn find(&self, wanted: &str) -> Result<DomainInfo, Error> {
        let number = wanted.parse::<u16>().ok();
        let is_it = |info: &DomainInfo| match number {
            Some(number) => info.id.get() == number,
            None => info.spec.name == wanted,
        };
        self.list()?.into_iter().find(is_it).ok_or_else(|| {
            let problem = "does not exist; `hypervisor list` shows those that do";
            ConfigError::new("domain", wanted, problem).into()
        })
    }

    fn make(&self, spec: &DomainSpec, request: Request) -> Result<DomId, Error> {
        let doing = || format!("create domain '{}'", spec.name);
        match self.ask(&request, &doing)? {
            Reply::Created { domain } => {
                DomId::new(domain).ok_or_else(|| unexpected(doing()).into())
            }
            _ => Err(unexpected(doing()).into()),
        }
    }

    fn ask(&self, request: &Request, doing: &dyn Fn() -> String) -> Result<Reply, Error> {
        match self.session.ask(request) {
            Ok((Reply::Refused(refusal), _)) => Err(refusal.into()),
            Ok((reply, _)) => Ok(reply),
            Err(errno) => Err(failed(doing, errno).into()),
        }
    }

    fn done(&self, request: &Request, doing: &dyn Fn() -> String) -> Result<(), Error> {
        match self.ask(request, doing)? {
            Reply::Done => Ok(()),
            _ => Err(unexpected(doing()).into()),
        }
    }
}

impl Domains for Control {
    fn create(&self, spec: &DomainSpec) -> Result<DomId, Error> {
        self.make(spec, Request::Create { spec: Spec::from(spec) })
    }

    fn list(&self) -> Result<Vec<DomainInfo>, Error> {
        let doing = || "list domains".to_owned();
        let mut all: Vec<DomainInfo> = Vec::new();
        loop {
            let after = all.last().map(|info| info.id.get());
            let Reply::List { domains } = self.ask(&Request::List { after }, &doing)? else {
                return Err(unexpected(doing()).into());
            };
            if domains.is_empty() {
                return Ok(all);
            }
            for known in domains {
                let info = known.into_info().ok_or_else(|| unexpected(doing()))?;
                // Ascending numbers are also what ends this loop.
                if after.is_some_and(|after| info.id.get() <= after) {
                    return Err(unexpected(doing()).into());
                }
                all.push(info);
            }
        }
    }

    fn pause(&self, id: DomId, paused: bool) -> Result<(), Error> {
        let doing = || format!("{} domain {id}", if paused { "pause" } else { "unpause" });
        self.done(&Request::Pause { domain: id.get(), paused }, &doing)
    }

    fn destroy(&self, id: DomId) -> Result<(), Error> {
        self.done(&Request::Destroy { domain: id.get() }, &|| format!("destroy domain {id}"))
    }

    fn set_memory_target(&self, id: DomId, target_kib: u64) -> Result<(), Error> {
        let doing = || format!("set the memory target of domain {id}");
        self.done(&Request::SetTarget { domain: id.get(), target_kib }, &doing)
    }

    fn set_scheduling(&self, id: DomId, weight: u16, cap: u16) -> Result<(), Error> {
        let doing = || format!("set weight and cap of domain {id}");
        self.done(&Request::SetScheduling { domain: id.get(), weight, cap }, &doing)
    }
}

fn failed(doing: impl Fn() -> String, errno: Errno) -> HostError {
    HostError::new(doing(), errno as i32)
}
