//! Which devices stand that are ours to serve.
//!
//! Devices of kind `vbd` belong to the kernel's xen-blkback where that is loaded, which takes each
//! as soon as it appears. There, only those are ours that the script `block-domkit` has taken from
//! it: the script says so by `physical-device-path`, and the kernel has no driver at the device.
//!
//! Source: `libxl_disk.c` for the keys, RELEASE-4.17; `sysfs-bus-xen-backend` of the kernel's ABI
//! documentation for the paths under `/sys/bus/xen-backend`.

use std::path::{Path, PathBuf};

use hypervisor::backend::toolstack::OWN;
use hypervisor::backend::{Adopted, Hotplug, Spot};
use hypervisor::store::{Store, StoreError, Transaction};
use hypervisor::xenbus::State;
use hypervisor::{DomId, Error};

use crate::device::{KIND, Wish};

/// The most devices of one kind that are looked for: what is beyond cannot be a machine's.
const MOST: usize = 1 << 16;

/// Devices of one kind that are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// `vbd`, `vbd3`.
    pub kind: String,
    /// Only those whose script is `block-domkit`.
    pub ours_only: bool,
}

/// Whose devices, which, and who else might take them.
#[derive(Clone, Debug)]
pub struct Devices {
    /// The backend's domain.
    pub me: DomId,
    /// By kind.
    pub claims: Vec<Claim>,
    /// Only those that are configured for this image, by its full path.
    pub image: Option<PathBuf>,
    /// The root of the system in which the kernel's own backend could be, if one could.
    pub kernel: Option<PathBuf>,
}

/// A device that is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Where it is.
    pub spot: Spot,
    /// Whether nobody has answered at it yet.
    pub fresh: bool,
}

/// Whether the kernel's backend is loaded in the system at `root`.
#[must_use]
pub fn kernel_serves(root: &Path) -> bool {
    root.join("sys/module/xen_blkback").exists()
}

impl Devices {
    /// The directories to watch.
    pub fn directories(&self) -> impl Iterator<Item = String> + '_ {
        self.claims.iter().map(|claim| self.directory(claim))
    }

    fn directory(&self, claim: &Claim) -> String {
        format!("/local/domain/{}/backend/{}", self.me, claim.kind)
    }

    /// All devices that are to be served now. Those that are `served` already are not asked anything
    /// but whether they stand.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn standing<S: Store + ?Sized>(
        &self,
        store: &S,
        served: impl Fn(&Spot) -> bool,
    ) -> Result<Vec<Standing>, Error> {
        let mut all = Vec::new();
        for claim in &self.claims {
            let top = self.directory(claim);
            for front in list(store, &top)? {
                let Some(domain) = front.parse().ok().and_then(DomId::new) else { continue };
                for number in list(store, &format!("{top}/{front}"))? {
                    let Ok(number) = number.parse() else { continue };
                    let kind = claim.kind.clone();
                    let spot = Spot { me: self.me, kind, front: domain, number };
                    let wanted = served(&spot) || self.is_ours(store, claim, &spot)?;
                    if wanted && let Some(fresh) = stands(store, &spot)? {
                        all.push(Standing { spot, fresh });
                    }
                    if all.len() >= MOST {
                        return Ok(all);
                    }
                }
            }
        }
        Ok(all)
    }

    fn is_ours<S>(&self, store: &S, claim: &Claim, spot: &Spot) -> Result<bool, Error>
    where
        S: Store + ?Sized,
    {
        if has(store, &format!("{spot}/{OWN}"))? {
            return Ok(false);
        }
        let device = match Adopted::find(store, KIND, spot) {
            Ok(Some(device)) => device,
            Ok(None) => return Ok(false),
            // That is for its own process to say.
            Err(Error::Config(_)) => return Ok(self.image.is_none() && !claim.ours_only),
            Err(error) => return Err(error),
        };
        let kernel =
            self.kernel.as_deref().filter(|root| spot.kind == "vbd" && kernel_serves(root));
        if (claim.ours_only || kernel.is_some()) && device.hotplug != Hotplug::Ours {
            return Ok(false);
        }
        if let Some(root) = kernel {
            let drivers = root.join("sys/bus/xen-backend/drivers/vbd");
            let held = drivers.join(format!("vbd-{}-{}", spot.front, spot.number)).exists();
            if held || !has(store, &format!("{spot}/physical-device-path"))? {
                return Ok(false);
            }
        }
        let Some(image) = &self.image else { return Ok(true) };
        match Wish::read(store, &device) {
            Ok(Some(wish)) => {
                Ok(std::fs::canonicalize(&wish.image).is_ok_and(|full| full == *image))
            }
            Ok(None) | Err(Error::Config(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether a device is there to be served, and if so, whether it is new.
fn stands<S: Store + ?Sized>(store: &S, spot: &Spot) -> Result<Option<bool>, Error> {
    let read = |key: &str| match store.read(Transaction::NONE, &format!("{spot}/{key}")) {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    };
    let state = read("state")?.map_or(State::Unknown, |value| State::parse(&value));
    Ok(match state {
        State::Unknown => None,
        State::Closed if read("online")?.as_deref() == Some(b"0") => None,
        state => Some(state == State::Initialising),
    })
}

fn has<S: Store + ?Sized>(store: &S, path: &str) -> Result<bool, Error> {
    match store.read(Transaction::NONE, path) {
        Ok(_) => Ok(true),
        Err(StoreError::Missing(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn list<S: Store + ?Sized>(store: &S, path: &str) -> Result<Vec<String>, Error> {
    match store.list(Transaction::NONE, path) {
        Ok(names) => Ok(names),
        Err(StoreError::Missing(_)) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}
