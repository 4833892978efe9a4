//! A ring and a journal that outlive a backend which is killed: after so many stores, no other of
//! its stores reaches them, as none of a dead process does. What it goes on to do is nobody's business.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkback::journal::{Cells, Identity, words};
use hypervisor::{DomId, EventPort, GrantRef};
use ring::layout::{HEADER, Word};
use ring::shared::Words;

use blkback::connect::Layout;

/// Bytes in a slot of the 64-bit ABI.
const SLOT: usize = 112;

/// What is shared, by whichever ends there are.
pub(crate) struct Shared {
    ring: RefCell<Vec<u8>>,
    journal: RefCell<Vec<u64>>,
    /// Stores until the backend is killed, if it is.
    left: Cell<Option<usize>>,
    /// Stores that it has made.
    made: Cell<usize>,
}

impl Shared {
    /// A ring of `slots` slots.
    pub(crate) fn new(slots: u32) -> Rc<Self> {
        Rc::new(Self {
            ring: RefCell::new(vec![0; HEADER + slots as usize * SLOT]),
            journal: RefCell::new(vec![0; words(slots)]),
            left: Cell::new(None),
            made: Cell::new(0),
        })
    }

    /// Lets a new backend live for `stores` stores, or for ever.
    pub(crate) fn live(&self, stores: Option<usize>) {
        self.left.set(stores);
        self.made.set(0);
    }

    /// How many stores it has made or, once killed, would have.
    pub(crate) fn made(&self) -> usize {
        self.made.get()
    }

    /// Whether it was killed.
    pub(crate) fn is_dead(&self) -> bool {
        self.left.get() == Some(0)
    }

    fn stores(&self) -> bool {
        self.made.set(self.made.get() + 1);
        match self.left.get() {
            None => true,
            Some(0) => false,
            Some(left) => {
                self.left.set(Some(left - 1));
                true
            }
        }
    }

    pub(crate) fn word(&self, at: usize) -> u64 {
        self.journal.borrow()[at]
    }

    pub(crate) fn set_word(&self, at: usize, value: u64) {
        self.journal.borrow_mut()[at] = value;
    }

    pub(crate) fn set_ring(&self, at: usize, bytes: &[u8]) {
        self.ring.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// The ring as one end has it.
#[derive(Clone)]
pub(crate) struct Ring {
    pub(crate) shared: Rc<Shared>,
    /// Whether it is the end that is killed.
    pub(crate) mortal: bool,
}

impl Ring {
    fn stores(&self) -> bool {
        !self.mortal || self.shared.stores()
    }
}

impl Words for Ring {
    fn bytes(&self) -> usize {
        self.shared.ring.borrow().len()
    }

    fn load(&self, word: Word) -> u32 {
        let at = word.offset();
        u32::from_le_bytes(self.shared.ring.borrow()[at..at + 4].try_into().unwrap())
    }

    fn store(&self, word: Word, value: u32) {
        if self.stores() {
            self.shared.set_ring(word.offset(), &value.to_le_bytes());
        }
    }

    fn fence(&self) {}

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.shared.ring.borrow()[offset..offset + into.len()]);
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        for (n, piece) in from.chunks(8).enumerate() {
            if self.stores() {
                self.shared.set_ring(offset + n * 8, piece);
            }
        }
    }
}

/// The journal as the backend has it.
#[derive(Clone)]
pub(crate) struct Kept(pub(crate) Rc<Shared>);

impl Cells for Kept {
    fn count(&self) -> usize {
        self.0.journal.borrow().len()
    }

    fn load(&self, at: usize) -> u64 {
        self.0.word(at)
    }

    fn store(&self, at: usize, value: u64) {
        if self.0.stores() {
            self.0.set_word(at, value);
        }
    }
}

/// Whose ring it is.
pub(crate) fn identity(slots: u32) -> Identity {
    Identity {
        device: "/local/domain/0/backend/vbd3/5/51712".to_owned(),
        peer: DomId::new(5).unwrap(),
        queue: 0,
        layout: Layout::X86_64,
        slots,
        ring: vec![GrantRef(8)],
        port: EventPort(3),
    }
}
