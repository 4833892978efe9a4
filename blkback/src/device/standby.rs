//! Standing by at a device that is not served: not yet, or not at all.
//!
//! Whoever made the device waits for an answer at each step, also at that of removing it again; a
//! backend that just went would cost it ten seconds for each.
//!
//! Before: `adopt`, or the image. After: `serve`, or nothing. Trust: nothing is read but our own
//! directory, which the toolstack and its scripts write.

use std::os::fd::AsFd as _;

use hypervisor::store::Transaction;
use hypervisor::xenbus::{End, Published, Seat, State};
use hypervisor::{Error, HostError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::connect::xenbus::{self, Offer};
use crate::device::adopt::{Adopted, Wish};
use crate::device::hotplug;
use crate::device::mailbox::Mailbox;
use crate::device::serve::{Meeting, drain};

/// What our watch is registered with.
const TOKEN: &str = "blkback-standby";

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
/// libxl runs it at InitWait. `None` where the device is gone or there is a message in `mailbox`.
///
/// # Errors
///
/// What the script came to cannot be served, or the store is gone.
pub fn wish<S, M>(
    store: &S,
    device: &Adopted,
    offer: &Offer,
    mailbox: &Mailbox<M>,
) -> Result<Option<Wish>, Error>
where
    S: Meeting,
{
    let seat = device.pair.seat(End::Back);
    let mut offered = false;
    loop {
        if let Some(wish) = device.wish(store)? {
            return Ok(Some(wish));
        }
        if !offered {
            store.watch(&seat.own, TOKEN)?;
        }
        match seat.own_state(store, Transaction::NONE)? {
            State::Initialising if !offered => {
                // What became of it is seen on the next round.
                let _ = xenbus::offer(&seat, store, offer, &[])?;
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
    let mut waited = [
        PollFd::new(store.as_fd(), PollFlags::POLLIN),
        PollFd::new(mailbox.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut waited, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(HostError::new("wait for the store", errno as i32).into()),
    }
    drain(store)?;
    Ok(mailbox.take().is_empty())
}
