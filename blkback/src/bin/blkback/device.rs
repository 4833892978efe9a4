//! `blkback --device`: serves one device that a toolstack made, as long as it stands.
//!
//! Ends with success where the device is gone, was refused, or was left in order on SIGTERM; with
//! failure where another try may do better. Whoever watches devices starts this for each.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use blkback::device::{DeviceDesk, Disks, KIND, Keep, Message, Wish};
use blkback::engine::Medium;
use blkback::image::{Image, Options};
use blkback::journal::Journals;
use blkback::policy::acquire::Mapping;
use hypervisor::backend::{Adopted, Ended, Mailbox, Meeting, Serving, Spot, guest, standby};
use hypervisor::daemon::control::{Server, socket};
use hypervisor::daemon::{outcome, program, signals};
use hypervisor::domain::DomainSpec;
use hypervisor::embedded::Place;
use hypervisor::find::{self, Found};
use hypervisor::host::Domain;
use hypervisor::store::Transaction;
use hypervisor::xenbus::{End, State};
use hypervisor::{ConfigError, Error};
use serde_json::json;

use crate::options::{self, Serve};
use crate::{start, stats, takeover};

/// How long the device's former process may take to let go of the image: a guest's old life ends
/// while its next one begins, and libxl waits ten seconds for us.
const PATIENCE: Duration = Duration::from_secs(5);

/// How it ended, where nothing went wrong.
pub(crate) enum Left {
    /// There is nothing left to do at the device.
    Over,
    /// It was left in order for another process to go on with at once.
    HandedOver,
}

pub(crate) fn run(options: &Serve, spot: &Spot) -> Result<Left> {
    let since = program::unserved_since();
    let signals = signals::hold()?;
    let found = find::hypervisor()?;
    let mailbox = Mailbox::new()?;
    signals::pass_on(signals, mailbox.slot())?;
    match found {
        Found::Xen(domain) => {
            let place = Place::standard();
            place.prepare()?;
            let about = (spot, Mapping::Dear, since);
            serve(options, about, &domain, place.folder(), mailbox)
        }
        Found::Embedded(found) => {
            let domain = found.join(&DomainSpec::new(spot.name()))?;
            let about = (spot, Mapping::Cheap, since);
            serve(options, about, &domain, found.place().folder(), mailbox)
        }
    }
}

fn serve<D: Domain>(
    options: &Serve,
    (spot, mapping, since): (&Spot, Mapping, Instant),
    domain: &D,
    folder: &Path,
    mailbox: Mailbox<Message>,
) -> Result<Left> {
    if spot.me != domain.id() {
        let problem =
            format!("belongs to a backend in domain {}, and this is {}", spot.me, domain.id());
        return Err(ConfigError::new("--device", spot, problem).into());
    }
    let store = domain.open_store()?;
    let Some(mut device) = Adopted::find(&store, KIND, spot)? else {
        let problem = "there is no such device; xenstore-ls shows those that there are";
        return Err(ConfigError::new("--device", spot, problem).into());
    };
    if let Ok(control) = domain.open_control_store()
        && let Some(name) = guest::name(&control, spot.front)?
    {
        device.guest.name = name;
    }
    let queues = options.queues.unwrap_or_else(start::usual_queues);
    let offer = start::offer(options, queues);
    let since = takeover::of_a_toolstacks(options, spot, folder)?.unwrap_or(since);
    let read = || Wish::read(&store, &device);
    let opened = match standby::wish(&store, &device, &offer, &mailbox, read) {
        Ok(None) => return Ok(Left::Over),
        Ok(Some(wish)) => open(options, &wish, queues)
            .and_then(|opened| whole(&store, &device, &opened.0).map(|()| (opened, wish))),
        Err(error) => Err(error),
    };
    let ((medium, image), wish) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // A guest that uses the disk already is better off waiting for the next try.
            let seat = device.pair.seat(End::Back);
            if seat.own_state(&store, Transaction::NONE)? == State::Connected {
                return Err(error.into());
            }
            tracing::warn!(device = %spot, guest = %device.guest, "refused: {error}");
            standby::refuse(&store, &device, &error.to_string(), &mailbox)?;
            return Ok(Left::Over);
        }
    };

    let mut policy = start::policy(options, mapping);
    policy.manner = wish.manner;
    policy.manner.keeps_all |= options.no_discard;
    let mut disks = Disks::new(medium, Some(image), &policy);
    let journals = Journals::new(folder, &spot.name());
    if options.no_journal {
        // One of an earlier process would not be true for long.
        journals.remove();
    } else {
        disks = disks.keeping(Keep::new(journals, since));
    }
    let disks = Arc::new(disks);
    let name = wish.image.display().to_string();
    let slot = mailbox.slot();
    let vdev = device.label.clone();
    let wanted = device.guest.name.clone();
    let serving = Serving::adopt(domain, &store, &store, &*disks, (device, offer), mailbox);
    let desk = DeviceDesk {
        disks: Arc::clone(&disks),
        board: serving.board(),
        slot,
        image: name.clone(),
        engine: start::engine_name(options, &disks),
        vdev,
        wanted,
        me: domain.id(),
        successor: true,
    };
    let path = options
        .control
        .clone()
        .unwrap_or_else(|| socket::path_named(start::NAME, folder, &spot.name()));
    let listening = Server::start(&path, desk)?;
    let ready = json!({ "ready": { "image": name, "device": spot.to_string(),
        "control": path.display().to_string() }});
    outcome::say(
        options.json,
        &format!("ready: {name} at {spot}; control socket {}", path.display()),
        &ready,
    );
    let printer = options.stats.then(|| stats::print(&disks, options.json)).transpose()?;
    let ended = serving.run();
    drop(printer);
    drop(listening);
    let ended = ended?;
    if !matches!(ended, Ended::Paused(_) | Ended::HandedOver(_)) {
        disks.forget();
    }
    outcome::say(options.json, &ended.to_string(), &json!({ "ended": ended.to_string() }));
    let handed_over = matches!(ended, Ended::HandedOver(_));
    start::regret(&disks, &name)?;
    Ok(if handed_over { Left::HandedOver } else { Left::Over })
}

/// Refuses a medium that is smaller than the disk is to a guest that uses it already: it is not the one that this
/// guest wrote to, or not all of it.
fn whole<S: Meeting>(store: &S, device: &Adopted, medium: &Medium) -> Result<(), Error> {
    if device.pair.seat(End::Back).own_state(store, Transaction::NONE)? != State::Connected {
        return Ok(());
    }
    let said = device.text(store, "sectors")?.and_then(|text| text.parse::<u64>().ok());
    let (size, wanted) = (medium.geometry().size, said.unwrap_or(0).saturating_mul(512));
    if size >= wanted {
        return Ok(());
    }
    let problem = format!("has {size} bytes, and the guest that uses it has a disk of {wanted}");
    Err(ConfigError::new("image", &device.label, problem).into())
}

/// The image that is wished for.
fn open(options: &Serve, wish: &Wish, queues: u16) -> Result<(Medium, Image), Error> {
    let Some(choice) = options.engine.choice() else {
        let problem = "keeps nothing, and a toolstack's devices have images; use another";
        return Err(ConfigError::new("--engine", options::name(options.engine), problem).into());
    };
    let mut wanted = Options::new(&wish.image);
    wanted.read_only = wish.read_only;
    wanted.sector_size = options.sector_size;
    wanted.direct = options.direct;
    wanted.queues = queues;
    wanted.patience = PATIENCE;
    let image = Image::open(&wanted)?;
    Ok((Medium::Image(Arc::clone(image.media()), choice), image))
}
