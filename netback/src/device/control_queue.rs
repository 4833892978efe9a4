//! The control queue of a virtual machine's driver, where its monitor leaves that to us.
//!
//! ```text
//!   class 8, command 8, bytes of the command's own | answer 8
//! ```
//!
//! Few commands come, and none is urgent: a thread of its own sleeps until one does. Trust: the driver's every
//! word; a command that makes no sense is refused, and a chain that is none ends the queue. Source: virtio 1.2,
//! 5.1.6.5.

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use hypervisor::backend::Waker;
use hypervisor::event::Channel as _;
use hypervisor::vhost_user::{Bell, Parts};
use hypervisor::{Error, HostError};
use ring::wire::virtio_net::control;

use crate::device::pairs::Pairs;
use crate::port::poll::sleep;
use crate::queue::Control;
use crate::virtqueue::Virtqueue;

/// Bytes of a command that are looked at: the longest that is known has fewer.
const MOST: usize = 64;
/// Commands that are done before anything else is looked at.
const BATCH: usize = 16;

/// Does what commands say.
#[derive(Debug)]
pub(super) struct Commands {
    pairs: Arc<Mutex<Pairs>>,
}

impl Commands {
    pub(super) const fn new(pairs: Arc<Mutex<Pairs>>) -> Self {
        Self { pairs }
    }

    /// Does what `bytes` say; says whether that was done.
    fn done(&self, bytes: &[u8]) -> bool {
        match bytes {
            [control::ANNOUNCE, control::ANNOUNCE_ACK, ..] => true,
            [control::MQ, control::VQ_PAIRS_SET, a, b, ..] => {
                let used = u16::from_le_bytes([*a, *b]);
                let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
                if used == 0 || used > pairs.many() {
                    return false;
                }
                let set = pairs.set_used(Some(used));
                if let Err(error) = &set {
                    tracing::warn!(used, "the machine's pairs of queues are not served: {error}");
                }
                set.is_ok()
            }
            _ => false,
        }
    }
}

/// A control queue that is served.
#[derive(Debug)]
pub(super) struct Handle {
    control: Arc<Control>,
    position: Arc<AtomicU16>,
    thread: JoinHandle<()>,
    broken: Arc<Mutex<Option<Error>>>,
}

impl Handle {
    /// Why it has ended by itself, if it has.
    pub(super) fn failed(&self) -> Option<Error> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends it. Says how many commands are dealt with.
    pub(super) fn end(self) -> u16 {
        self.control.stop();
        // How it ended was told by itself.
        let _ = self.thread.join();
        self.position.load(Ordering::Acquire)
    }
}

/// Serves the queue that `parts` are. `waker` is woken when it ends before it was told to.
///
/// # Errors
///
/// There cannot be a queue like that, or the host cannot.
pub(super) fn spawn(parts: &Parts, commands: Commands, waker: Waker) -> Result<Handle, Error> {
    let control = Control::new()?;
    let position = Arc::new(AtomicU16::new(parts.taken));
    let queue = Virtqueue::attach(parts, Arc::clone(&position))?;
    let (bell, line) = (parts.bell.clone(), Arc::clone(&control));
    let broken = Arc::new(Mutex::new(None));
    let first = Arc::clone(&broken);
    let thread = std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            if let Err(error) = serve(queue, &bell, &line, &commands) {
                *first.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                waker.wake();
            }
        })
        .map_err(|error| HostError::from_io("start a control queue's thread", &error))?;
    Ok(Handle { control, position, thread, broken })
}

fn serve(
    mut queue: Virtqueue,
    bell: &Bell,
    control: &Control,
    commands: &Commands,
) -> Result<(), Error> {
    // Whoever answered last may have been killed before it said so.
    bell.notify()?;
    let mut bytes = Vec::with_capacity(MOST);
    while !control.is_stopped() {
        let mut answered = 0;
        while answered < BATCH
            && let Some(at) = queue.ask(&mut bytes, MOST)?
        {
            let answer = if commands.done(&bytes) { control::OK } else { control::ERR };
            queue.answer(at, answer);
            answered = answered.saturating_add(1);
        }
        if queue.publish().is_needed() {
            bell.notify()?;
        }
        if answered > 0 || queue.rearm()?.is_more() {
            continue;
        }
        let readable = sleep(&[control.fd(), bell.as_fd()], std::iter::empty(), None)?;
        if readable.has(0) {
            control.heard();
        }
        if readable.has(1) {
            bell.take();
        }
    }
    Ok(())
}
