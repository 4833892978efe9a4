//! A device's two directories: where they are, and what a toolstack does with them.
//!
//! Making both is one transaction, so that neither driver ever finds half a device. Removing goes
//! by asking first: `online` 0 and state Closing at the backend; both directories vanish when both
//! ends are Closed or gone, since pages are shared until then. By force, they vanish at once.
//!
//! Each directory belongs to its end, and the other end may read it and nothing else.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::DomId;
use crate::store::{Permission, Store, StoreError, Transaction, Transactions, transact};
use crate::xenbus::{End, Seat, State, keys};

/// One end's address: a domain and its directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Side {
    /// Whose end it is.
    pub domain: DomId,
    /// Its directory.
    pub directory: String,
}

/// Both ends of a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Pair {
    /// The end that uses the device.
    pub front: Side,
    /// The end that serves it.
    pub back: Side,
}

/// What became of a device that was asked to leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a device that is still in use must not be removed yet"]
pub enum Removed {
    /// Both ends are down and their directories are gone.
    Done,
    /// This end still is in use.
    Waiting(End),
}

impl Pair {
    /// Device `number` of `kind` (`vbd`, `vif`), used by `front` and served by `back`.
    #[must_use]
    pub fn new(kind: &str, number: u32, front: DomId, back: DomId) -> Self {
        Self::with_backend(kind, kind, number, front, back)
    }

    /// As [`new`](Self::new), served by a backend of another kind: for a frontend, all disks are
    /// `vbd`, while its backend may be `vbd3` or `qdisk`.
    #[must_use]
    pub fn with_backend(kind: &str, backend: &str, number: u32, front: DomId, back: DomId) -> Self {
        Self {
            front: Side {
                domain: front,
                directory: format!("/local/domain/{front}/device/{kind}/{number}"),
            },
            back: Side {
                domain: back,
                directory: format!("/local/domain/{back}/backend/{backend}/{front}/{number}"),
            },
        }
    }

    /// The place of one of its ends.
    #[must_use]
    pub fn seat(&self, end: End) -> Seat {
        let (own, other) = match end {
            End::Front => (&self.front, &self.back),
            End::Back => (&self.back, &self.front),
        };
        Seat::new(end, own.directory.clone(), other.directory.clone(), other.domain)
    }

    /// Makes both directories, with `front` and `back` as further keys of theirs and both ends
    /// Initialising. What was there of either is replaced: a frontend whose backend died is so
    /// told to begin anew.
    ///
    /// # Errors
    ///
    /// The store refuses or is gone.
    pub fn create<S: Transactions + ?Sized>(
        &self,
        store: &S,
        front: &[(&str, String)],
        back: &[(&str, String)],
    ) -> Result<(), StoreError> {
        let initialising = || State::Initialising.number().to_string();
        let mut front_keys: Vec<(&str, String)> = alloc::vec![
            ("backend", self.back.directory.clone()),
            ("backend-id", self.back.domain.to_string()),
        ];
        front_keys.extend_from_slice(front);
        front_keys.push(("state", initialising()));
        let mut back_keys: Vec<(&str, String)> = alloc::vec![
            ("frontend", self.front.directory.clone()),
            ("frontend-id", self.front.domain.to_string()),
            ("online", "1".to_string()),
        ];
        back_keys.extend_from_slice(back);
        back_keys.push(("state", initialising()));
        transact(store, |within| {
            fill(store, within, &self.front, self.back.domain, &front_keys)?;
            fill(store, within, &self.back, self.front.domain, &back_keys)
        })
    }

    /// Asks both ends to let go of the device and not to come back.
    ///
    /// # Errors
    ///
    /// The store refuses or is gone.
    pub fn ask_to_leave<S: Transactions + ?Sized>(&self, store: &S) -> Result<(), StoreError> {
        let seat = self.seat(End::Back);
        transact(store, |within| {
            let state = seat.own_state(store, within)?;
            if state == State::Unknown {
                return Ok(());
            }
            keys::write(store, within, &seat.own, "online", 0)?;
            if state.may_become(End::Back, State::Closing) {
                keys::write(store, within, &seat.own, "state", State::Closing.number())?;
            }
            Ok(())
        })
    }

    /// Removes both directories if both ends are down; at once and whatever they say if `force`.
    ///
    /// A frontend that never got as far as sharing anything, Initialising or InitWait, is down.
    ///
    /// # Errors
    ///
    /// The store refuses or is gone.
    pub fn remove<S: Transactions + ?Sized>(
        &self,
        store: &S,
        force: bool,
    ) -> Result<Removed, StoreError> {
        if !force {
            // Outside the transaction: a frontend that changes its state without end could else
            // keep it from ever ending. Once down, neither end comes back by itself.
            let back = self.seat(End::Back).own_state(store, Transaction::NONE)?;
            if !matches!(back, State::Closed | State::Unknown | State::Initialising) {
                return Ok(Removed::Waiting(End::Back));
            }
            let front = self.seat(End::Front).own_state(store, Transaction::NONE)?;
            if !matches!(
                front,
                State::Closed | State::Unknown | State::Initialising | State::InitWait
            ) {
                return Ok(Removed::Waiting(End::Front));
            }
        }
        transact(store, |within| {
            store.remove(within, &self.front.directory)?;
            store.remove(within, &self.back.directory)?;
            // The directory of the frontend's devices at this backend, if this was the last.
            if let Some((parent, _)) = self.back.directory.rsplit_once('/') {
                match store.list(within, parent) {
                    Ok(children) if children.is_empty() => store.remove(within, parent)?,
                    Ok(_) | Err(StoreError::Missing(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(Removed::Done)
        })
    }
}

/// Makes `side`'s directory anew: its own, and readable by `reader`.
fn fill<S: Store + ?Sized>(
    store: &S,
    within: Transaction,
    side: &Side,
    reader: DomId,
    wanted: &[(&str, String)],
) -> Result<(), StoreError> {
    let permissions = [
        Permission { domain: side.domain, read: false, write: false },
        Permission { domain: reader, read: true, write: false },
    ];
    store.remove(within, &side.directory)?;
    store.write(within, &side.directory, b"")?;
    store.set_permissions(within, &side.directory, &permissions)?;
    for (key, value) in wanted {
        let path = format!("{}/{key}", side.directory);
        store.write(within, &path, value.as_bytes())?;
        store.set_permissions(within, &path, &permissions)?;
    }
    Ok(())
}
