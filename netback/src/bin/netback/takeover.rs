//! `--takeover`: finds the netback that serves what we are to serve.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use hypervisor::backend::Spot;
use hypervisor::daemon::control::socket;
use hypervisor::daemon::takeover;
use hypervisor::{DomId, Error};
use netback::ctl::{Device, Request};

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
        self.process.hand_over(&Request::Handover {})
    }
}

/// Who serves the interface that we are to make, if we are to take it over and somebody does.
pub(crate) fn of_ours(options: &Serve) -> Result<Option<Former>> {
    if !options.takeover {
        return Ok(None);
    }
    let mut found = match &options.control {
        Some(path) => ctl::answering(path).into_iter().collect(),
        None => ctl::all()?,
    };
    let wanted = options.domain.as_ref().map_or_else(|| GUEST.to_owned(), ToString::to_string);
    found.retain(|(_, device): &(_, Device)| {
        let guest =
            device.guest == wanted || device.guest_id.is_some_and(|id| id.to_string() == wanted);
        guest && device.devid == options.devid
    });
    let Some((path, device)) = found.pop() else {
        tracing::info!("nobody serves interface {} of {wanted}; beginning", options.devid);
        return Ok(None);
    };
    if !found.is_empty() {
        bail!(
            "several netbacks serve interface {} of {wanted}; choose one by --control",
            options.devid
        );
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
        Some(process) => process.hand_over(&Request::Handover {}).map(Some),
        None => Ok(None),
    }
}

fn at(path: &Path) -> Option<takeover::Former> {
    takeover::Former::at(NAME, path)
}
