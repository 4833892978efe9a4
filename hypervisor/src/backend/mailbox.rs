//! What the device's thread is told by others: a queue of messages and a descriptor that polls
//! readable while there are any.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::HostError;

/// Wakes whoever waits at a mailbox.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Waker {
    /// Wakes the thread that waits, now or when it next does.
    pub fn wake(&self) {
        // It only fails where the counter is full, which wakes as well.
        let _ = self.event.write(1);
    }
}

/// Messages for one thread.
#[derive(Debug)]
pub struct Mailbox<T> {
    waker: Waker,
    sender: Sender<T>,
    receiver: Receiver<T>,
}

/// Where messages are put in.
#[derive(Debug)]
pub struct Slot<T> {
    waker: Waker,
    sender: Sender<T>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self { waker: self.waker.clone(), sender: self.sender.clone() }
    }
}

impl<T> Slot<T> {
    /// Puts a message in.
    ///
    /// # Errors
    ///
    /// Nobody reads there any more; the message comes back.
    pub fn put(&self, message: T) -> Result<(), T> {
        self.sender.send(message).map_err(|unsent| unsent.0)?;
        self.waker.wake();
        Ok(())
    }

    /// Puts a message in that is to be answered, and waits for the answer for as long as `patience`.
    ///
    /// # Errors
    ///
    /// The answer's own, or that there was none.
    pub fn ask<A>(
        &self,
        patience: Duration,
        message: impl FnOnce(SyncSender<Result<A, String>>) -> T,
    ) -> Result<A, String> {
        let gone = || "the device did not answer: it is ending".to_owned();
        let (reply, answer) = sync_channel(1);
        self.put(message(reply)).map_err(|_| gone())?;
        answer.recv_timeout(patience).unwrap_or_else(|_| Err(gone()))
    }
}

impl<T> Mailbox<T> {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// The host has no descriptors left.
    pub fn new() -> Result<Self, HostError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags)
            .map_err(|errno| HostError::from_io("make an event", &io::Error::from(errno)))?;
        let (sender, receiver) = channel();
        Ok(Self { waker: Waker { event: Arc::new(event) }, sender, receiver })
    }

    /// Something that wakes the reader without a message.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Somewhere to put messages in.
    #[must_use]
    pub fn slot(&self) -> Slot<T> {
        Slot { waker: self.waker(), sender: self.sender.clone() }
    }

    /// Sleeps until there is a message, one of `others` is readable, or it is `until`; or until a
    /// signal comes.
    ///
    /// # Errors
    ///
    /// The host has no memory left.
    pub fn wait(&self, others: &[BorrowedFd<'_>], until: Option<Instant>) -> Result<(), HostError> {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(then) => {
                // One more, so as not to wake before it.
                let left = then.saturating_duration_since(Instant::now()).as_millis();
                let left = i32::try_from(left.saturating_add(1)).unwrap_or(i32::MAX);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let waited = others.iter().copied().chain([self.as_fd()]);
        let mut waited: Vec<_> = waited.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut waited, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(HostError::new("wait for messages", errno as i32)),
        }
    }

    /// All messages that are there.
    pub fn take(&self) -> Vec<T> {
        // First the event, then the messages: what comes between leaves the event set.
        let _ = self.waker.event.read();
        self.receiver.try_iter().collect()
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.event.as_fd()
    }
}
