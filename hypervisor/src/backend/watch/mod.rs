//! Serving every device that a toolstack makes: a process of its own for each.
//!
//! ```text
//!   store ──> devices ──────────> keeper ──────> PROGRAM --device .../vbd3/5/51712
//!   (watch)   what stands, and    who serves     PROGRAM --device .../vbd3/7/51712
//!             is ours (Choice)    (Starter)
//! ```
//!
//! What one guest does to its backend ends that one process. A process that fails is said and
//! started again, after a while that grows, as long as its device stands. Everything is looked at
//! anew after each change, and nothing is concluded from how it came to be so: watches coalesce, a
//! watcher that was restarted finds devices in any state, and those that its predecessor's
//! processes still serve stay with them.
//!
//! Before: the store. After: `serve`, in a child. Trust: only our own domain's directories
//! are read, which toolstacks write; a frontend cannot make us start anything.

pub mod devices;
pub mod keeper;

use std::time::Instant;

use crate::Error;

use super::serve::drain;
use super::{Mailbox, Meeting};

pub use devices::{Choice, Claim, Devices};
pub use keeper::{Board, HANDED_OVER, Keeper, Starter};

/// What our watches are registered with.
const TOKEN: &str = "backend-watch";

/// What the watcher is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// One of its processes may have ended.
    Child,
    /// Start no more processes, and end when those that there are have: another watcher takes over from each.
    Yield,
    /// End: the processes finish what is under way and leave their devices in order. Said once
    /// more, do not wait for that.
    Leave,
}

/// Serves `devices` by `keeper`'s processes until told to end.
///
/// # Errors
///
/// The store is gone. The processes see that themselves.
pub fn run<S, T, C>(
    store: &S,
    devices: &Devices<C>,
    keeper: &mut Keeper<T>,
    mailbox: &Mailbox<Event>,
) -> Result<(), Error>
where
    S: Meeting,
    T: Starter,
    C: Choice,
{
    for directory in devices.directories() {
        store.watch(&directory, TOKEN)?;
    }
    let (mut leaving, mut yielding) = (false, false);
    loop {
        keeper.reap(Instant::now());
        if leaving {
            if !keeper.has_children() {
                return Ok(());
            }
        } else {
            let standing = devices.standing(store, |spot| keeper.serves(spot))?;
            keeper.look(&standing, Instant::now());
        }
        let until = if leaving { None } else { keeper.next_look() };
        mailbox.wait(&[store.as_fd()], until)?;
        drain(store)?;
        for event in mailbox.take() {
            match event {
                Event::Leave => {
                    keeper.end(leaving && !yielding);
                    (leaving, yielding) = (true, false);
                }
                Event::Yield => {
                    yielding = !leaving;
                    leaving = true;
                }
                Event::Child => {}
            }
        }
    }
}
