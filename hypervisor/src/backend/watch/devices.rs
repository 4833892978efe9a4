//! Which devices stand that are ours to serve.

use crate::backend::toolstack::OWN;
use crate::backend::{Adopted, Hotplug, Kind, Spot};
use crate::store::{Store, StoreError, Transaction};
use crate::xenbus::State;
use crate::{DomId, Error};

/// The most devices of one kind that are looked for: what is beyond cannot be a machine's.
const MOST: usize = 1 << 16;

/// Devices of one kind that are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The kind of backend: `vbd`, `vbd3`, `vif`.
    pub kind: String,
    /// Only those whose script is our own ([`Hotplug::Ours`]).
    pub ours_only: bool,
}

/// Which of the devices that are claimed are to be served.
pub trait Choice {
    /// Whether `device` is. There is none where what its toolstack wrote makes no sense, which is for
    /// the device's own process to say.
    ///
    /// # Errors
    ///
    /// The store is gone.
    fn takes<S: Store + ?Sized>(&self, store: &S, device: Option<&Adopted>) -> Result<bool, Error>;
}

/// Whose devices, which, and who else might take them.
#[derive(Clone, Debug)]
pub struct Devices<C> {
    /// The backend's domain.
    pub me: DomId,
    /// What they are.
    pub kind: &'static Kind,
    /// By kind of backend.
    pub claims: Vec<Claim>,
    /// And of those.
    pub choice: C,
}

/// A device that is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Where it is.
    pub spot: Spot,
    /// Whether nobody has answered at it yet.
    pub fresh: bool,
}

impl<C: Choice> Devices<C> {
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
        let device = match Adopted::find(store, self.kind, spot) {
            Ok(Some(device)) => Some(device),
            Ok(None) => return Ok(false),
            Err(Error::Config(_)) => None,
            Err(error) => return Err(error),
        };
        let ours = device.as_ref().is_some_and(|device| device.hotplug == Hotplug::Ours);
        if claim.ours_only && !ours {
            return Ok(false);
        }
        self.choice.takes(store, device.as_ref())
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

/// Whether there is such a key.
///
/// # Errors
///
/// The store is gone.
pub fn has<S: Store + ?Sized>(store: &S, path: &str) -> Result<bool, Error> {
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
