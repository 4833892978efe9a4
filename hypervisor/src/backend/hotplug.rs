//! What is said about a device beside its state, among toolstack, hotplug script and backend.
//!
//! libxl makes a device, waits ten seconds for the backend's InitWait, and then runs the script that
//! `script` names, if the kind of device has one. A script says in `hotplug-status` how it went:
//! `connected`, or `error` with words in `hotplug-error`, which libxl shows. A device whose script is
//! not done is not connected: the script may still refuse it.
//!
//! With a script of ours (for disks, `block-domkit`) it is the other way about: the backend, who opened
//! what is to be served, says how it went, and the script passes it on. Ours may stand under another name: for a
//! disk of type `vbd3` whose configuration names no script, libxl from 4.19 on runs `block-tap`.
//!
//! ```text
//!   stock script      backend: InitWait ... script: hotplug-status ... backend: Connected
//!   script of ours    backend: InitWait and hotplug-status, at once ... script: its exit status
//! ```
//!
//! Source: `libxl_device.c` (`device_hotplug`), `xen-hotplug-common.sh`, RELEASE-4.17; no header has
//! these keys. Trust: they stand in our own directory, which only the toolstack and we write.

use crate::Error;
use crate::backend::Key;
use crate::store::{Store, StoreError, Transaction, Transactions, transact};
use crate::xenbus::{Published, Seat, State};

/// Says that the rings were left in order by a backend that ended.
const PAUSED: &str = "domkit-paused";
/// What was changed while the device was in use.
const CHANGED: &str = "domkit-changed";

/// Who prepares a device beside the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hotplug {
    /// Nobody.
    None,
    /// Our script, which waits for what we say.
    Ours,
    /// Somebody else's script, for which we wait.
    Foreign,
}

impl Hotplug {
    /// Which it is, by the device's `script`; `ours` says of a script's name whether it is our own.
    #[must_use]
    pub fn by_script(script: Option<&str>, ours: impl FnOnce(&str) -> bool) -> Self {
        match script.map(|path| path.rsplit('/').next().unwrap_or(path)) {
            None | Some("") => Self::None,
            Some(name) if ours(name) => Self::Ours,
            Some(_) => Self::Foreign,
        }
    }

    /// Whether a script's `status` is yet to come.
    #[must_use]
    pub fn is_awaited(status: &Option<String>) -> bool {
        status.as_deref().is_none_or(|status| status != "connected")
    }

    /// The keys that say to others that there is what is to be served.
    #[must_use]
    pub fn accepted(self) -> Vec<Key> {
        match self {
            Self::Ours => vec![("hotplug-status", "connected".to_owned())],
            Self::None | Self::Foreign => Vec::new(),
        }
    }

    /// Whether a frontend may be connected as far as scripts are concerned.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn is_done<S: Store + ?Sized>(self, seat: &Seat, store: &S) -> Result<bool, Error> {
        match self {
            Self::None | Self::Ours => Ok(true),
            Self::Foreign => {
                Ok(own(seat, store, "hotplug-status")?.as_deref() == Some("connected"))
            }
        }
    }

    /// Says that the device cannot be served and `why`, so that the toolstack gives up.
    ///
    /// libxl runs a script at InitWait only, so that is where ours finds the reason and fails at
    /// once. With no script, or one that knows nothing of us, InitWait would pass for success:
    /// Closed it is, and libxl gives up after its ten seconds.
    ///
    /// # Errors
    ///
    /// The store refuses or is gone.
    pub fn refuse<S>(self, seat: &Seat, store: &S, why: &str) -> Result<Published, Error>
    where
        S: Transactions + ?Sized,
    {
        let keys = [
            ("hotplug-error", why.to_owned()),
            ("hotplug-status", "error".to_owned()),
            ("error", why.to_owned()),
        ];
        let next = if self == Self::Ours { State::InitWait } else { State::Closed };
        Ok(seat.publish(store, &keys, next)?)
    }
}

/// A key of our own directory, as text.
///
/// # Errors
///
/// The store is gone.
pub fn own<S: Store + ?Sized>(seat: &Seat, store: &S, key: &str) -> Result<Option<String>, Error> {
    match store.read(Transaction::NONE, &format!("{}/{key}", seat.own)) {
        Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Leaves word that everything taken from the rings was answered. Nothing is said where the device
/// is not in use any more: its frontend expects nothing.
///
/// # Errors
///
/// The store refuses or is gone.
pub fn leave_paused<S: Transactions + ?Sized>(seat: &Seat, store: &S) -> Result<(), Error> {
    transact(store, |within| {
        if matches!(seat.own_state(store, within)?, State::Connected | State::Reconfigured) {
            store.write(within, &format!("{}/{PAUSED}", seat.own), b"1")?;
        }
        Ok::<(), StoreError>(())
    })?;
    Ok(())
}

/// Leaves word of what was `changed` while the device is in use. Nothing is said where it is not there any more.
///
/// # Errors
///
/// The store refuses or is gone.
pub fn leave_changed<S>(seat: &Seat, store: &S, changed: &str) -> Result<(), Error>
where
    S: Transactions + ?Sized,
{
    transact(store, |within| {
        if seat.own_state(store, within)? != State::Unknown {
            store.write(within, &format!("{}/{CHANGED}", seat.own), changed.as_bytes())?;
        }
        Ok::<(), StoreError>(())
    })?;
    Ok(())
}

/// The word that was left of it.
///
/// # Errors
///
/// The store is gone.
pub fn changed<S: Store + ?Sized>(seat: &Seat, store: &S) -> Result<Option<String>, Error> {
    own(seat, store, CHANGED)
}

/// Whether word of a pause was left; it holds once.
///
/// # Errors
///
/// The store refuses or is gone.
pub fn take_up<S: Transactions + ?Sized>(seat: &Seat, store: &S) -> Result<bool, Error> {
    let left = own(seat, store, PAUSED)?.is_some();
    if left {
        store.remove(Transaction::NONE, &format!("{}/{PAUSED}", seat.own))?;
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::Hotplug;

    #[test]
    fn scripts_are_known_by_their_names() {
        for (script, is) in [
            (None, Hotplug::None),
            (Some(""), Hotplug::None),
            (Some("block-domkit"), Hotplug::Ours),
            (Some("/etc/xen/scripts/block-domkit"), Hotplug::Ours),
            (Some("/etc/xen/scripts/block"), Hotplug::Foreign),
            (Some("/etc/xen/block-domkit/other"), Hotplug::Foreign),
        ] {
            assert_eq!(Hotplug::by_script(script, |name| name == "block-domkit"), is, "{script:?}");
        }
    }
}
