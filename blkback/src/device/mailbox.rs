//! What the device's thread is told by others: a queue of messages and a descriptor that polls
//! readable while there are any.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use hypervisor::HostError;
use nix::sys::eventfd::{EfdFlags, EventFd};

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
