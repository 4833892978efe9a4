//! A device that a toolstack made: where it is, and whose.
//!
//! Besides the keys that every device has (`frontend`, `frontend-id`, `online`, `state`), libxl writes
//! `script` and, by the kind of device, what is to be served; that is for the kind to read.
//!
//! Before: the store. After: `serve`. Trust: these keys are the toolstack's, and what is wrong
//! with them is a [`ConfigError`] for whoever wrote the guest's configuration; of the frontend
//! nothing is read here. Source: `libxl_device.c`, RELEASE-4.17.

use std::fmt;
use std::str::FromStr;

use crate::store::{Store, StoreError, Transaction};
use crate::xenbus::Pair;
use crate::{ConfigError, DomId, Error};

use super::Kind;
use super::guest::{self, Guest};
use super::hotplug::Hotplug;

/// The longest key that means anything: a path.
const LONGEST: usize = 4096;

/// Where a device is: a backend's directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    /// The backend's domain.
    pub me: DomId,
    /// The kind of backend: `vbd`, `vbd3`, `vif`.
    pub kind: String,
    /// The frontend's domain.
    pub front: DomId,
    /// The device's number.
    pub number: u32,
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { me, kind, front, number } = self;
        write!(f, "/local/domain/{me}/backend/{kind}/{front}/{number}")
    }
}

impl FromStr for Spot {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let parse = || {
            let rest = text.strip_prefix("/local/domain/")?;
            let (me, rest) = rest.split_once("/backend/")?;
            let mut rest = rest.split('/');
            let (kind, front, number) = (rest.next()?, rest.next()?, rest.next()?);
            let known = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric());
            let spot = Self {
                me: DomId::new(me.parse().ok()?)?,
                kind: kind.to_owned(),
                front: DomId::new(front.parse().ok()?)?,
                number: number.parse().ok()?,
            };
            (known && rest.next().is_none() && spot.to_string() == text).then_some(spot)
        };
        parse().ok_or_else(|| {
            let why = "must be a backend's directory, as /local/domain/0/backend/vbd3/5/51712";
            ConfigError::new("--device", text, why)
        })
    }
}

impl Spot {
    /// A short name, for files: `vbd3-5-51712`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{}-{}", self.kind, self.front, self.number)
    }
}

/// A device that a toolstack made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Adopted {
    /// Where it is.
    pub spot: Spot,
    /// Both ends' directories.
    pub pair: Pair,
    /// Who has it.
    pub guest: Guest,
    /// The device's name for the guest.
    pub label: String,
    /// Who prepares it beside us.
    pub hotplug: Hotplug,
}

impl Adopted {
    /// The device at `spot`, one of `kind`; `None` where there is none.
    ///
    /// # Errors
    ///
    /// Its keys do not fit its place, or the store is gone.
    pub fn find<S>(store: &S, kind: &Kind, spot: &Spot) -> Result<Option<Self>, Error>
    where
        S: Store + ?Sized,
    {
        let directory = spot.to_string();
        let Some(front) = text(store, &directory, "frontend")? else { return Ok(None) };
        let home = format!("/local/domain/{}/device/", spot.front);
        if !front.starts_with(&home) {
            let why =
                format!("is no device of domain {}, to whom this backend belongs", spot.front);
            return Err(ConfigError::new(format!("{directory}/frontend"), front, why).into());
        }
        let mut pair = Pair::new(&spot.kind, spot.number, spot.front, spot.me);
        pair.front.directory = front;
        let label = (kind.label)(spot.number)?;
        let script = text(store, &directory, "script")?;
        // A driver domain may not be let read others' names.
        let name = guest::name(store, spot.front)?;
        let name = name.unwrap_or_else(|| format!("domain-{}", spot.front));
        let guest = Guest { id: spot.front, name };
        let ours = |name: &str| (kind.script)(&spot.kind, name);
        let hotplug = Hotplug::by_script(script.as_deref(), ours);
        Ok(Some(Self { spot: spot.clone(), pair, guest, label, hotplug }))
    }

    /// What the toolstack or its scripts wrote at `key`, if they did.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn bytes<S>(&self, store: &S, key: &str) -> Result<Option<Vec<u8>>, Error>
    where
        S: Store + ?Sized,
    {
        bytes(store, &self.pair.back.directory, key)
    }

    /// The same, as text.
    ///
    /// # Errors
    ///
    /// It is none, or longer than anything that means something; or the store is gone.
    pub fn text<S>(&self, store: &S, key: &str) -> Result<Option<String>, Error>
    where
        S: Store + ?Sized,
    {
        text(store, &self.pair.back.directory, key)
    }
}

fn bytes<S>(store: &S, directory: &str, key: &str) -> Result<Option<Vec<u8>>, Error>
where
    S: Store + ?Sized,
{
    match store.read(Transaction::NONE, &format!("{directory}/{key}")) {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn text<S>(store: &S, directory: &str, key: &str) -> Result<Option<String>, Error>
where
    S: Store + ?Sized,
{
    let Some(value) = bytes(store, directory, key)? else { return Ok(None) };
    match String::from_utf8(value) {
        Ok(text) if text.len() <= LONGEST => Ok(Some(text)),
        Ok(_) | Err(_) => {
            let why = "is not text of a sane length";
            Err(ConfigError::new(format!("{directory}/{key}"), "...", why).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_its_directory_and_nothing_else() {
        let text = "/local/domain/0/backend/vbd3/5/51712";
        let spot: Spot = text.parse().unwrap();
        assert_eq!((spot.to_string().as_str(), spot.name().as_str()), (text, "vbd3-5-51712"));
        for wrong in [
            "",
            "backend/vbd3/5/51712",
            "/local/domain/0/backend/vbd3/5",
            "/local/domain/0/backend/vbd3/5/51712/",
            "/local/domain/0/backend/vbd3/5/51712/state",
            "/local/domain/0/backend//5/51712",
            "/local/domain/0/backend/../5/51712",
            "/local/domain/0/backend/vbd3/05/51712",
            "/local/domain/99999/backend/vbd3/5/51712",
        ] {
            assert!(wrong.parse::<Spot>().is_err(), "{wrong}");
        }
    }
}
