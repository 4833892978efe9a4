//! Making and removing the device's directories, as a toolstack does.
//!
//! That needs the control domain's rights in the store, as `xl` has them: the daemon does it over a
//! connection that has them. Toolstacks know nothing of such a device, and nobody but us removes it.

use crate::store::{Store, StoreError, Transaction, Transactions};
use crate::xenbus::{Keys, Pair, State};
use crate::{ConfigError, DomId, Error};

use super::guest::{Guest, lives};
use super::{Key, Kind};

/// Marks the directory of a device that its backend made itself: who watches for others' devices
/// leaves it alone.
pub const OWN: &str = "domkit-own";
/// The longest path of a backend's directory.
const LONGEST_PATH: usize = 512;

/// What is written for a device beside what every device has.
#[derive(Clone, Debug)]
pub struct Order {
    /// The kind of backend in the device's path: `vbd`, or `vbd3` where `vbd` is the kernel's.
    pub backend: &'static str,
    /// The device's number.
    pub number: u32,
    /// Further keys of the frontend's directory.
    pub front: Vec<Key>,
    /// Further keys of the backend's.
    pub back: Vec<Key>,
}

/// Makes the device, one of `kind`, for `guest`, served by `me`. A device there whose backend died is taken
/// over, whoever made it: its frontend finds it as new. So it is where the backend's whole domain is no more, in whose
/// place `me` is then: the frontend's directory says from now on that we are opposite. As long as that domain is
/// there, even if it does nothing any more, the device is its own: two backends must never write to one image.
///
/// # Errors
///
/// Another backend serves it, or the store refuses or is gone.
pub fn make<S>(
    store: &S,
    me: DomId,
    guest: &Guest,
    kind: &Kind,
    order: &Order,
) -> Result<Pair, Error>
where
    S: Transactions + ?Sized,
{
    let pair = Pair::with_backend(kind.frontend, order.backend, order.number, guest.id, me);
    if let Some(other) = other_backend(store, &pair)? {
        let problem = format!(
            "domain {other} serves a {} of that name to {guest} already; choose another name, or, where that \
             domain hangs, destroy it first",
            kind.noun
        );
        return Err(ConfigError::new(kind.option, (kind.label)(order.number)?, problem).into());
    }
    let mut back = order.back.clone();
    back.push((OWN, "1".to_owned()));
    pair.create(store, &order.front, &back)?;
    Ok(pair)
}

/// The device of `order` for `guest`, where `me` made it before, with all that it has now, and both ends are
/// connected.
///
/// # Errors
///
/// The store is gone.
pub fn stands<S>(
    store: &S,
    me: DomId,
    guest: &Guest,
    kind: &Kind,
    order: &Order,
) -> Result<Option<Pair>, Error>
where
    S: Store + ?Sized,
{
    let pair = Pair::with_backend(kind.frontend, order.backend, order.number, guest.id, me);
    let is = |directory: &str, key: &str, value: &str| match store
        .read(Transaction::NONE, &format!("{directory}/{key}"))
    {
        Ok(found) => Ok(found == value.as_bytes()),
        Err(StoreError::Missing(_)) => Ok(false),
        Err(error) => Err(Error::from(error)),
    };
    let (front, back) = (&pair.front.directory, &pair.back.directory);
    let connected = State::Connected.number().to_string();
    let wanted = [
        (back, OWN, "1"),
        (back, "frontend", front.as_str()),
        (front, "backend", back.as_str()),
        (back, "online", "1"),
        (back, "state", connected.as_str()),
        (front, "state", connected.as_str()),
    ];
    let further = order.back.iter().map(|(key, value)| (back, *key, value.as_str()));
    for (directory, key, value) in wanted.into_iter().chain(further) {
        if !is(directory, key, value)? {
            return Ok(None);
        }
    }
    Ok(Some(pair))
}

/// The living domain in which another backend serves this device: perhaps our own, where that is the
/// kernel's or was made by a toolstack.
fn other_backend<S: Store + ?Sized>(store: &S, pair: &Pair) -> Result<Option<DomId>, Error> {
    let front = Keys::new(store, Transaction::NONE, &pair.front.directory, pair.front.domain);
    let named = (
        front.number::<u16>("backend-id", 0..=u16::MAX).ok().flatten().and_then(DomId::new),
        front.text("backend", LONGEST_PATH).ok().flatten(),
    );
    let (Some(id), Some(directory)) = named else { return Ok(None) };
    if directory == pair.back.directory {
        let own = store.read(Transaction::NONE, &format!("{directory}/{OWN}"));
        if own.is_ok() {
            return Ok(None);
        }
    }
    if !lives(store, id)? {
        return Ok(None);
    }
    // The frontend may write what it likes there: only a directory of that domain's counts.
    if !directory.starts_with(&format!("/local/domain/{id}/backend/")) {
        return Ok(None);
    }
    let state = Keys::new(store, Transaction::NONE, &directory, id).state()?;
    Ok(Some(id).filter(|_| !matches!(state, State::Unknown | State::Closed)))
}
