//! Takes heads off the available ring and puts them on the used ring.

use super::{Area, Fault, HEADER, INDEX, MOST_ENTRIES};
use super::{available_bytes, descriptor_bytes, used_bytes};
use crate::shared::{Halves, Words};
use crate::{Notify, Recheck};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`, and `VIRTQ_USED_F_NO_NOTIFY` in the other ring.
const DO_NOT_TELL: u16 = 1;

/// The duty to give a chain's head back, once.
#[derive(Debug)]
#[must_use = "a head that is not given back is lost to the driver"]
pub struct Head(u16);

impl Head {
    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.0
    }

    /// Gives it up: the queue ends, or somebody else will answer.
    pub fn abandon(self) {
        self.spend();
    }

    /// Ends the duty.
    fn spend(self) {
        core::mem::forget(self);
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        debug_assert!(false, "head {} was dropped and not given back", self.0);
    }
}

/// The device's role on a queue whose parts lie in `M`.
#[derive(Debug)]
pub struct Device<M> {
    size: u16,
    descriptors: Area<M>,
    available: Area<M>,
    used: Area<M>,
    /// Whether events are asked for by index (`VIRTIO_F_EVENT_IDX`).
    by_index: bool,
    /// Heads taken.
    taken: u16,
    /// Heads known to be there, checked.
    seen: u16,
    /// Heads given back, of which those up to `published` are visible.
    written: u16,
    published: u16,
    /// The driver notifies of what it makes available.
    armed: bool,
}

impl<M: Words + Halves> Device<M> {
    /// A queue of `size` entries of which `taken` were taken so far; those that were given back are counted
    /// in the used ring.
    ///
    /// # Errors
    ///
    /// There cannot be a queue like that.
    pub fn new(
        size: u32,
        (descriptors, available, used): (Area<M>, Area<M>, Area<M>),
        by_index: bool,
        taken: u16,
    ) -> Result<Self, Fault> {
        let entries =
            u16::try_from(size).ok().filter(|n| *n <= MOST_ENTRIES && n.is_power_of_two());
        let size = entries.ok_or(Fault::Size { size })?;
        for (part, have, needed) in [
            ("descriptors", descriptors.len(), descriptor_bytes(size)),
            ("available ring", available.len(), available_bytes(size)),
            ("used ring", used.len(), used_bytes(size)),
        ] {
            if have < needed {
                return Err(Fault::Short { part, have, size });
            }
        }
        let written = used.load(INDEX);
        let mut device = Self {
            size,
            descriptors,
            available,
            used,
            by_index,
            taken,
            seen: taken,
            written,
            published: written,
            armed: true,
        };
        device.look()?;
        Ok(device)
    }

    /// How many entries it has.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Heads taken so far.
    pub const fn taken(&self) -> u16 {
        self.taken
    }

    /// Heads given back, and shown to the driver, so far.
    pub const fn published(&self) -> u16 {
        self.published
    }

    /// Where in the used ring the next head that is given back will stand, in bytes: 8 of them.
    #[inline]
    pub fn place(&self) -> usize {
        self.entry(self.written, 8)
    }

    /// Its descriptors.
    pub(super) const fn descriptors(&self) -> &Area<M> {
        &self.descriptors
    }

    /// The duty for a head that was taken before this value was made, which counts as taken.
    ///
    /// # Errors
    ///
    /// There is no such descriptor.
    pub fn owed(&self, head: u16) -> Result<Head, Fault> {
        if head < self.size { Ok(Head(head)) } else { Err(Fault::Head { head, size: self.size }) }
    }

    /// Takes the next head. A driver that goes on producing can make a loop over this endless: bound it.
    ///
    /// # Errors
    ///
    /// [`Fault::AvailableIndex`], [`Fault::Head`].
    #[inline]
    pub fn take(&mut self) -> Result<Option<Head>, Fault> {
        if self.taken == self.seen && self.look()? == 0 {
            return Ok(None);
        }
        if self.armed && !self.by_index {
            // Awake now: whatever else comes is found without being told of.
            self.armed = false;
            self.used.store(0, DO_NOT_TELL);
        }
        let head = self.available.load(self.entry(self.taken, 2));
        let head = self.owed(head)?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(head))
    }

    /// Gives a head back; `len` bytes from the beginning of its writable buffers on were written. The driver
    /// sees it with the next [`publish`](Self::publish).
    #[inline]
    pub fn give_back(&mut self, head: Head, len: u32) {
        let [a, b, c, d] = u32::from(head.0).to_le_bytes();
        let [e, f, g, h] = len.to_le_bytes();
        self.used.copy_in(self.entry(self.written, 8), &[a, b, c, d, e, f, g, h]);
        self.written = self.written.wrapping_add(1);
        head.spend();
    }

    /// Shows the driver what was given back, and says whether it wants to be notified.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        let (old, new) = (self.published, self.written);
        if old == new {
            return Notify::No;
        }
        self.used.store(INDEX, new);
        self.published = new;
        // The driver arms its event, then looks at the index; we moved the index and now look at the event.
        self.used.fence();
        let wanted = if self.by_index {
            let event = self.available.load(self.entry_at(self.size, 2));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.available.load(0) & DO_NOT_TELL == 0
        };
        if wanted { Notify::Needed } else { Notify::No }
    }

    /// Asks to be notified of the next head, and looks once more.
    ///
    /// # Errors
    ///
    /// [`Fault::AvailableIndex`].
    pub fn rearm(&mut self) -> Result<Recheck, Fault> {
        if self.by_index {
            self.used.store(self.entry_at(self.size, 8), self.taken);
        } else {
            self.armed = true;
            self.used.store(0, 0);
        }
        self.used.fence();
        let more = self.taken != self.seen || self.look()? > 0;
        Ok(if more { Recheck::More } else { Recheck::Quiet })
    }

    /// Looks at the available index. Says how many heads are there to take.
    fn look(&mut self) -> Result<u16, Fault> {
        let index = self.available.load(INDEX);
        let (taken, used) = (self.taken, self.written);
        let there = index.wrapping_sub(taken);
        // Whatever is not given back occupies a descriptor, so all together are no more than those.
        let outstanding = taken.wrapping_sub(used);
        if outstanding > self.size || there > self.size.wrapping_sub(outstanding) {
            return Err(Fault::AvailableIndex { index, taken, used, size: self.size });
        }
        self.seen = index;
        Ok(there)
    }

    #[inline]
    fn entry(&self, index: u16, bytes: usize) -> usize {
        self.entry_at(index & self.size.wrapping_sub(1), bytes)
    }

    #[inline]
    fn entry_at(&self, number: u16, bytes: usize) -> usize {
        usize::from(number).saturating_mul(bytes).saturating_add(HEADER)
    }
}
