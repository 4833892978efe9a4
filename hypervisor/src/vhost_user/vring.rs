//! What a session knows of one queue.

use std::os::fd::OwnedFd;

use super::bell::Call;
use super::message::{Fields, fault};
use crate::PeerFault;

/// Where a queue's parts are, in the monitor's addresses (`struct vhost_vring_addr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    flags: u32,
    pub(super) descriptors: u64,
    pub(super) used: u64,
    pub(super) available: u64,
    log: u64,
}

/// `VHOST_VRING_F_LOG`: what is written to the used ring is to be noted.
const LOGGED: u32 = 1;

impl Addresses {
    /// A queue's number, and where its parts are.
    pub(super) fn parse(payload: &[u8]) -> Result<(u32, Self), PeerFault> {
        let mut fields = Fields::new(payload);
        let number = fields.u32()?;
        let flags = fields.u32()?;
        let (descriptors, used, available) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let log = fields.u64()?;
        for (part, at, align) in [
            ("descriptors", descriptors, 16),
            ("available ring", available, 2),
            ("used ring", used, 4),
        ] {
            if !at.is_multiple_of(align) {
                return Err(fault("queue_alignment", format!("queue {number}: {part} at {at:#x}")));
            }
        }
        Ok((number, Self { flags, descriptors, used, available, log }))
    }

    /// The machine's address of the used ring, where writes to it are to be noted.
    pub(super) fn noted(&self) -> Option<u64> {
        (self.flags & LOGGED != 0).then_some(self.log)
    }
}

/// One queue: what was said of it, and what serves it.
#[derive(Debug)]
pub(super) struct Vring<Q> {
    pub(super) size: u32,
    pub(super) addresses: Option<Addresses>,
    pub(super) taken: u16,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Call,
    pub(super) error: Option<OwnedFd>,
    pub(super) enabled: bool,
    /// It was given up for a fault, until it is set up anew.
    pub(super) broken: bool,
    pub(super) running: Option<Q>,
}

impl<Q> Default for Vring<Q> {
    fn default() -> Self {
        Self {
            size: 0,
            addresses: None,
            taken: 0,
            kick: None,
            call: Call::default(),
            error: None,
            enabled: false,
            broken: false,
            running: None,
        }
    }
}
