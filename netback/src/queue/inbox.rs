//! Packets that one queue's port brought and that another queue is to give to the guest, because the
//! frontend chose so.
//!
//! Each queue has an inbox. What is put there goes to whoever serves the queue, and wakes it; where
//! nobody does, or more wait than are kept, nothing is taken.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Control;
use crate::buffer::Buffer;

/// Packets that are kept.
const MOST: usize = 256;

/// What others have for a queue.
#[derive(Debug, Default)]
pub struct Inbox {
    inner: Mutex<Inner>,
    /// How many packets, to be looked at without the lock.
    held: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    packets: VecDeque<Buffer>,
    /// Whom to wake; `None` while nobody serves the queue.
    owner: Option<Arc<Control>>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A packet more or less is all that a panic can leave behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `owner` takes what comes.
    pub(crate) fn open(&self, owner: Arc<Control>) {
        self.lock().owner = Some(owner);
    }

    /// Nobody does any more; what is left is lost.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.owner = None;
        inner.packets.clear();
        self.held.store(0, Ordering::Release);
    }

    /// Hands a packet over, or gives it back.
    pub(crate) fn put(&self, packet: Buffer) -> Result<(), Buffer> {
        let mut inner = self.lock();
        let Inner { packets, owner: Some(owner) } = &mut *inner else { return Err(packet) };
        if packets.len() >= MOST {
            return Err(packet);
        }
        packets.push_back(packet);
        self.held.store(packets.len(), Ordering::Release);
        if packets.len() == 1 {
            owner.wake();
        }
        Ok(())
    }

    /// Takes up to `most` packets, oldest first.
    pub(crate) fn take(&self, most: usize, into: &mut VecDeque<Buffer>) -> usize {
        if most == 0 || self.held.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let mut inner = self.lock();
        let taken = most.min(inner.packets.len());
        into.extend(inner.packets.drain(..taken));
        self.held.store(inner.packets.len(), Ordering::Release);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_wait_for_an_owner_in_order_and_in_number() {
        let inbox = Inbox::default();
        assert!(inbox.put(Buffer::new().unwrap()).is_err(), "nobody is there");
        inbox.open(Control::new().unwrap());
        for n in 1..=MOST {
            let mut packet = Buffer::new().unwrap();
            packet.set_len(n);
            assert!(inbox.put(packet).is_ok());
        }
        assert!(inbox.put(Buffer::new().unwrap()).is_err(), "it has an end");
        let mut taken = VecDeque::new();
        assert_eq!((inbox.take(0, &mut taken), inbox.take(3, &mut taken)), (0, 3));
        assert_eq!(taken.iter().map(Buffer::len).collect::<Vec<_>>(), [1, 2, 3]);
        inbox.close();
        assert_eq!(inbox.take(3, &mut taken), 0);
    }
}
