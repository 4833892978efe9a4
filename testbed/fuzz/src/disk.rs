//! A disk in memory that checks what the queue asks of it.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use blkback::acquire::{Hold, InFlight, InPage};
use blkback::engine::memory::Memory;
use blkback::engine::{Engine, Finished, Operation, Woken};
use hypervisor::HostError;
use uring::Buffers as _;

use crate::frontend::{Frontend, SECTORS};
use crate::memory::Granted;
use crate::platform::{Guest, NEVER, READ_ONLY};

/// What the queue hands to an engine.
pub type Held = InFlight<Hold<Granted>, InPage>;

/// Bytes of the disk.
pub const SIZE: u64 = SECTORS * 512;

/// The engine under the queue.
pub struct Watched {
    engine: Memory<Held>,
    guest: Guest,
    front: Frontend,
}

impl Watched {
    /// `engine`, over which `guest` is served; `front` gets a turn at every call.
    #[must_use]
    pub fn new(engine: Memory<Held>, guest: &Guest, front: &Frontend) -> Self {
        Self { engine, guest: guest.clone(), front: front.clone() }
    }

    fn check(&self, operation: Operation, held: &Held) {
        let total: u64 = held.pieces().iter().map(|piece| u64::from(piece.len)).sum();
        let (offset, len) = match operation {
            Operation::Read { offset } | Operation::Write { offset } => (offset, total),
            Operation::Discard { offset, len, .. } | Operation::Zero { offset, len, .. } => {
                (offset, len)
            }
            Operation::Flush => return,
        };
        let inside = offset.checked_add(len).is_some_and(|end| end <= SIZE);
        assert!(inside && len > 0 && offset.is_multiple_of(512), "{operation:?} of {len} bytes");
        for piece in held.pieces() {
            // What is not a page of the guest's is memory of the queue's own.
            let Some(_) = self.guest.pages.page_at(piece.base) else { continue };
            let end = piece.base.wrapping_add(piece.len as usize - 1);
            let last = self.guest.pages.page_at(end).expect("past the guest's memory");
            assert!(last < NEVER, "{operation:?} reaches a page that was never granted");
            let writes = matches!(operation, Operation::Read { .. });
            assert!(!writes || last < READ_ONLY, "{operation:?} writes to a read-only page");
        }
    }
}

impl Engine<Held> for Watched {
    fn submit(&mut self, operation: Operation, held: Held) -> Result<(), Held> {
        self.front.may_act();
        self.check(operation, &held);
        self.engine.submit(operation, held)
    }

    fn kick(&mut self) -> Result<(), HostError> {
        self.front.may_act();
        self.engine.kick()
    }

    fn finished(&mut self, into: &mut Vec<Finished<Held>>) -> Result<(), HostError> {
        self.front.may_act();
        self.engine.finished(into)
    }

    fn wait(
        &mut self,
        _watched: &[BorrowedFd<'_>],
        _timeout: Option<Duration>,
    ) -> Result<Woken, HostError> {
        Ok(Woken::new(self.front.acts(), self.engine.under_way() > 0))
    }

    fn under_way(&self) -> usize {
        self.engine.under_way()
    }

    fn register(&mut self, _slot: u16, _base: *mut u8, _len: usize) -> bool {
        false
    }
}
