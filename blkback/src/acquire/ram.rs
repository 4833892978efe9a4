//! The machine's bytes, all of which are mapped already: requests reach them where they lie.

use std::rc::Rc;
use std::sync::Arc;

use hypervisor::memory::Ram as _;
use hypervisor::vhost_user::{Region, Table};

use crate::acquire::{GuestMemory, Hold, Reached, Unreached, Way};
use crate::segments::{Body, Segment};
use crate::validate::Refusal;

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestAddress(pub u64);

/// Reaches the memory of one machine.
#[derive(Debug)]
pub struct Mapped {
    table: Arc<Table>,
    /// The table's regions, counted for this queue alone: a request that holds one costs no other queue.
    #[expect(clippy::redundant_allocation, reason = "a count that no other thread touches")]
    regions: Vec<Rc<Arc<Region>>>,
}

impl Mapped {
    /// Reaches what is in `table`.
    #[must_use]
    pub fn new(table: Arc<Table>) -> Self {
        let regions = table.regions().iter().map(|region| Rc::new(Arc::clone(region))).collect();
        Self { table, regions }
    }
}

impl GuestMemory for Mapped {
    type Hold = Hold<Arc<Region>>;
    type Place = GuestAddress;

    fn fetch(&mut self, from: GuestAddress, into: &mut [u8]) -> Result<(), Refusal> {
        Ok(self.table.read(from.0, into)?)
    }

    #[inline]
    fn reach(
        &mut self,
        segments: &[Segment<GuestAddress>],
        _: Way,
        into: &mut Reached<Self::Hold>,
    ) -> Result<(), Unreached> {
        for segment in segments {
            let (mut at, mut left) = (segment.at.0, u64::from(segment.len));
            while left > 0 {
                let found = self.table.find(at, left);
                let (number, offset, now) = found.ok_or(Refusal::OutsideMemory)?;
                let region = self.regions.get(number).ok_or(Refusal::OutsideMemory)?;
                let len = u32::try_from(now).map_err(|_| Refusal::OutsideMemory)?;
                let hold = Hold::Kept(Rc::clone(region));
                into.push(hold, None, offset, len).map_err(|_| Refusal::OutsideMemory)?;
                at = at.checked_add(now).ok_or(Refusal::OutsideMemory)?;
                left = left.saturating_sub(now);
            }
        }
        Ok(())
    }

    fn copy_in<'a>(&mut self, _: impl Iterator<Item = &'a mut Body<Self::Hold, GuestAddress>>)
    where
        Self: 'a,
    {
        // The medium takes the bytes where they lie.
    }

    fn copy_out<'a>(&mut self, batch: impl Iterator<Item = &'a mut Body<Self::Hold, GuestAddress>>)
    where
        Self: 'a,
    {
        // The medium has put them where they belong; whoever migrates the machine is to know.
        for body in batch {
            for segment in &body.segments {
                self.table.wrote(segment.at.0, u64::from(segment.len));
            }
        }
    }

    #[inline]
    fn release(&mut self, from: &mut Reached<Self::Hold>) {
        from.drain().for_each(drop);
    }

    fn unsettled(&self) -> bool {
        false
    }

    fn settle(&mut self, _: impl FnMut(u16, *mut u8, usize) -> bool) {}

    fn idle(&mut self) {}

    fn kept(&self) -> usize {
        0
    }

    fn holds_back(&self) -> bool {
        false
    }
}
