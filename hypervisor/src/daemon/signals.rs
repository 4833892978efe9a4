//! Ending when asked: the first SIGTERM or SIGINT lets the guest finish, the next one does not wait.

use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::HostError;
use crate::backend::watch::Event;
use crate::backend::{Message, Slot};

/// The signals that ask for the end, held back from every thread that is started from now on.
///
/// # Errors
///
/// The host refuses.
pub fn hold() -> Result<SigSet, HostError> {
    hold_these(&[Signal::SIGTERM, Signal::SIGINT])
}

/// The same, and the one that tells of a child's end.
///
/// # Errors
///
/// The host refuses.
pub fn hold_with_children() -> Result<SigSet, HostError> {
    hold_these(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD])
}

fn hold_these(which: &[Signal]) -> Result<SigSet, HostError> {
    let mut signals = SigSet::empty();
    for signal in which {
        signals.add(*signal);
    }
    let mut held = signals;
    // A write beyond the largest size that a file may have here (RLIMIT_FSIZE) fails, and is told as such; it is
    // not to end the process.
    held.add(Signal::SIGXFSZ);
    held.thread_block().map_err(|errno| HostError::new("hold signals back", errno as i32))?;
    Ok(signals)
}

/// Passes them on to a device's loop.
///
/// # Errors
///
/// The host has no threads left.
pub fn pass_on<C, A>(signals: SigSet, slot: Slot<Message<C, A>>) -> Result<(), HostError>
where
    C: Send + 'static,
    A: Send + 'static,
{
    let mut force = false;
    listen(signals, move |signal| {
        tracing::info!(%signal, "asked to end");
        let told = slot.put(Message::Leave { force, reply: None }).is_ok();
        force = true;
        told
    })
}

/// Passes them on to a watcher.
///
/// # Errors
///
/// The host has no threads left.
pub fn pass_on_events(signals: SigSet, slot: Slot<Event>) -> Result<(), HostError> {
    listen(signals, move |signal| {
        let event = if signal == Signal::SIGCHLD { Event::Child } else { Event::Leave };
        slot.put(event).is_ok()
    })
}

/// Has each signal told until nobody listens any more. The thread ends with the process.
fn listen(
    signals: SigSet,
    mut tell: impl FnMut(Signal) -> bool + Send + 'static,
) -> Result<(), HostError> {
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            if !tell(signal) {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("signals".into()).spawn(wait);
    thread.map(drop).map_err(|error| HostError::from_io("wait for signals", &error))
}
