//! The one disk of this process.
//!
//! fio's main thread asks for its size once for each job, before the first runs; the jobs then take
//! queues of it, and it is closed when the last of them has been cleaned up.

use std::env;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blkfront::Config;
use blkfront::host::{HostDisk, HostQueue, find};
use hypervisor::domain::DomainSpec;
use hypervisor::embedded::Domain;
use hypervisor::find::Found;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Shared {
    /// Which process became a domain: a fork of it is another.
    process: u32,
    name: String,
    domain: Domain,
    disk: HostDisk<Domain>,
    /// Jobs that were announced and not cleaned up.
    jobs: usize,
}

static SHARED: Mutex<Option<Shared>> = Mutex::new(None);

fn shared() -> MutexGuard<'static, Option<Shared>> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number in an environment variable.
pub(crate) fn setting(name: &str, otherwise: u64) -> Result<u64, Failure> {
    match env::var(name) {
        Ok(value) => value.parse().map_err(|_| format!("{name}={value}: is no number").into()),
        Err(_) => Ok(otherwise),
    }
}

/// A job is going to use the disk called `name`; says how many bytes that has.
pub(crate) fn announce(name: &str) -> Result<u64, Failure> {
    let mut shared = shared();
    let open = match shared.as_mut() {
        Some(open) if open.name == name => open,
        Some(open) => {
            return Err(format!("one disk at a time: {} is in use, not {name}", open.name).into());
        }
        None => shared.insert(open(name)?),
    };
    open.jobs = open.jobs.saturating_add(1);
    let info = open.disk.status().info.ok_or("the disk is not connected")?;
    Ok(info.size)
}

fn open(name: &str) -> Result<Shared, Failure> {
    let found = match hypervisor::find::hypervisor()? {
        Found::Embedded(found) => found,
        Found::Xen(_) => {
            return Err(
                "the engine drives disks of the embedded hypervisor; in a domain on Xen use \
                        `blkfront bench` or `blkfront nbd`, or set DOMKIT_HYPERVISOR=embedded"
                    .into(),
            );
        }
    };
    eprintln!("domkit: {}", found.how);
    let called = env::var("DOMKIT_FIO_DOMAIN").unwrap_or_else(|_| "guest".to_owned());
    let mut spec = DomainSpec::new(called);
    spec.memory_kib = setting("DOMKIT_FIO_MEMORY", 256)?.saturating_mul(1024);
    let domain = found.join(&spec)?;
    let patience = Duration::from_secs(setting("DOMKIT_FIO_TIMEOUT", 30)?);
    let number = find::wait(&domain, Some(name), patience)?;
    let mut config = Config::default();
    config.queues = u32::try_from(setting("DOMKIT_FIO_QUEUES", 4)?.clamp(1, 64))?;
    config.depth = 1024;
    let disk = HostDisk::open(domain.clone(), &find::directory(number), config)?;
    disk.wait(patience)?;
    Ok(Shared { process: std::process::id(), name: name.to_owned(), domain, disk, jobs: 0 })
}

/// A queue of the disk.
pub(crate) fn queue() -> Result<HostQueue<Domain>, Failure> {
    let shared = shared();
    let shared = shared.as_ref().ok_or("no disk was announced")?;
    if shared.process != std::process::id() {
        return Err("jobs must be threads of one process, which is the domain: add thread=1".into());
    }
    let served = shared.disk.status().queues;
    shared.disk.queue().ok_or_else(|| {
        format!(
            "all {served} queues are taken by other jobs: set DOMKIT_FIO_QUEUES, and the backend's \
             --queues, to the number of jobs"
        )
        .into()
    })
}

/// Memory that the backend is lent.
pub(crate) fn arena(
    len: usize,
) -> Result<blkfront::arena::Arena<<Domain as hypervisor::memory::Granting>::Memory>, Failure> {
    let shared = shared();
    let shared = shared.as_ref().ok_or("no disk was announced")?;
    Ok(shared.disk.arena(len.div_ceil(hypervisor::PAGE_SIZE))?)
}

/// The domain, to give such memory back to.
pub(crate) fn domain() -> Option<Domain> {
    shared().as_ref().map(|shared| shared.domain.clone())
}

/// A job was cleaned up. After the last one the disk is closed.
pub(crate) fn leave() {
    let mut guard = shared();
    if let Some(shared) = guard.as_mut() {
        shared.jobs = shared.jobs.saturating_sub(1);
        if shared.jobs == 0 && shared.process == std::process::id() {
            let last = guard.take();
            drop(guard);
            if let Some(last) = last {
                last.disk.close();
            }
        }
    }
}
