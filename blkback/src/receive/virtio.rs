//! Takes virtio-blk requests off a split virtqueue.
//!
//! A chain is walked once, when its head is taken: header, data and status byte are told apart wherever
//! the driver cut them. Trust: a chain that breaks the queue's rules, or has no room for a status, is a
//! [`PeerFault`] and ends the queue; what a request asks of the disk, and whether its data lies in the
//! machine's memory, is checked by the stages that follow. Source: virtio 1.2, 2.7 and 5.2.6.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use hypervisor::memory::Ram as _;
use hypervisor::vhost_user::{EVENT_INDEX, Parts, Region, Span, Table};
use hypervisor::{Peer, PeerFault};
use ring::split::{self, Area, Buffer, Device, Fault, Head, Inflight};
use ring::wire::virtio_blk::{Header, ID_BYTES, Range, feature, kind, status};
use ring::{Notify, Recheck};

use crate::acquire::{GuestAddress, GuestMemory};
use crate::connect::vhost_user::{RANGES, longest_range};
use crate::receive::{Answer, Gathered, RawRequest, Requests, Taken};
use crate::segments::{Asked, Segment};
use crate::validate::{Action, Refusal};

/// Bytes in the units of positions and ranges.
const SECTOR: u64 = 512;
/// The most bytes of a request whose data does not lie at whole sectors of the machine's memory. Past the page cache
/// such data is copied, and what a guest can have us copy at once is to be bounded.
const MOST_COPIED: u64 = 16 << 20;
/// Bytes of the used ring's flags and index.
const FRONT: u64 = 4;

/// A virtqueue of a block device.
#[derive(Debug)]
pub struct VirtioQueue {
    device: Device<Arc<Region>>,
    inflight: Option<Inflight<Arc<Region>>>,
    /// Heads that an earlier process took and did not answer, the next one last.
    again: Vec<u16>,
    memory: Arc<Table>,
    /// The machine's address of the used ring, where writes to it are noted.
    noted: Option<u64>,
    features: u64,
    serial: [u8; ID_BYTES],
    /// Requests taken and answers shown, with more bits than the ring has.
    counted: (u32, u32),
    answered: u32,
    /// The data of the chain that was taken last.
    data: Vec<Segment<GuestAddress>>,
    /// The ranges that it names.
    ranges: Vec<Asked>,
    /// Where it is told at the end how many heads were taken.
    position: Arc<AtomicU16>,
}

/// The duty to answer a request on a virtqueue.
#[derive(Debug)]
pub struct Owed {
    head: Head,
    /// Where the status goes.
    status: u64,
    /// Bytes in front of it that the device writes.
    writable: u32,
}

/// A request as its header and the shape of its chain have it.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    header: Header,
    /// Bytes of data for the device to read, and to write.
    readable: u64,
    writable: u64,
}

impl VirtioQueue {
    /// The queue that `parts` are, of a disk named `serial`. At its end, `position` has the number of heads
    /// taken.
    ///
    /// # Errors
    ///
    /// There cannot be a queue like that.
    pub fn attach(
        parts: &Parts,
        serial: [u8; ID_BYTES],
        position: Arc<AtomicU16>,
    ) -> Result<Self, PeerFault> {
        Self::open(parts, serial, position).map_err(|fault| fault.by(Peer::Machine))
    }

    fn open(
        parts: &Parts,
        serial: [u8; ID_BYTES],
        position: Arc<AtomicU16>,
    ) -> Result<Self, Fault> {
        let size = u16::try_from(parts.size).map_err(|_| Fault::Size { size: parts.size })?;
        let ends = (
            area("descriptors", &parts.descriptors, size, 16)?,
            area("available ring", &parts.available, size, 2)?,
            area("used ring", &parts.used, size, 4)?,
        );
        let by_index = parts.features & EVENT_INDEX != 0;
        let used = ends.2.index();
        let (mut taken, mut again, mut inflight) = (parts.taken, Vec::new(), None);
        if let Some(span) = &parts.inflight {
            let area = area("inflight region", span, size, 8)?;
            let (notes, owed) = Inflight::open(area, size, used)?;
            inflight = Some(notes);
            if let Some(owed) = owed {
                // What was taken by anybody is answered or noted.
                taken = used.wrapping_add(u16::try_from(owed.len()).unwrap_or(u16::MAX));
                again = owed;
                again.reverse();
            }
        }
        let device = Device::new(parts.size, ends, by_index, taken)?;
        Ok(Self {
            device,
            inflight,
            again,
            memory: Arc::clone(&parts.memory),
            noted: parts.noted,
            features: parts.features,
            serial,
            counted: (0, 0),
            answered: 0,
            data: Vec::new(),
            ranges: Vec::new(),
            position,
        })
    }

    /// Requests that an earlier process took, and that are begun anew.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.again.len()
    }

    #[inline]
    fn walk(&mut self, head: Head) -> Result<RawRequest<Asking, Owed>, Fault> {
        let shape = Shape::of(&self.device, &head, &self.memory, &mut self.data);
        match shape {
            Ok(Shape { asked, status }) => {
                self.counted.0 = self.counted.0.wrapping_add(1);
                let writable = u32::try_from(asked.writable).unwrap_or(u32::MAX);
                Ok(RawRequest { asked, slot: Owed { head, status, writable } })
            }
            Err(fault) => {
                head.abandon();
                Err(fault)
            }
        }
    }

    fn next(&mut self) -> Result<Option<RawRequest<Asking, Owed>>, Fault> {
        if let Some(head) = self.again.pop() {
            let head = self.device.owed(head)?;
            return self.walk(head).map(Some);
        }
        let Some(head) = self.device.take()? else { return Ok(None) };
        if let Some(notes) = &mut self.inflight
            && let Err(fault) = notes.take(head.number())
        {
            head.abandon();
            return Err(fault);
        }
        self.walk(head).map(Some)
    }

    /// Writes the disk's name over the data of the request that was taken last.
    fn identify(&self) -> Result<(), Refusal> {
        let mut rest: &[u8] = &self.serial;
        for segment in &self.data {
            let now = rest.len().min(segment.len as usize);
            let (part, after) = rest.split_at_checked(now).unwrap_or((rest, &[]));
            self.memory.write(segment.at.0, part)?;
            rest = after;
        }
        Ok(())
    }

    /// The ranges that a request of `kind` names, if `feature` was agreed on.
    fn named(&mut self, feature: u64, asked: &Asking) -> Result<Gathered, Refusal> {
        let Asking { header: Header { kind, .. }, readable, writable } = *asked;
        if self.features & feature == 0 {
            return Err(Refusal::UnknownOperation);
        }
        if writable != 0 {
            return Err(Refusal::WrongDirection);
        }
        let unit = Range::SIZE as u64;
        let count = readable.checked_div(unit).unwrap_or(0);
        if count == 0 || count > u64::from(RANGES) || !readable.is_multiple_of(unit) {
            return Err(Refusal::SegmentCount);
        }
        self.ranges.clear();
        let mut bytes = [0; Range::SIZE];
        let mut have = 0_usize;
        for segment in &self.data {
            let (mut at, mut left) = (segment.at.0, segment.len as usize);
            while left > 0 {
                let rest = bytes.get_mut(have..).unwrap_or_default();
                let now = left.min(rest.len());
                self.memory.read(at, rest.get_mut(..now).unwrap_or_default())?;
                at = at.wrapping_add(now as u64);
                (have, left) = (have.saturating_add(now), left.saturating_sub(now));
                if have == Range::SIZE {
                    have = 0;
                    self.ranges.push(range(kind, Range::decode(&bytes))?);
                }
            }
        }
        match self.ranges.as_slice() {
            [only] => Ok((*only).into()),
            _ => Ok(Gathered::Ranges),
        }
    }
}

/// What a request of `kind` asks of `range`. Source: virtio 1.2, 5.2.6.2.
fn range(kind: u32, range: Range) -> Result<Asked, Refusal> {
    let Range { sector, sectors, flags } = range;
    let (action, known) = match kind {
        kind::WRITE_ZEROES => (Action::Zero { unmap: flags & Range::UNMAP != 0 }, Range::UNMAP),
        _ => (Action::Discard { secure: kind == kind::SECURE_ERASE }, 0),
    };
    if flags & !known != 0 {
        return Err(Refusal::RangeFlags);
    }
    let len = u64::from(sectors).saturating_mul(SECTOR);
    if len > longest_range(kind != kind::WRITE_ZEROES) {
        return Err(Refusal::RangeTooLong);
    }
    Ok(Asked { action, sector, len })
}

impl Requests for VirtioQueue {
    type Raw = Asking;
    type Slot = Owed;
    type Place = GuestAddress;

    #[inline]
    fn take(&mut self) -> Taken<Asking, Owed> {
        self.next().map_err(|fault| fault.by(Peer::Machine))
    }

    #[inline]
    fn gather<G: GuestMemory<Place = GuestAddress>>(
        &mut self,
        asked: &Asking,
        _: &mut G,
        unit: u32,
        into: &mut Vec<Segment<GuestAddress>>,
    ) -> Result<Gathered, Refusal> {
        into.clear();
        let Asking { header: Header { kind, sector }, readable, writable } = *asked;
        let (action, len) = match kind {
            kind::IN if readable == 0 => (Action::Read, writable),
            kind::OUT if writable == 0 => (Action::Write, readable),
            kind::IN | kind::OUT => return Err(Refusal::WrongDirection),
            // A flush carries nothing; what stands in its sector means nothing.
            kind::FLUSH => (Action::Flush, 0),
            kind::GET_ID if readable == 0 => return self.identify().map(|()| Gathered::Done),
            kind::DISCARD => return self.named(feature::DISCARD, asked),
            kind::WRITE_ZEROES => return self.named(feature::WRITE_ZEROES, asked),
            kind::SECURE_ERASE => return self.named(feature::SECURE_ERASE, asked),
            _ => return Err(Refusal::UnknownOperation),
        };
        if len > MOST_COPIED {
            let whole = |n: u64| n.is_multiple_of(u64::from(unit));
            let aligned = |s: &Segment<GuestAddress>| whole(s.at.0) && whole(s.len.into());
            if !self.data.iter().all(aligned) {
                return Err(Refusal::Misaligned);
            }
        }
        if len > 0 {
            into.extend_from_slice(&self.data);
        }
        Ok(Asked { action, sector, len }.into())
    }

    fn ranges(&self) -> &[Asked] {
        &self.ranges
    }

    #[inline]
    fn answer(&mut self, slot: Owed, answer: Answer) {
        let Owed { head, status, writable } = slot;
        let (code, len) = match answer {
            Answer::Done => (status::OK, writable.saturating_add(1)),
            Answer::Failed => (status::IOERR, 0),
            Answer::Unsupported => (status::UNSUPP, 0),
        };
        // Where it lies was found to be memory; the table is the same for as long as this value lives.
        let _ = self.memory.write(status, &[code]);
        if let Some(notes) = &mut self.inflight {
            notes.give_back(head.number());
        }
        let place = self.device.place();
        self.device.give_back(head, len);
        self.note_used(place, 8);
        self.answered = self.answered.wrapping_add(1);
    }

    fn abandon(&mut self, slot: Owed) {
        slot.head.abandon();
    }

    #[inline]
    fn publish(&mut self) -> Notify {
        let before = self.device.published();
        let wanted = self.device.publish();
        if self.device.published() != before {
            self.note_used(0, FRONT);
        }
        self.counted.1 = self.answered;
        if let Some(notes) = &mut self.inflight {
            notes.published(self.device.published());
        }
        wanted
    }

    fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        if !self.again.is_empty() {
            return Ok(Recheck::More);
        }
        let recheck = self.device.rearm().map_err(|fault| fault.by(Peer::Machine))?;
        // It asked in one of two ways, and may have said before that it need not be told.
        self.note_used(0, FRONT);
        if self.features & EVENT_INDEX != 0 {
            self.note_used(split::event_place(self.device.size()), 2);
        }
        Ok(recheck)
    }

    fn slots(&self) -> u32 {
        u32::from(self.device.size())
    }

    fn indexes(&self) -> (u32, u32) {
        self.counted
    }
}

impl VirtioQueue {
    /// Notes that `len` bytes at `place` in the used ring were written.
    #[inline]
    fn note_used(&self, place: usize, len: u64) {
        if let Some(at) = self.noted {
            self.memory.wrote(at.saturating_add(place as u64), len);
        }
    }
}

impl Drop for VirtioQueue {
    fn drop(&mut self) {
        self.position.store(self.device.taken(), Ordering::Release);
    }
}

fn area(
    part: &'static str,
    span: &Span,
    size: u16,
    align: usize,
) -> Result<Area<Arc<Region>>, Fault> {
    let made = Area::new(Arc::clone(&span.region), span.offset, span.len, align);
    made.ok_or(Fault::Short { part, have: span.len, size })
}

/// What a chain's buffers are.
struct Shape {
    asked: Asking,
    status: u64,
}

impl Shape {
    /// Walks the chain of `head`; its data goes to `data`.
    #[inline]
    fn of(
        device: &Device<Arc<Region>>,
        head: &Head,
        memory: &Table,
        data: &mut Vec<Segment<GuestAddress>>,
    ) -> Result<Self, Fault> {
        data.clear();
        let mut header = [0; Header::SIZE];
        let mut front: &mut [u8] = &mut header;
        let (mut readable, mut writable) = (0_u64, 0_u64);
        for buffer in device.chain(head, memory) {
            let Buffer { mut at, mut len, writable: to_write } = buffer?;
            if to_write {
                writable = writable.saturating_add(u64::from(len));
            } else {
                // The header is what comes first, in however many buffers.
                let now = front.len().min(len as usize);
                if now > 0 {
                    let (part, rest) = front.split_at_mut_checked(now).unwrap_or_default();
                    memory.read(at, part)?;
                    front = rest;
                    at = at.wrapping_add(now as u64);
                    len = len.saturating_sub(u32::try_from(now).unwrap_or(u32::MAX));
                }
                readable = readable.saturating_add(u64::from(len));
            }
            if len > 0 {
                data.push(Segment { at: GuestAddress(at), len });
            }
        }
        if !front.is_empty() {
            return Err(Fault::Request { what: "less than a header" });
        }
        // The status is the last byte of what is for the device to write.
        let last = data.last_mut().filter(|_| writable > 0);
        let Some(Segment { at, len }) = last else {
            return Err(Fault::Request { what: "no room for a status" });
        };
        *len = len.saturating_sub(1);
        let status = at.0.wrapping_add(u64::from(*len));
        if *len == 0 {
            data.pop();
        }
        if memory.find(status, 1).is_none() {
            return Err(Fault::Outside { at: status, len: 1 });
        }
        let writable = writable.saturating_sub(1);
        Ok(Self { asked: Asking { header: Header::decode(&header), readable, writable }, status })
    }
}
