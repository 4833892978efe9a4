//! Ending when asked: the first SIGTERM or SIGINT lets the guest finish, the next one does not wait.

use std::thread;

use anyhow::{Context as _, Result};
use blkback::device::Message;
use blkback::device::mailbox::Slot;
use nix::sys::signal::{SigSet, Signal};

/// The signals, held back from every thread that is started from now on.
pub(crate) fn hold() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("hold signals back")?;
    Ok(signals)
}

/// Passes them on as messages. The thread ends with the process.
pub(crate) fn pass_on(signals: SigSet, slot: Slot<Message>) -> Result<()> {
    let wait = move || {
        let mut force = false;
        while let Ok(signal) = signals.wait() {
            tracing::info!(%signal, "asked to end");
            if slot.put(Message::Leave { force, reply: None }).is_err() {
                // Nobody listens any more: the end is near already.
                return;
            }
            force = true;
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("wait for signals")?;
    Ok(())
}
