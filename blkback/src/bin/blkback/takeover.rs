//! `--takeover`: finds the blkback that serves what we are to serve.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use blkback::control::{Device, Request};
use blkback::journal;
use hypervisor::backend::Spot;
use hypervisor::daemon::control::socket;
use hypervisor::daemon::takeover;
use hypervisor::{DomId, Error};

use crate::ctl;
use crate::options::Serve;
use crate::start::{GUEST, NAME};

/// Who serves it now.
pub(crate) struct Former {
    process: takeover::Former,
    /// The domain that it is.
    pub(crate) domain: Option<DomId>,
}

impl Former {
    /// Has it hand over; says since when nobody serves.
    pub(crate) fn hand_over(self) -> Result<Instant, Error> {
        self.process.hand_over(&request())
    }
}

fn request() -> Request {
    Request::Handover { formats: Some(vec![journal::VERSION]) }
}

/// Who serves the disk that we are to make, if we are to take it over and somebody does.
pub(crate) fn of_ours(options: &Serve) -> Result<Option<Former>> {
    let Some(image) = options.image.as_ref().filter(|_| options.takeover) else {
        return Ok(None);
    };
    // What cannot be opened is found out before anything stops.
    let mut how = File::options();
    how.read(true).write(!options.readonly && !options.cdrom);
    how.open(image).with_context(|| format!("image '{}'", image.display()))?;
    let mut found = match &options.control {
        Some(path) => ctl::answering(path).into_iter().collect(),
        None => ctl::all()?,
    };
    let full = std::fs::canonicalize(image)?;
    let vdev = options.vdev.to_string();
    let wanted = options.domain.as_ref().map_or_else(|| GUEST.to_owned(), ToString::to_string);
    found.retain(|(_, device): &(_, Device)| {
        let guest =
            device.guest == wanted || device.guest_id.is_some_and(|id| id.to_string() == wanted);
        *device.image == *full && device.vdev == vdev && guest
    });
    let Some((path, device)) = found.pop() else {
        tracing::info!("nobody serves {} as {vdev} for {wanted}; beginning", image.display());
        return Ok(None);
    };
    if !found.is_empty() {
        bail!("several blkbacks serve '{}' as {vdev}; choose one by --control", image.display());
    }
    Ok(at(&path).map(|process| Former { process, domain: DomId::new(device.domain) }))
}

/// Has whoever serves the device at `spot`, if we are to take it over and somebody does, hand it over.
pub(crate) fn of_a_toolstacks(
    options: &Serve,
    spot: &Spot,
    folder: &Path,
) -> Result<Option<Instant>, Error> {
    let path = match &options.control {
        Some(path) => path.clone(),
        None => socket::path_named(NAME, folder, &spot.name()),
    };
    match at(&path).filter(|_| options.takeover) {
        Some(process) => process.hand_over(&request()).map(Some),
        None => Ok(None),
    }
}

fn at(path: &Path) -> Option<takeover::Former> {
    takeover::Former::at(NAME, path)
}
