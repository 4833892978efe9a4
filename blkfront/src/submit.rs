//! From a caller's request to requests on the ring.
//!
//! [`submit`](Queue::submit) checks a request and takes it as a job; [`issue`](Queue::issue) makes
//! parts of jobs, as large as the backend's limits and the free pages allow, writes their
//! data into granted pages and puts them on the ring; [`publish`](Queue::publish) shows them to the
//! backend, many at once, and notifies it if it wants to be.
//!
//! A request is never shortened: what does not fit one request on the ring goes out in several.

use hypervisor::event::{Channel, Events};
use hypervisor::memory::{Granting, Memory};
use hypervisor::{GrantRef, PAGE_SIZE};
use ring::wire::blkif::{
    self, Indirect, MAX_INDIRECT_PAGES, Segment, Segments, Transfer, operation,
};

use crate::buffer::Buffer;
use crate::link::Link;
use crate::negotiate::{DIRECT_SEGMENTS, DiskInfo, SECTOR};
use crate::queue::{Life, Queue};
use crate::request::{IoError, Operation, Reason, Rejected, Request};
use crate::shadow::{Asked, Part};

impl<H, B> Queue<H, B>
where
    H: Granting + Events,
    B: Buffer<Pages = H::Memory>,
{
    /// Takes `request` to be done. It goes out with the next [`service`](Self::service), together
    /// with all others taken until then.
    ///
    /// # Errors
    ///
    /// The request, with the reason why it was not taken.
    pub fn submit(&mut self, request: Request<B>) -> Result<(), Rejected<B>> {
        let already = match self.check(&request) {
            Ok(already) => already,
            Err(reason) => return Err(Rejected { request, reason }),
        };
        match self.jobs.insert(request, already) {
            Ok(()) => {
                self.counters.submitted = self.counters.submitted.wrapping_add(1);
                Ok(())
            }
            Err(request) => Err(Rejected { request, reason: Reason::Full }),
        }
    }

    /// Whether `request` can be taken; and its result, where there is nothing to be done.
    fn check(&self, request: &Request<B>) -> Result<Option<Result<(), IoError>>, Reason> {
        match self.life {
            Life::Open => {}
            Life::Ended(_) => return Err(Reason::Detached),
        }
        let Some(info) = &self.info else { return Err(Reason::NotConnected) };
        if self.jobs.is_full() {
            return Err(Reason::Full);
        }
        match request.operation {
            Operation::Read => {}
            Operation::Write | Operation::Discard { .. } if info.read_only => {
                return Err(Reason::ReadOnly);
            }
            Operation::Write => {}
            Operation::Flush => return Ok((!info.flush).then_some(Ok(()))),
            Operation::Discard { secure, .. } => match info.discard {
                None => return Err(Reason::Unsupported),
                Some(can) if secure && !can.secure => return Err(Reason::Unsupported),
                Some(_) => {}
            },
        }
        let len = request.len();
        let sector = u64::from(info.sector_size);
        if len == 0 {
            return Err(Reason::Empty);
        }
        if !len.is_multiple_of(sector) || !request.offset.is_multiple_of(sector) {
            return Err(Reason::Unaligned(info.sector_size));
        }
        match request.offset.checked_add(len) {
            Some(end) if end <= info.size => {}
            _ => return Err(Reason::PastEnd(info.size)),
        }
        if let Operation::Discard { len, secure } = request.operation {
            let whole = discardable(info, request.offset, len);
            if secure && whole != Some((request.offset, len)) {
                return Err(Reason::Unaligned(info.discard.map_or(512, |can| can.granularity)));
            }
            // Less than one extent: the disk has nothing that it could let go of.
            return Ok(whole.is_none().then_some(Ok(())));
        }
        Ok(None)
    }

    /// Puts on the ring what waits, as far as there is room.
    pub(crate) fn issue(&mut self) {
        let (Some(link), Some(info)) = (&mut self.link, &self.info) else { return };
        loop {
            // What a backend took down with it comes first, in its order.
            let (part, old) = match self.again.front() {
                Some(part) => (*part, true),
                None => {
                    let Some(index) = self.jobs.next() else { return };
                    let Some(job) = self.jobs.get_mut(index) else { return };
                    let len = match job.request.operation {
                        Operation::Read | Operation::Write => {
                            job.request.buffer.len().saturating_sub(job.cursor)
                        }
                        _ => 0,
                    };
                    (Part { job: index, at: job.cursor, len, order: self.order }, false)
                }
            };
            let Some(job) = self.jobs.get_mut(part.job) else { return };
            if job.result.is_err() && old {
                // Another part of the job has failed since; nobody needs this one.
                self.again.pop_front();
                self.jobs.part_done(part.job, Ok(()));
                continue;
            }
            let Some(done) = link.put(info, &job.request, part) else { return };
            self.counters.issued = self.counters.issued.wrapping_add(1);
            let rest = part.len.saturating_sub(done);
            if old {
                match self.again.front_mut() {
                    Some(front) if rest > 0 => {
                        front.at = front.at.saturating_add(done);
                        front.len = rest;
                        job.outstanding = job.outstanding.saturating_add(1);
                    }
                    _ => drop(self.again.pop_front()),
                }
                continue;
            }
            self.order = self.order.wrapping_add(1);
            job.outstanding = job.outstanding.saturating_add(1);
            job.cursor = job.cursor.saturating_add(done);
            if rest == 0 {
                self.jobs.made();
            }
        }
    }

    /// Shows the backend what was issued, and notifies it if it asked for that.
    pub(crate) fn publish(&mut self) {
        let Some(link) = &mut self.link else { return };
        if link.ring.publish().is_needed() {
            self.counters.notified = self.counters.notified.wrapping_add(1);
            // A channel that is no more means a backend that is no more; the store will say so.
            let _ = link.channel.notify();
        }
    }
}

impl<H: Granting + Events> Link<H> {
    /// Puts as much of `part` of `request` on the ring as one request holds; says how many bytes
    /// that is. `None` where there is no room at the moment.
    fn put<B>(&mut self, info: &DiskInfo, request: &Request<B>, part: Part) -> Option<usize>
    where
        B: Buffer<Pages = H::Memory>,
    {
        if self.ring.free() == 0 {
            return None;
        }
        match request.operation {
            Operation::Read => self.put_data(info, operation::READ, request, part),
            Operation::Write => self.put_data(info, operation::WRITE, request, part),
            Operation::Flush => {
                let id = self.ask_plain(operation::FLUSH_DISKCACHE, part)?;
                self.push(&blkif::Request::flush(id))
            }
            Operation::Discard { len, secure } => {
                let (offset, len) = discardable(info, request.offset, len)?;
                let id = self.ask_plain(operation::DISCARD, part)?;
                let (sector, sectors) = (offset / SECTOR, len / SECTOR);
                let discard = blkif::Discard { sector, sectors, secure };
                self.push(&blkif::Request::discard(id, discard))
            }
        }
    }

    /// Pushes a request that moves no bytes, for which a slot was found free.
    fn push(&mut self, request: &blkif::Request) -> Option<usize> {
        let pushed = self.ring.push(request);
        debug_assert!(pushed.is_ok(), "a slot was free");
        pushed.is_ok().then_some(0)
    }

    fn ask_plain(&mut self, operation: u8, part: Part) -> Option<u64> {
        let slot = self.shadow.reserve()?;
        Some(self.shadow.ask(slot, Asked { operation, outer: operation, part, ..Asked::default() }))
    }

    fn put_data<B>(
        &mut self,
        info: &DiskInfo,
        operation: u8,
        request: &Request<B>,
        part: Part,
    ) -> Option<usize>
    where
        B: Buffer<Pages = H::Memory>,
    {
        self.scratch.clear();
        let (len, pages) = match self.lend(info, request, part) {
            Some(len) => (len, 0),
            None => {
                self.scratch.clear();
                let pages = self.room(part.len)?;
                (part.len.min(pages.saturating_mul(PAGE_SIZE)), pages)
            }
        };
        let count = pages.max(self.scratch.len());
        let indirect = usize::from(count > DIRECT_SEGMENTS);
        if self.pool.available() < pages.saturating_add(indirect) {
            return None;
        }
        let slot = self.shadow.reserve()?;
        let places = self.shadow.pages_mut(&slot);
        for (number, place) in places.iter_mut().take(pages.saturating_add(indirect)).enumerate() {
            let page = self.pool.take()?;
            *place = page;
            if number < pages {
                let at = number.saturating_mul(PAGE_SIZE);
                let bytes = len.saturating_sub(at).min(PAGE_SIZE);
                if operation == operation::WRITE {
                    let from = part.at.saturating_add(at);
                    request.buffer.store(from, self.pool.memory(), page.offset(), bytes);
                }
                self.scratch.push(segment(self.pool.gref(page), 0, bytes));
            }
        }
        let table = places.get(pages).copied().unwrap_or_default();
        let sector = request.offset.checked_add(part.at as u64)? / SECTOR;
        let asked = Asked {
            operation,
            outer: if indirect == 0 { operation } else { operation::INDIRECT },
            part: Part { len, ..part },
            data_pages: pages,
            indirect_pages: indirect,
        };
        let id = self.shadow.ask(slot, asked);
        let request = if indirect == 0 {
            let transfer = Transfer { sector, segments: Segments::new(&self.scratch).ok()? };
            match operation {
                operation::READ => blkif::Request::read(id, transfer),
                _ => blkif::Request::write(id, transfer),
            }
        } else {
            let mut offset = table.offset();
            for segment in &self.scratch {
                let written = self.pool.memory().write_at(offset, &segment.encode());
                debug_assert_eq!(written, Ok(()), "a page holds 512 segments");
                offset = offset.saturating_add(Segment::SIZE);
            }
            let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
            if let Some(first) = grefs.first_mut() {
                *first = self.pool.gref(table);
            }
            let count = u16::try_from(count).ok()?;
            blkif::Request::indirect(id, Indirect { operation, sector, count, grefs })
        };
        self.push(&request)?;
        Some(len)
    }

    /// How many pages a part of `len` bytes gets at the moment, none for none.
    ///
    /// A part is not made smaller for want of pages while answers that free some are due: many
    /// small requests are slower than one large one a little later.
    fn room(&self, len: usize) -> Option<usize> {
        let wanted = len.div_ceil(PAGE_SIZE).min(self.segments);
        let with_table = |pages: usize| {
            pages.saturating_add(usize::from(pages > DIRECT_SEGMENTS)) <= self.pool.available()
        };
        if with_table(wanted) {
            return Some(wanted);
        }
        if self.shadow.in_flight() > 0 {
            return None;
        }
        let all = self.pool.available();
        let fits = if with_table(all) { all } else { all.saturating_sub(1) };
        (fits > 0).then_some(fits)
    }

    /// Lets the backend reach the request's own memory, where that was granted to it and lies on
    /// sector boundaries: puts the segments together and gives the number of bytes.
    fn lend<B>(&mut self, info: &DiskInfo, request: &Request<B>, part: Part) -> Option<usize>
    where
        B: Buffer<Pages = H::Memory>,
    {
        let lent = request.buffer.lent()?;
        let mut done = 0_usize;
        while done < part.len && self.scratch.len() < self.segments {
            let (gref, within, there) = lent.grant(self.peer, part.at.saturating_add(done))?;
            if !within.is_multiple_of(info.sector_size as usize) {
                return None;
            }
            let bytes = part.len.saturating_sub(done).min(there);
            self.scratch.push(segment(gref, within, bytes));
            done = done.saturating_add(bytes);
        }
        Some(done)
    }
}

/// The segment of `bytes` bytes from byte `within` of a page on, both whole sectors.
fn segment(gref: GrantRef, within: usize, bytes: usize) -> Segment {
    const UNIT: usize = SECTOR as usize;
    let last = within.saturating_add(bytes).div_ceil(UNIT).saturating_sub(1);
    Segment {
        gref,
        first: u8::try_from(within / UNIT).unwrap_or(u8::MAX),
        last: u8::try_from(last).unwrap_or(u8::MAX),
    }
}

/// The whole extents within a range to be discarded: where they begin, and how many bytes.
fn discardable(info: &DiskInfo, offset: u64, len: u64) -> Option<(u64, u64)> {
    let can = info.discard?;
    let (grain, shift) = (u64::from(can.granularity), u64::from(can.alignment));
    let end = offset.checked_add(len)?;
    // The end of the disk ends an extent, too.
    let last = if end == info.size {
        end
    } else {
        end.checked_sub(shift)?.checked_div(grain)?.checked_mul(grain)?.checked_add(shift)?
    };
    let first =
        offset.saturating_sub(shift).div_ceil(grain).checked_mul(grain)?.checked_add(shift)?;
    (first < last).then(|| (first, last.saturating_sub(first)))
}
