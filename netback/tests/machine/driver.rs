//! A driver's end of one virtqueue, in the machine's memory.

use std::os::fd::AsFd as _;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::monitor::{GUEST, Memory, Monitor, pair, request};
use super::scene::eventually;

/// Entries of each queue.
pub(crate) const SIZE: u16 = 64;
/// Bytes for a queue's own parts, and for its data.
const OWN: u64 = 0x4000;
const DATA: u64 = 0x10_0000;

/// Flags of descriptors.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// One queue.
pub(crate) struct Queue {
    pub(crate) memory: Memory,
    number: u32,
    kick: EventFd,
    call: EventFd,
    /// Heads shown, and chains seen to be given back.
    shown: u16,
    pub(crate) seen: u16,
}

impl Queue {
    /// Queue `number`, set up with the device from where its used ring stands.
    pub(crate) fn new(monitor: &mut Monitor, number: u32) -> Self {
        let memory = monitor.memory.clone();
        let flags = EfdFlags::EFD_NONBLOCK;
        let [kick, call] = [0; 2].map(|n| EventFd::from_value_and_flags(n, flags).unwrap());
        let mut queue = Self { memory, number, kick, call, shown: 0, seen: 0 };
        queue.shown = queue.index(queue.available());
        queue.seen = queue.index(queue.used());
        queue.set_up(monitor, queue.seen);
        queue
    }

    /// Says all of it to the device, with the position `base`.
    pub(crate) fn set_up(&self, monitor: &mut Monitor, base: u16) {
        let number = self.number;
        monitor.tell(request::SET_VRING_NUM, &pair(number, SIZE.into()), &[]);
        monitor.place(number, [self.descriptors(), self.available(), self.used()]);
        monitor.tell(request::SET_VRING_BASE, &pair(number, base.into()), &[]);
        let about = u64::from(number).to_ne_bytes();
        monitor.tell(request::SET_VRING_CALL, &about, &[self.call.as_fd()]);
        monitor.tell(request::SET_VRING_KICK, &about, &[self.kick.as_fd()]);
        monitor.tell(request::SET_VRING_ENABLE, &pair(number, 1), &[]);
    }

    /// Has the device stop it; says at which position it stands.
    pub(crate) fn stop(&self, monitor: &mut Monitor) -> u32 {
        let answer = monitor.ask(request::GET_VRING_BASE, &pair(self.number, 0));
        u32::from_ne_bytes(answer[4..8].try_into().unwrap())
    }

    pub(crate) fn descriptors(&self) -> u64 {
        GUEST + u64::from(self.number) * OWN
    }

    pub(crate) fn available(&self) -> u64 {
        self.descriptors() + 0x1000
    }

    fn used(&self) -> u64 {
        self.descriptors() + 0x2000
    }

    /// Where its data is.
    pub(crate) fn data(&self) -> u64 {
        GUEST + 0x10_0000 + u64::from(self.number) * DATA
    }

    fn index(&self, ring: u64) -> u16 {
        u16::from_le_bytes(self.memory.read(ring + 2))
    }

    /// Writes a descriptor.
    pub(crate) fn describe(&self, n: u16, at: u64, len: u32, flags: u16, next: u16) {
        let place = self.descriptors() + u64::from(n) * 16;
        self.memory.write(place, &descriptor(at, len, flags, next));
    }

    /// Shows the chain of `head`, and tells of it.
    pub(crate) fn show(&mut self, head: u16) {
        let at = self.available() + 4 + u64::from(self.shown % SIZE) * 2;
        self.memory.write(at, &head.to_le_bytes());
        self.shown = self.shown.wrapping_add(1);
        self.show_index(self.shown);
    }

    /// Says that so many are shown, and tells of it.
    pub(crate) fn show_index(&self, index: u16) {
        self.memory.write(self.available() + 2, &index.to_le_bytes());
        self.kick.write(1).unwrap();
    }

    /// The next chain that was given back, and how much was written into it.
    pub(crate) fn next(&mut self) -> Option<(u32, u32)> {
        if self.index(self.used()) == self.seen {
            return None;
        }
        let at = self.used() + 4 + u64::from(self.seen % SIZE) * 8;
        let entry: [u8; 8] = self.memory.read(at);
        self.seen = self.seen.wrapping_add(1);
        let (id, len) = entry.split_at(4);
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        Some((number(id), number(len)))
    }

    /// The same, waited for.
    pub(crate) fn wait(&mut self) -> (u32, u32) {
        let mut found = None;
        eventually("a chain is given back", || {
            found = self.next();
            found.is_some()
        });
        found.unwrap()
    }

    /// Sends bytes, header included, in buffers of these sizes and one for the rest, by way of an indirect table
    /// or not. One packet at a time; waits until it is taken.
    pub(crate) fn send(&mut self, bytes: &[u8], sizes: &[usize], indirect: bool) {
        let mut rest = bytes;
        let mut table = Vec::new();
        let mut at = self.data();
        for size in sizes.iter().copied().chain([usize::MAX]) {
            let (now, after) = rest.split_at(size.min(rest.len()));
            if now.is_empty() {
                continue;
            }
            self.memory.write(at, now);
            table.push((at, now.len() as u32));
            // They do not follow each other.
            at += now.len() as u64 + 3;
            rest = after;
        }
        let last = table.len() - 1;
        let flags = |n: usize| if n < last { NEXT } else { 0 };
        if indirect {
            let place = self.data() + DATA - 0x1000;
            for (n, (at, len)) in table.iter().enumerate() {
                let entry = descriptor(*at, *len, flags(n), n as u16 + 1);
                self.memory.write(place + n as u64 * 16, &entry);
            }
            self.describe(7, place, table.len() as u32 * 16, INDIRECT, 0);
        } else {
            for (n, (at, len)) in table.iter().enumerate() {
                self.describe(n as u16 + 7, *at, *len, flags(n), n as u16 + 8);
            }
        }
        self.show(7);
        assert_eq!(self.wait(), (7, 0));
    }

    /// Posts the room `n` of `len` bytes, cut into two buffers.
    pub(crate) fn post(&mut self, n: u16, len: u32) {
        let (at, first) = (self.data() + u64::from(n) * 0x8000, len.div_ceil(3));
        self.describe(2 * n, at, first, NEXT | WRITE, 2 * n + 1);
        self.describe(2 * n + 1, at + u64::from(first), len - first, WRITE, 0);
        self.show(2 * n);
    }

    /// The next packet that came, header included, in rooms that were posted.
    pub(crate) fn receive(&mut self) -> Vec<u8> {
        let first = self.wait();
        let mut bytes = self.room(first);
        let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
        for _ in 1..buffers {
            let next = self.wait();
            bytes.extend(self.room(next));
        }
        bytes
    }

    fn room(&self, (head, len): (u32, u32)) -> Vec<u8> {
        self.memory.bytes(self.data() + u64::from(head / 2) * 0x8000, len as usize)
    }
}

pub(crate) fn descriptor(at: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&at.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
