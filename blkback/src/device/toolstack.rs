//! Making and removing the device's directories, as a toolstack does.
//!
//! That needs the control domain's rights in the store, as `xl` has them: the daemon does it over a
//! connection that has them. Toolstacks know nothing of such a device, and nobody but us removes it.

use hypervisor::store::{Store, StoreError, Transaction, Transactions};
use hypervisor::xenbus::{Keys, Pair, State};
use hypervisor::{ConfigError, DomId, Error};

use crate::device::guest::{Guest, lives};
use crate::device::queues::Manner;
use crate::vdev::Vdev;

/// Marks the directory of a device that its backend made itself: who watches for others' devices
/// leaves it alone.
pub const OWN: &str = "domkit-own";
/// What a disk is to its frontend, whatever its backend is.
const FRONTEND: &str = "vbd";
/// The longest path of a backend's directory.
const LONGEST_PATH: usize = 512;

/// What is written for a device beside what every device has.
#[derive(Clone, Debug)]
pub struct Order {
    /// The kind of backend in the device's path: `vbd`, or `vbd3` where `vbd` is the kernel's.
    pub kind: &'static str,
    /// The disk's place in the guest.
    pub vdev: Vdev,
    /// The image's path.
    pub params: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What the disk is to look like.
    pub manner: Manner,
}

/// Makes the device for `guest`, served by `me`. A device there whose backend died is taken over:
/// its frontend finds it as new.
///
/// # Errors
///
/// Another backend serves it, or the store refuses or is gone.
pub fn make<S>(store: &S, me: DomId, guest: &Guest, order: &Order) -> Result<Pair, Error>
where
    S: Transactions + ?Sized,
{
    let number = order.vdev.number();
    let pair = Pair::with_backend(FRONTEND, order.kind, number, guest.id, me);
    if let Some(other) = other_backend(store, &pair)? {
        let problem = format!(
            "domain {other} serves a disk of that name to {guest} already; choose another name"
        );
        return Err(ConfigError::new("--vdev", order.vdev, problem).into());
    }
    let device = if order.manner.cdrom { "cdrom" } else { "disk" };
    let front = [
        ("virtual-device", number.to_string()),
        ("device-type", device.to_owned()),
        ("handle", number.to_string()),
    ];
    let back = [
        ("params", order.params.clone()),
        ("mode", if order.read_only { "r" } else { "w" }.to_owned()),
        ("type", "file".to_owned()),
        ("dev", order.vdev.to_string()),
        ("device-type", device.to_owned()),
        ("removable", u8::from(order.manner.removable).to_string()),
        ("bootable", "1".to_owned()),
        (OWN, "1".to_owned()),
    ];
    pair.create(store, &front, &back)?;
    Ok(pair)
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

/// Whether the toolstack's directory for our end still is there.
///
/// # Errors
///
/// The store is gone.
pub fn stands<S: Store + ?Sized>(store: &S, pair: &Pair) -> Result<bool, Error> {
    match store.read(Transaction::NONE, &pair.back.directory) {
        Ok(_) => Ok(true),
        Err(StoreError::Missing(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
