//! Standing by at a device that is not served: not yet, or not at all.
//!
//! Whoever made the device waits for an answer at each step, also at that of removing it again; a
//! backend that just went would cost it ten seconds for each.
//!
//! Before: `adopt`, or what is to be served. After: `serve`, or nothing. Trust: nothing is read but our own
//! directory, which the toolstack and its scripts write.

use crate::Error;
use crate::store::Transaction;
use crate::xenbus::{End, Published, Seat, State};

use super::adopt::Adopted;
use super::mailbox::Mailbox;
use super::serve::drain;
use super::{Meeting, Offer, hotplug};

/// What our watch is registered with.
const TOKEN: &str = "backend-standby";

/// Refuses `device` for a reason, and answers the toolstack until the device is gone or there is a
/// message in `mailbox`.
///
/// # Errors
///
/// The store is gone.
pub fn refuse<S, M>(
    store: &S,
    device: &Adopted,
    why: &str,
    mailbox: &Mailbox<M>,
) -> Result<(), Error>
where
    S: Meeting,
{
    let seat = device.pair.seat(End::Back);
    store.watch(&seat.own, TOKEN)?;
    let mut said = false;
    loop {
        let state = seat.own_state(store, Transaction::NONE)?;
        // Made anew: whether that can be served is another question.
        if (said && state == State::Initialising) || is_over(&seat, store, state)? {
            return Ok(());
        }
        let published = match state {
            State::Closing => seat.publish(store, &[], State::Closed)?,
            _ if said => Published::Refused(state),
            _ => device.hotplug.refuse(&seat, store, why)?,
        };
        said = true;
        if matches!(published, Published::Refused(_)) && !wait(store, mailbox)? {
            return Ok(());
        }
    }
}

/// Waits for the script that knows what is to be served at `device`, offering `offer` meanwhile:
/// libxl runs it at InitWait. `read` is asked until it knows as well. `None` where the device is
/// gone or there is a message in `mailbox`.
///
/// # Errors
///
/// What the script came to cannot be served, or the store is gone.
pub fn wish<S, M, W>(
    store: &S,
    device: &Adopted,
    offer: &impl Offer,
    mailbox: &Mailbox<M>,
    read: impl Fn() -> Result<Option<W>, Error>,
) -> Result<Option<W>, Error>
where
    S: Meeting,
{
    let seat = device.pair.seat(End::Back);
    let mut offered = false;
    loop {
        if let Some(wish) = read()? {
            return Ok(Some(wish));
        }
        if !offered {
            store.watch(&seat.own, TOKEN)?;
        }
        match seat.own_state(store, Transaction::NONE)? {
            State::Initialising if !offered => {
                // What became of it is seen on the next round.
                let _ = seat.publish(store, &offer.keys(), State::InitWait)?;
            }
            // Not our business any more: made anew, or taken away.
            State::Initialising | State::Unknown => return Ok(None),
            State::Closing => {
                let _ = seat.publish(store, &[], State::Closed)?;
            }
            state if is_over(&seat, store, state)? => return Ok(None),
            _ => {
                if !wait(store, mailbox)? {
                    return Ok(None);
                }
            }
        }
        offered = true;
    }
}

/// Whether a device in such a state is never to be answered at again.
fn is_over<S: Meeting>(seat: &Seat, store: &S, state: State) -> Result<bool, Error> {
    Ok(match state {
        State::Unknown => true,
        State::Closed => hotplug::own(seat, store, "online")?.as_deref() == Some("0"),
        _ => false,
    })
}

/// Sleeps until something changes; answers whether there is no message.
fn wait<S: Meeting, M>(store: &S, mailbox: &Mailbox<M>) -> Result<bool, Error> {
    mailbox.wait(&[store.as_fd()], None)?;
    drain(store)?;
    Ok(mailbox.take().is_empty())
}
