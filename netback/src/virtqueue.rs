//! A virtqueue of a network device: chains of buffers, taken and given back in order.
//!
//! A chain is walked once, when its head is taken, and each of its buffers is looked up then; what the driver
//! writes into descriptors afterwards changes nothing. Chains are given back in the order in which they were
//! taken. So what the used ring counts is all that there is to know of a queue that somebody else served
//! before, and it is gone on with from there: what that one had taken and not given back is taken once more. At
//! worst a packet is sent twice; none is given back twice, or never.
//!
//! Before: `connect/vhost_user`. After: `tx::virtio`, `rx::virtio`. Trust: the driver's every word. A rule of the
//! queue that it broke, and a buffer where it has no memory, is a [`PeerFault`] and ends the queue. Source: virtio
//! 1.2, 2.7. Units: bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use hypervisor::memory::{Memory as _, Ram as _};
use hypervisor::vhost_user::{EVENT_INDEX, Parts, Region, Span, Table};
use hypervisor::{Peer, PeerFault};
use ring::split::{self, Area, Buffer, Device, Fault, Head};
use ring::{Notify, Recheck};

/// What a chain's buffers are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// For the device to read.
    Read,
    /// For it to write.
    Write,
}

/// Part of a buffer, in one region of the machine's memory.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    region: usize,
    offset: usize,
    /// How many bytes.
    pub len: usize,
    /// The machine's address of it.
    at: u64,
}

impl Piece {
    /// Its first `len` bytes, and the others.
    #[must_use]
    pub fn split(self, len: usize) -> (Self, Self) {
        let len = len.min(self.len);
        let mut rest = self;
        rest.offset = rest.offset.saturating_add(len);
        rest.at = rest.at.saturating_add(len as u64);
        rest.len = rest.len.saturating_sub(len);
        (Self { len, ..self }, rest)
    }
}

/// A chain that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How many pieces its buffers are.
    pub pieces: usize,
    /// Bytes of those.
    pub bytes: usize,
}

/// The device's end of one queue.
#[derive(Debug)]
pub struct Virtqueue {
    device: Device<Arc<Region>>,
    memory: Arc<Table>,
    /// The machine's address of the used ring, where writes to it are noted.
    noted: Option<u64>,
    /// Taken and not given back, oldest first.
    owed: VecDeque<Head>,
    /// Where it is told at the end how many chains were given back.
    position: Arc<AtomicU16>,
}

impl Virtqueue {
    /// The queue that `parts` are. At its end, `position` has the number of chains that are dealt with.
    ///
    /// # Errors
    ///
    /// There cannot be a queue like that.
    pub fn attach(parts: &Parts, position: Arc<AtomicU16>) -> Result<Self, PeerFault> {
        Self::open(parts, position).map_err(|fault| fault.by(Peer::Machine))
    }

    fn open(parts: &Parts, position: Arc<AtomicU16>) -> Result<Self, Fault> {
        let size = u16::try_from(parts.size).map_err(|_| Fault::Size { size: parts.size })?;
        let area = |part, span: &Span, align| -> Result<Area<Arc<Region>>, Fault> {
            let made = Area::new(Arc::clone(&span.region), span.offset, span.len, align);
            made.ok_or(Fault::Short { part, have: span.len, size })
        };
        let ends = (
            area("descriptors", &parts.descriptors, 16)?,
            area("available ring", &parts.available, 2)?,
            area("used ring", &parts.used, 4)?,
        );
        let used = ends.2.index();
        let device = Device::new(parts.size, ends, parts.features & EVENT_INDEX != 0, used)?;
        let owed = VecDeque::with_capacity(size.into());
        Ok(Self { device, memory: Arc::clone(&parts.memory), noted: parts.noted, owed, position })
    }

    /// Takes the next chain, if there is one, all of whose buffers must be for `way`. The first bytes go to
    /// `front`, as many as it has room for, and where the others lie is appended to `pieces`.
    ///
    /// # Errors
    ///
    /// The driver broke a rule of the queue, or the chain has not even those first bytes.
    #[inline]
    pub fn take(
        &mut self,
        way: Way,
        front: &mut [u8],
        pieces: &mut VecDeque<Piece>,
    ) -> Result<Option<Taken>, PeerFault> {
        self.next(way, front, pieces).map_err(|fault| fault.by(Peer::Machine))
    }

    #[inline]
    fn next(
        &mut self,
        way: Way,
        front: &mut [u8],
        pieces: &mut VecDeque<Piece>,
    ) -> Result<Option<Taken>, Fault> {
        let Some(head) = self.device.take()? else { return Ok(None) };
        let before = pieces.len();
        let walked = walk(&self.device, &head, &self.memory, way, front, pieces);
        match walked {
            Ok(bytes) => {
                self.owed.push_back(head);
                Ok(Some(Taken { pieces: pieces.len().saturating_sub(before), bytes }))
            }
            Err(fault) => {
                head.abandon();
                pieces.truncate(before);
                Err(fault)
            }
        }
    }

    /// Takes the next chain, if there is one, as a command: what is for the device to read goes to `command`, `most`
    /// bytes of it at most. Says where the first byte is that the device may write.
    ///
    /// # Errors
    ///
    /// The driver broke a rule of the queue, or there is no such byte.
    pub fn ask(&mut self, command: &mut Vec<u8>, most: usize) -> Result<Option<u64>, PeerFault> {
        let mut asked = |queue: &mut Self| {
            let Some(head) = queue.device.take()? else { return Ok(None) };
            match command_of(&queue.device, &head, &queue.memory, command, most) {
                Ok(at) => {
                    queue.owed.push_back(head);
                    Ok(Some(at))
                }
                Err(fault) => {
                    head.abandon();
                    Err(fault)
                }
            }
        };
        asked(self).map_err(|fault: Fault| fault.by(Peer::Machine))
    }

    /// Gives the oldest chain back that is owed, with `answer` in the byte at `at`.
    pub fn answer(&mut self, at: u64, answer: u8) {
        // It was looked up, as in `read`.
        let _ = self.memory.write(at, &[answer]);
        self.give_back(1);
    }

    /// Copies what is in `piece`, which is as long as `into`.
    #[inline]
    pub fn read(&self, piece: Piece, into: &mut [u8]) {
        if let Some(region) = self.memory.regions().get(piece.region) {
            // It was looked up, and the table is the same for as long as this value lives.
            let _ = region.read_at(piece.offset, into);
        }
    }

    /// Copies `from` to the beginning of `piece`, which is at least as long.
    #[inline]
    pub fn write(&self, piece: Piece, from: &[u8]) {
        if let Some(region) = self.memory.regions().get(piece.region) {
            // As in `read`.
            let _ = region.write_at(piece.offset, from);
        }
        self.memory.wrote(piece.at, from.len() as u64);
    }

    /// Gives the oldest chain back that is owed, with `len` bytes written into it.
    #[inline]
    pub fn give_back(&mut self, len: usize) {
        if let Some(head) = self.owed.pop_front() {
            self.device.give_back(head, u32::try_from(len).unwrap_or(u32::MAX));
        }
    }

    /// Shows the driver what was given back, and says whether it wants to be notified.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        let wanted = self.device.publish();
        self.note_used();
        wanted
    }

    /// Asks to be notified of the next chain, and looks once more.
    ///
    /// # Errors
    ///
    /// The driver's index cannot be.
    pub fn rearm(&mut self) -> Result<Recheck, PeerFault> {
        let recheck = self.device.rearm().map_err(|fault| fault.by(Peer::Machine))?;
        self.note_used();
        Ok(recheck)
    }

    /// Chains that were taken and are not given back.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Notes that the used ring was written: all of it, which is a few pages.
    #[inline]
    fn note_used(&self) {
        if let Some(at) = self.noted {
            self.memory.wrote(at, split::used_bytes(self.device.size()) as u64);
        }
    }
}

impl Drop for Virtqueue {
    fn drop(&mut self) {
        self.owed.drain(..).for_each(Head::abandon);
        self.position.store(self.device.published(), Ordering::Release);
    }
}

/// Walks the chain of `head`. Says how many bytes its pieces have.
#[inline]
fn walk(
    device: &Device<Arc<Region>>,
    head: &Head,
    memory: &Table,
    way: Way,
    mut front: &mut [u8],
    pieces: &mut VecDeque<Piece>,
) -> Result<usize, Fault> {
    let (mut bytes, mut buffers) = (0_usize, 0_u32);
    for buffer in device.chain(head, memory) {
        let Buffer { mut at, len, writable } = buffer?;
        buffers = buffers.saturating_add(1);
        if buffers > split::MOST_BUFFERS {
            return Err(Fault::Loop { most: split::MOST_BUFFERS });
        }
        if writable != (way == Way::Write) {
            let what = match way {
                Way::Read => "a buffer to write in a packet to send",
                Way::Write => "a buffer to read in the room for a packet",
            };
            return Err(Fault::Request { what });
        }
        let mut len = u64::from(len);
        let outside = Fault::Outside { at, len };
        let now = front.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        if now > 0 {
            let (part, rest) = front.split_at_mut_checked(now).unwrap_or_default();
            memory.read(at, part)?;
            front = rest;
            at = at.checked_add(now as u64).ok_or(outside)?;
            len = len.saturating_sub(now as u64);
        }
        while len > 0 {
            let (region, offset, found) = memory.find(at, len).ok_or(outside)?;
            let now = usize::try_from(found).map_err(|_| outside)?;
            pieces.push_back(Piece { region, offset, len: now, at });
            bytes = bytes.saturating_add(now);
            at = at.checked_add(found).ok_or(outside)?;
            len = len.saturating_sub(found);
        }
    }
    if front.is_empty() { Ok(bytes) } else { Err(Fault::Request { what: "less than a header" }) }
}

/// Copies what the chain of `head` asks. Says where the answer goes.
fn command_of(
    device: &Device<Arc<Region>>,
    head: &Head,
    memory: &Table,
    command: &mut Vec<u8>,
    most: usize,
) -> Result<u64, Fault> {
    command.clear();
    let mut answer = None;
    for buffer in device.chain(head, memory) {
        let Buffer { at, len, writable } = buffer?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if writable {
            answer = answer.or_else(|| (len > 0).then_some(at));
            continue;
        }
        let before = command.len();
        command.resize(before.saturating_add(len).min(most), 0);
        memory.read(at, command.get_mut(before..).unwrap_or_default())?;
    }
    let at = answer.ok_or(Fault::Request { what: "no room for an answer" })?;
    memory.find(at, 1).map(|_| at).ok_or(Fault::Outside { at, len: 1 })
}
