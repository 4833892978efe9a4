//! `blkback`: from the command line to the loop, and back.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use blkback::connect::xenbus::Offer;
use blkback::device::desk::{name_of, nonzero};
use blkback::device::{DeviceDesk, Disks, Keep, Policy, order};
use blkback::engine::Medium;
use blkback::engine::memory::Disk;
use blkback::image::{Geometry, Image, Options};
use blkback::policy::acquire::Mapping;
use hypervisor::backend::{Ended, Plan, Serving, Wanted};
use hypervisor::daemon::control::{Server, socket};
use hypervisor::daemon::{outcome, signals};
use hypervisor::domain::DomainSpec;
use hypervisor::embedded::{self, Place};
use hypervisor::find::{self, Embedded, Found, Kind};
use hypervisor::host::Domain;
use hypervisor::{ConfigError, Error, size};
use nix::sys::signal::SigSet;
use ring::Waiting;
use serde_json::json;

use crate::options::{self, EngineName, Serve};
use crate::takeover::{self, Former};
use crate::{stats, watch};

/// Our name, and our domain's where nobody else has it.
pub(crate) const NAME: &str = "blkback";
/// How long the process that is taken over from may take to let go of the image, once it has said that it does.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most queues that are offered where nothing was said.
const QUEUES: usize = 4;
/// What the daemon itself needs, in KiB: nothing is granted from it.
const MEMORY_KIB: u64 = 64 * 1024;
/// The size of a disk without an image where nothing was said.
const SIZE: u64 = 1 << 30;

/// The guest that is served on the embedded hypervisor where nothing was said.
pub(crate) const GUEST: &str = "guest";

pub(crate) fn run(options: &Serve) -> Result<()> {
    if options.domain.is_none()
        && let Some(image) = &options.image
        && find::kind()? == Kind::Xen
    {
        return watch::run(options, Some(image));
    }
    // Before any thread is there, so that all of them leave signals to one.
    let signals = signals::hold()?;
    let queues = options.queues.unwrap_or_else(usual_queues);
    let former = takeover::of_ours(options)?;
    let opened = match &former {
        // It holds what we are to open.
        Some(_) => None,
        None => Some(open(options, queues, Duration::ZERO)?),
    };
    let found = find::hypervisor()?;
    outcome::say(options.json, &found.how(), &json!({ "hypervisor": found.how() }));
    // On Xen, the kernel's own backend takes every device of kind vbd where it is loaded.
    let kind = if matches!(found, Found::Xen(_)) { "vbd3" } else { "vbd" };
    let mapping = if matches!(found, Found::Xen(_)) { Mapping::Dear } else { Mapping::Cheap };
    let ground = Ground { signals, queues, opened, former, kind, mapping };
    match found {
        Found::Xen(domain) => serve(options, ground, &domain, &Place::standard(), true),
        Found::Embedded(found) => {
            let memory = options.engine == EngineName::Memory;
            let opened = ground.opened.as_ref().filter(|_| memory);
            let kept = opened.map_or(0, |(medium, _)| medium.geometry().size);
            let domain = match ground.former.as_ref().and_then(|former| former.domain) {
                Some(domain) => found.enter(domain)?,
                None => join(&found, kept)?,
            };
            // Else it ends with this process, and with it all that its guests have of it.
            let lasts = ground.former.is_some() || find::named_domain()?.is_some();
            serve(options, ground, &domain, found.place(), lasts)
        }
    }
}

/// What there is before there is a domain.
struct Ground {
    signals: SigSet,
    queues: u16,
    opened: Option<Opened>,
    /// Who serves it now, where that is to be taken over.
    former: Option<Former>,
    /// The kind of backend in the device's path.
    kind: &'static str,
    mapping: Mapping,
}

/// Serves as `domain`; control sockets are at `place`.
/// The domain `lasts` where it is there when this process was killed.
fn serve<D: Domain>(
    options: &Serve,
    ground: Ground,
    domain: &D,
    place: &Place,
    lasts: bool,
) -> Result<()> {
    let Ground { signals, queues, opened, former, kind, mapping } = ground;
    let control = domain.open_control_store()?;
    let wanted = options.domain.clone().unwrap_or_else(|| Wanted::Name(GUEST.to_owned()));
    if let Wanted::Id(_) = wanted {
        wanted.demand(&control)?;
    }

    let store = domain.open_store()?;
    let since = match former {
        Some(former) => former.hand_over()?,
        None => Instant::now(),
    };
    let (medium, image) = match opened {
        Some(opened) => opened,
        None => open(options, queues, PATIENCE)?,
    };
    let policy = policy(options, mapping);
    let mut disks = Disks::new(medium, image, &policy);
    if options.journal || (lasts && !options.no_journal) {
        place.prepare()?;
        disks = disks.keeping(Keep::own(place.folder(), kind, since));
    }
    let disks = Arc::new(disks);
    let plan = Plan {
        me: domain.id(),
        wanted: wanted.clone(),
        order: order::disk(
            kind,
            options.vdev,
            &name(options, &disks),
            options.readonly || options.cdrom,
            policy.manner,
        ),
        offer: offer(options, queues),
    };
    let serving = Serving::new(domain, &store, &control, &*disks, plan)?;
    let desk = DeviceDesk {
        disks: Arc::clone(&disks),
        board: serving.board(),
        slot: serving.slot(),
        image: name(options, &disks),
        engine: engine_name(options, &disks),
        vdev: options.vdev.to_string(),
        wanted: wanted.to_string(),
        me: domain.id(),
        successor: false,
    };
    let path = match &options.control {
        Some(path) => path.clone(),
        None => {
            place.prepare()?;
            let served = Path::new(&desk.image).file_stem().unwrap_or_default();
            socket::path_for(NAME, place.folder(), &served.to_string_lossy())
        }
    };
    let listening = Server::start(&path, desk)?;
    signals::pass_on(signals, serving.slot())?;
    ready(options, &disks, &wanted, listening.path());
    let printer = options.stats.then(|| stats::print(&disks, options.json)).transpose()?;

    let ended = serving.run();
    drop(printer);
    drop(listening);
    let ended = ended?;
    if !matches!(ended, Ended::HandedOver(_)) {
        disks.forget();
    }
    outcome::say(options.json, &ended.to_string(), &json!({ "ended": ended.to_string() }));
    regret(&disks, &name(options, &disks))
}

/// A medium, and the image where it is one.
pub(crate) type Opened = (Medium, Option<Image>);

/// Opens what is to be served. Another blkback that has it may take `patience` to let go of it.
pub(crate) fn open(options: &Serve, queues: u16, patience: Duration) -> Result<Opened> {
    let sector_size = options.sector_size.unwrap_or(512);
    let Some(choice) = options.engine.choice() else {
        if let Some(image) = &options.image {
            let problem = "this engine keeps nothing in an image; leave --image out, or choose \
                           another --engine";
            return Err(ConfigError::new("--image", image.display(), problem).into());
        }
        // Its checks are the same for a disk that keeps nothing.
        let disk = Disk::new(options.size.unwrap_or(SIZE), sector_size)?;
        return Ok(match options.engine {
            EngineName::Null => {
                let mut geometry = Geometry::new(disk.geometry().size, sector_size);
                geometry.read_only = options.readonly;
                (Medium::Null(geometry), None)
            }
            _ => (Medium::Memory(Arc::new(disk)), None),
        });
    };
    let Some(path) = &options.image else {
        bail!("there is nothing to serve: name an image, as in --image disk.img");
    };
    let mut wanted = Options::new(path);
    wanted.size = options.size;
    wanted.read_only = options.readonly || options.cdrom;
    wanted.sector_size = options.sector_size;
    wanted.direct = options.direct;
    wanted.queues = queues;
    wanted.patience = patience;
    let image = Image::open(&wanted)?;
    Ok((Medium::Image(Arc::clone(image.media()), choice), Some(image)))
}

/// Becomes a domain that keeps `kept` bytes beside what the daemon itself needs.
pub(crate) fn join(found: &Embedded, kept: u64) -> Result<embedded::Domain, Error> {
    let mut spec = DomainSpec::new(NAME);
    spec.memory_kib = MEMORY_KIB.saturating_add(kept / 1024);
    found.join_beside(&spec)
}

/// What a frontend may choose from.
pub(crate) fn offer(options: &Serve, queues: u16) -> Offer {
    Offer { queues: queues.into(), ring_page_order: options.ring_page_order, persistent: true }
}

/// How a disk is served, as the command line and the platform have it.
pub(crate) fn policy(options: &Serve, mapping: Mapping) -> Policy {
    let mut policy = Policy::default();
    policy.mapping = mapping;
    policy.iops = nonzero(options.limit_iops);
    policy.bytes = nonzero(options.limit_bytes);
    policy.waiting = match (options.poll, options.no_poll) {
        (true, _) => Waiting::Spin,
        (_, true) => Waiting::Sleep,
        _ => Waiting::default(),
    };
    policy.reach = options.reach.reach();
    policy.on_error = options.on_error.policy();
    policy.manner.cdrom = options.cdrom;
    policy.manner.removable = options.removable || options.cdrom;
    policy.manner.keeps_all = options.no_discard;
    policy
}

/// Queues to offer where nothing was said.
pub(crate) fn usual_queues() -> u16 {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(processors.min(QUEUES)).unwrap_or(1)
}

/// The image's full path, or what stands for it.
pub(crate) fn name(options: &Serve, disks: &Disks) -> String {
    match &options.image {
        Some(path) => {
            let full = std::fs::canonicalize(path);
            full.unwrap_or_else(|_| path.clone()).display().to_string()
        }
        None => name_of(disks.medium()).to_owned(),
    }
}

/// What is to carry requests, until that is known.
pub(crate) fn engine_name(options: &Serve, disks: &Disks) -> String {
    match options.engine.choice() {
        Some(_) => options::name(options.engine),
        None => name_of(disks.medium()).to_owned(),
    }
}

fn ready(options: &Serve, disks: &Disks, wanted: &Wanted, control: &Path) {
    let geometry = disks.medium().geometry();
    let image = name(options, disks);
    let how = match (geometry.read_only, geometry.direct) {
        (true, true) => ", read-only, direct",
        (true, false) => ", read-only",
        (false, true) => ", direct",
        (false, false) => "",
    };
    let line = format!(
        "ready: {image} ({}{how}) as {} for domain {}; control socket {}",
        size::show(geometry.size),
        options.vdev,
        wanted,
        control.display()
    );
    let object = json!({ "ready": {
        "image": image, "size": geometry.size, "sector_size": geometry.sector_size,
        "read_only": geometry.read_only, "direct": geometry.direct,
        "vdev": options.vdev.to_string(), "domain": wanted.to_string(),
        "control": control.display().to_string(),
    }});
    outcome::ready(options.json, &line, &object);
}

/// What is bad news at the end, if anything is.
pub(crate) fn regret(disks: &Disks, image: &str) -> Result<()> {
    let Some(errno) = disks.lost() else { return Ok(()) };
    let why = std::io::Error::from_raw_os_error(errno);
    bail!("{image}: a flush failed ({why}): what was written may be lost")
}
