//! Becoming a domain and getting the interface.

use std::fmt;

use anyhow::Context as _;
use hypervisor::domain::DomainSpec;
use hypervisor::embedded;
use hypervisor::find::Embedded;
use hypervisor::frontend::host::Stop;
use hypervisor::host::Domain;
use netfront::host::claim::{self, Claim};
use netfront::host::{HostInterface, find};
use netfront::{Config, NetInfo};

use crate::args::Args;

/// Bytes that a queue takes: its rings, and pages for what is on them.
const QUEUE: u64 = 640 * hypervisor::PAGE_SIZE as u64;

/// The domain that this process is, and what ends it early.
pub(crate) struct Joined<D> {
    pub(crate) domain: D,
    pub(crate) stop: Stop,
    /// Whether the domain is all of this machine, its kernel included, and not this process alone.
    pub(crate) machine: bool,
}

/// An interface in use.
pub(crate) struct Attached<D: Domain> {
    pub(crate) interface: HostInterface<D>,
    pub(crate) info: NetInfo,
    pub(crate) number: u32,
    pub(crate) domain: D,
    pub(crate) stop: Stop,
    /// Held until the interface is closed.
    _claim: Option<Claim>,
}

/// Becomes a domain with the memory that the interface needs.
pub(crate) fn join(found: &Embedded, args: &Args) -> anyhow::Result<embedded::Domain> {
    let mut spec = DomainSpec::new(&args.domain_name);
    let needed = QUEUE.saturating_mul(args.queues.into());
    spec.memory_kib = args.memory.0.max(needed).div_ceil(1024);
    spec.vcpus = args.queues;
    let domain = found.join(&spec)?;
    eprintln!("netfront: domain {} ({})", domain.id(), args.domain_name);
    Ok(domain)
}

/// Waits for the interface and connects it.
pub(crate) fn attach<D: Domain>(args: &Args, joined: Joined<D>) -> anyhow::Result<Attached<D>> {
    let Joined { domain, stop, machine } = joined;
    let mut config = Config::default();
    config.queues = args.queues;
    eprintln!("netfront: waiting for an interface");
    let number = find::wait(&domain, args.vif, args.timeout)?;
    let claim = machine.then(|| claim::claim(number)).transpose()?;
    let interface = HostInterface::open(domain.clone(), &find::directory(number), config)?;
    let info = interface.wait(args.timeout).with_context(|| format!("interface {number}"))?;
    Ok(Attached { interface, info, number, domain, stop, _claim: claim })
}

/// An Ethernet address, as people write it.
pub(crate) struct Shown(pub(crate) [u8; 6]);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
