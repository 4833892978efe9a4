//! Where a packet lies while it is here, and the pool that such places come from.
//!
//! ```text
//!  0                          start - 12       start                          start + ROOM
//!  +--------------------------+----------------+------------------------------+----------+
//!  | not used                 | vnet header    | packet                       | not used |
//!  +--------------------------+----------------+------------------------------+----------+
//! ```
//!
//! The header stands right in front of the packet, so that a port moves both in one piece. The packet
//! begins with a page: where a guest's pages are filled from their start, a copy into one is then
//! within one page of ours too, which otherwise is two copies to Xen. A packet that comes from a guest
//! begins where this is so for the whole pages in it.
//!
//! Packets are private copies: once one is here, no peer can reach it. Units: bytes.
#![expect(unsafe_code, reason = "a packet is handed to the kernel by its address")]

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use ::uring::{Buffers, Piece};
use hypervisor::PAGE_SIZE;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::vnet::{Form, Header};

/// In front of a packet, at least; at most a page more.
const HEADROOM: usize = PAGE_SIZE;
/// For a packet: 17 pages have [`MAX_RX_SIZE`](ring::wire::netif::MAX_RX_SIZE).
pub const ROOM: usize = 17 * PAGE_SIZE;
const LENGTH: NonZeroUsize = match NonZeroUsize::new(HEADROOM + PAGE_SIZE + ROOM) {
    Some(length) => length,
    None => NonZeroUsize::MIN,
};

/// Room for one packet and its header.
#[derive(Debug)]
pub struct Buffer {
    base: *mut u8,
    /// Where the packet begins.
    start: usize,
    /// Of the packet.
    len: usize,
    /// What the kernel is handed.
    piece: Piece,
}

// SAFETY: the mapping is this value's alone and is not bound to a thread.
unsafe impl Send for Buffer {}

// SAFETY: the piece lies in a mapping that lives as long as `self` and stays where it is when
// `self` is moved. References into it borrow `self`, so none is left when that is handed over; and
// the piece is changed by methods only that need `self` themselves.
unsafe impl Buffers for Buffer {
    fn pieces(&self) -> &[Piece] {
        std::slice::from_ref(&self.piece)
    }
}

impl Buffer {
    /// Room with an empty packet; `None` where there is no memory. Pages of it that no packet ever
    /// reached take none.
    #[must_use]
    pub fn new() -> Option<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE;
        // SAFETY: the kernel chooses a place where nothing is yet.
        let base = unsafe { mmap_anonymous(None, LENGTH, protection, flags) }.ok()?;
        let base = base.as_ptr().cast::<u8>();
        let mut new =
            Self { base, start: HEADROOM, len: 0, piece: Piece { base, len: 0, fixed: None } };
        new.name(0, Form::Whole);
        Some(new)
    }

    /// Makes the kernel see a header of that form and `len` bytes.
    fn name(&mut self, len: usize, form: Form) {
        self.piece.base = self.base.wrapping_add(self.start.saturating_sub(form.size()));
        // At most a few pages.
        self.piece.len = u32::try_from(len.saturating_add(form.size())).unwrap_or(0);
    }

    /// The packet.
    #[inline]
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        // SAFETY: `start` is at most HEADROOM and a page, and `len` at most ROOM, so the bytes lie in the
        // mapping, which was zero when made; they are borrowed with `self`, and nobody else has the address of a buffer that is here.
        unsafe { std::slice::from_raw_parts(self.base.wrapping_add(self.start), self.len) }
    }

    /// The packet, to be changed.
    #[inline]
    #[must_use]
    pub fn packet_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `packet`; `self` is borrowed for as long, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.base.wrapping_add(self.start), self.len) }
    }

    /// How long the packet is.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes the packet begin so that what comes `before` bytes behind its first one begins a page. It is
    /// empty then.
    #[inline]
    pub fn lay(&mut self, before: usize) {
        let into = before % PAGE_SIZE;
        let gap = if into == 0 { 0 } else { PAGE_SIZE.saturating_sub(into) };
        self.start = HEADROOM.saturating_add(gap);
        self.set_len(0);
    }

    /// Makes the packet so long, [`ROOM`] at most, with whatever is there.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(ROOM);
        self.name(self.len, Form::Whole);
    }

    /// Makes the packet these bytes, as far as there is room.
    pub fn fill(&mut self, header: &Header, packet: &[u8]) {
        self.set_len(packet.len());
        let fits = packet.get(..self.len).unwrap_or_default();
        self.packet_mut().copy_from_slice(fits);
        self.set_header(header);
    }

    /// The header in front of the packet.
    #[inline]
    #[must_use]
    pub fn header(&self) -> Header {
        let at = self.start.saturating_sub(Header::SIZE);
        // SAFETY: the bytes lie in the mapping, in front of the packet; as in `packet`.
        let bytes = unsafe { self.base.wrapping_add(at).cast::<[u8; Header::SIZE]>().read() };
        Header::decode(&bytes)
    }

    /// Writes the header in front of the packet.
    #[inline]
    pub fn set_header(&mut self, header: &Header) {
        let at = self.start.saturating_sub(Header::SIZE);
        let place = self.base.wrapping_add(at).cast::<[u8; Header::SIZE]>();
        // SAFETY: as in `header`; bytes have no alignment and nothing to drop.
        unsafe { place.write(header.encode()) };
    }

    /// Has the kernel see the packet behind a header of that form.
    #[inline]
    pub(crate) fn show(&mut self, form: Form) {
        if form == Form::Short {
            let header = self.header().encode();
            let [short @ .., _, _] = header;
            self.put_short(short);
        }
        self.name(self.len, form);
    }

    /// Has the kernel see all the room there is, with a header of that form.
    #[inline]
    pub(crate) fn open(&mut self, form: Form) {
        self.name(ROOM, form);
    }

    /// Takes in how much the kernel has put there, header included. Says whether that is a packet.
    #[inline]
    pub(crate) fn close(&mut self, moved: u64, form: Form) -> bool {
        let packet = usize::try_from(moved)
            .unwrap_or(usize::MAX)
            .checked_sub(form.size())
            .filter(|len| *len <= ROOM);
        if form == Form::Short {
            let [a, b, c, d, e, f, g, h, i, j] = self.short();
            self.set_header(&Header::decode(&[a, b, c, d, e, f, g, h, i, j, 0, 0]));
        }
        self.set_len(packet.unwrap_or(0));
        packet.is_some()
    }

    fn short(&self) -> [u8; Header::SHORT] {
        let at = self.base.wrapping_add(self.start.saturating_sub(Header::SHORT));
        // SAFETY: as in `header`.
        unsafe { at.cast::<[u8; Header::SHORT]>().read() }
    }

    fn put_short(&mut self, bytes: [u8; Header::SHORT]) {
        let at = self.base.wrapping_add(self.start.saturating_sub(Header::SHORT));
        // SAFETY: as in `set_header`.
        unsafe { at.cast::<[u8; Header::SHORT]>().write(bytes) };
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(base) = NonNull::new(self.base) {
            // SAFETY: mapped in `new` with this length, and unmapped only here. It cannot fail for
            // what was mapped whole.
            let _ = unsafe { munmap(base.cast(), LENGTH.get()) };
        }
    }
}

/// Buffers that are not in use, most recently used first: those are still in a processor's cache.
#[derive(Debug)]
pub struct Pool {
    free: Vec<Buffer>,
    /// How many may yet be made.
    unmade: usize,
    /// How many there are beyond that, from elsewhere.
    surplus: usize,
}

impl Pool {
    /// Buffers to be made when they are first needed, `most` of them at most.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { free: Vec::with_capacity(most), unmade: most, surplus: 0 }
    }

    /// An empty buffer; `None` where all are in use.
    #[inline]
    pub fn take(&mut self) -> Option<Buffer> {
        if let Some(mut buffer) = self.free.pop() {
            buffer.lay(0);
            return Some(buffer);
        }
        self.unmade = self.unmade.checked_sub(1)?;
        let made = Buffer::new();
        if made.is_none() {
            self.unmade = self.unmade.saturating_add(1);
        }
        made
    }

    /// Takes one back.
    #[inline]
    pub fn put(&mut self, buffer: Buffer) {
        match self.surplus.checked_sub(1) {
            Some(less) => self.surplus = less,
            None => self.free.push(buffer),
        }
    }

    /// One that was taken will not come back: it went to another pool.
    pub fn give_away(&mut self) {
        match self.surplus.checked_sub(1) {
            Some(less) => self.surplus = less,
            None => self.unmade = self.unmade.saturating_add(1),
        }
    }

    /// One will be put here that was taken from another pool.
    pub fn adopt(&mut self) {
        match self.unmade.checked_sub(1) {
            Some(less) => self.unmade = less,
            None => self.surplus = self.surplus.saturating_add(1),
        }
    }

    /// How many can be taken.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len().saturating_add(self.unmade)
    }

    /// Frees the memory of those that are not in use.
    pub fn free_unused(&mut self) {
        self.unmade = self.unmade.saturating_add(self.free.len());
        self.free.clear();
    }

    /// Whether it keeps memory that is not in use.
    #[must_use]
    pub fn keeps_any(&self) -> bool {
        !self.free.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::wire::netif::MAX_RX_SIZE;

    #[test]
    fn the_largest_packet_has_room() {
        const { assert!(ROOM >= MAX_RX_SIZE) };
        let mut buffer = Buffer::new().unwrap();
        buffer.set_len(usize::MAX);
        assert_eq!(buffer.len(), ROOM);
        let last = buffer.packet_mut().last_mut().unwrap();
        *last = 7;
        assert_eq!(buffer.packet().as_ptr().addr() % PAGE_SIZE, 0);
    }

    #[test]
    fn what_comes_behind_so_many_bytes_begins_a_page() {
        let mut pool = Pool::new(1);
        for before in [0, 1, 66, 4095, 4096, 4097, usize::MAX] {
            let mut buffer = pool.take().unwrap();
            assert!(buffer.is_empty());
            buffer.lay(before);
            buffer.set_len(ROOM);
            buffer.packet_mut().fill(7);
            buffer.set_header(&Header { flags: 1, ..Default::default() });
            let first = buffer.packet().as_ptr().addr();
            assert_eq!(first.wrapping_add(before) % PAGE_SIZE, 0, "{before}");
            assert_eq!((buffer.packet(), buffer.header().flags), (&[7; ROOM][..], 1));
            let piece = buffer.pieces()[0];
            assert_eq!((piece.base.addr(), piece.len as usize), (first - 12, ROOM + 12));
            pool.put(buffer);
        }
        assert_eq!(pool.take().unwrap().packet().as_ptr().addr() % PAGE_SIZE, 0, "as new");
    }

    #[test]
    fn the_header_stands_in_front_of_the_packet() {
        let mut buffer = Buffer::new().unwrap();
        let header = Header { flags: 1, csum_start: 34, csum_offset: 16, ..Default::default() };
        buffer.fill(&header, b"packet");
        assert_eq!((buffer.header(), buffer.packet()), (header, &b"packet"[..]));
        let piece = buffer.pieces()[0];
        assert_eq!(piece.len, 18);
        // SAFETY: the piece is ours, and no reference to it is in use.
        let seen = unsafe { std::slice::from_raw_parts(piece.base, 18) };
        assert_eq!(seen[..12], header.encode());
        assert_eq!(&seen[12..], b"packet");
    }

    #[test]
    fn what_the_kernel_moved_is_checked() {
        let mut buffer = Buffer::new().unwrap();
        for (moved, packet) in [(0, None), (11, None), (12, Some(0)), (30, Some(18))] {
            buffer.open(Form::Whole);
            assert_eq!(buffer.pieces()[0].len as usize, ROOM + 12);
            assert_eq!(buffer.close(moved, Form::Whole), packet.is_some());
            assert_eq!(buffer.len(), packet.unwrap_or(0));
        }
        assert!(!buffer.close(u64::MAX, Form::Whole));
    }

    #[test]
    fn a_short_header_stands_right_in_front_of_the_packet_too() {
        let mut buffer = Buffer::new().unwrap();
        let header = Header { flags: 1, gso_size: 77, csum_offset: 0x0910, ..Default::default() };
        buffer.fill(&header, b"packet");
        buffer.show(Form::Short);
        let piece = buffer.pieces()[0];
        assert_eq!(piece.len, 16);
        // SAFETY: the piece is ours, and no reference to it is in use.
        let seen = unsafe { std::slice::from_raw_parts(piece.base, 16) }.to_vec();
        assert_eq!(seen, [&header.encode()[..10], b"packet"].concat());
        buffer.set_header(&Header::default());
        buffer.show(Form::Short);
        buffer.open(Form::Short);
        let piece = buffer.pieces()[0];
        // SAFETY: as the kernel would, into a piece that is ours.
        unsafe { std::ptr::copy_nonoverlapping(seen.as_ptr(), piece.base, 16) };
        assert!(buffer.close(16, Form::Short));
        assert_eq!((buffer.header(), buffer.packet()), (header, &b"packet"[..]));
    }

    #[test]
    fn a_pool_has_an_end_and_gives_memory_back() {
        let mut pool = Pool::new(2);
        let (one, two) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none());
        pool.put(one);
        assert!(pool.keeps_any());
        pool.free_unused();
        assert_eq!((pool.keeps_any(), pool.available()), (false, 1));
        pool.put(two);
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn buffers_that_change_pools_are_as_many_in_the_end() {
        let (mut from, mut to) = (Pool::new(2), Pool::new(1));
        for _ in 0..10 {
            let buffers = [from.take().unwrap(), from.take().unwrap()];
            for buffer in buffers {
                from.give_away();
                to.adopt();
                to.put(buffer);
            }
            assert_eq!((from.available(), to.available()), (2, 1));
        }
    }
}
