//! Becoming a domain and getting the disk.

use anyhow::Context as _;
use blkfront::host::claim::{self, Claim};
use blkfront::host::{HostDisk, find};
use blkfront::{Config, DiskInfo, vdev};
use hypervisor::domain::DomainSpec;
use hypervisor::embedded;
use hypervisor::find::Embedded;
use hypervisor::frontend::host::Stop;
use hypervisor::host::Domain;
use hypervisor::size::Size;

use crate::args::Args;

/// The domain that this process is, and what ends it early.
pub(crate) struct Joined<D> {
    pub(crate) domain: D,
    pub(crate) stop: Stop,
    /// Whether the domain is all of this machine, its kernel included, and not this process alone.
    pub(crate) machine: bool,
}

/// A disk in use.
pub(crate) struct Attached<D: Domain> {
    pub(crate) disk: HostDisk<D>,
    pub(crate) info: DiskInfo,
    /// What it is called.
    pub(crate) name: String,
    pub(crate) domain: D,
    pub(crate) stop: Stop,
    /// Held until the disk is closed.
    _claim: Option<Claim>,
}

/// Becomes a domain with the memory that the disk, and `extra` bytes, need.
pub(crate) fn join(found: &Embedded, args: &Args, extra: u64) -> anyhow::Result<embedded::Domain> {
    let mut spec = DomainSpec::new(&args.domain_name);
    let page = hypervisor::PAGE_SIZE as u64;
    let ring = 1_u64 << args.ring_page_order;
    let queue = (Config::default().pool_pages as u64).saturating_add(ring);
    let needed =
        queue.saturating_mul(args.queues.into()).saturating_mul(page).saturating_add(extra);
    // What the domain itself needs besides is little; an eighth on top leaves room for fragments.
    let needed = needed.saturating_add(needed / 8);
    spec.memory_kib = args.memory.0.max(needed).div_ceil(1024);
    spec.vcpus = args.queues;
    let domain = found.join(&spec)?;
    let memory = Size(spec.memory_kib.saturating_mul(1024));
    eprintln!("blkfront: domain {} ({}), {memory}", domain.id(), args.domain_name);
    Ok(domain)
}

/// Waits for the disk and connects it, with room for `depth` requests in each queue.
pub(crate) fn attach<D: Domain>(
    args: &Args,
    joined: Joined<D>,
    depth: u32,
) -> anyhow::Result<Attached<D>> {
    let Joined { domain, stop, machine } = joined;
    let mut config = Config::default();
    config.queues = args.queues;
    config.ring_order = args.ring_page_order;
    config.depth = depth.max(1);
    eprintln!("blkfront: waiting for a disk");
    let number = find::wait(&domain, args.vdev.as_deref(), args.timeout)?;
    let claim = machine.then(|| claim::claim(number)).transpose()?;
    let name = vdev::name(number);
    let disk = HostDisk::open(domain.clone(), &find::directory(number), config)?;
    let info = disk.wait(args.timeout).with_context(|| format!("disk {name}"))?;
    eprintln!(
        "blkfront: {name}: {}, sectors of {} bytes{}",
        Size(info.size),
        info.sector_size,
        if info.read_only { ", read-only" } else { "" }
    );
    Ok(Attached { disk, info, name, domain, stop, _claim: claim })
}
