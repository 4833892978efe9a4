//! The numbers by which domains name each other, their pages and their event channels.

use core::fmt;

/// Bytes in a page, the unit of granting (`XEN_PAGE_SIZE`; x86, and Arm's granule for grants).
pub const PAGE_SIZE: usize = 4096;

/// A domain's number (`domid_t`, xen.h).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomId(u16);

impl DomId {
    /// The first number that names no ordinary domain (`DOMID_FIRST_RESERVED`, xen.h).
    pub const FIRST_RESERVED: u16 = 0x7FF0;
    /// The control domain.
    pub const ZERO: Self = Self(0);

    /// An ordinary domain's number; `None` from [`Self::FIRST_RESERVED`] on.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if number < Self::FIRST_RESERVED { Some(Self(number)) } else { None }
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An entry in the granting domain's grant table (`grant_ref_t`, grant_table.h).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GrantRef(pub u32);

impl fmt::Display for GrantRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One domain's end of an event channel (`evtchn_port_t`, event_channel.h). Zero is never one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EventPort(pub u32);

impl fmt::Display for EventPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
