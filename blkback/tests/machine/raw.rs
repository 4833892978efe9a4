//! A monitor and a driver that do what a test says, and nothing to keep it from being wrong.
//!
//! The machine's memory is a file. What the device maps of it is written and read here by calls, so that nothing
//! is mapped on this side.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use ring::wire::virtio_blk::Header;

use crate::served::PATIENCE;

/// `VHOST_USER_*`.
pub(crate) mod request {
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const RESET_OWNER: u32 = 4;
    pub(crate) const SET_LOG_BASE: u32 = 6;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const GET_INFLIGHT_FD: u32 = 31;
    pub(crate) const RESET_DEVICE: u32 = 34;
    pub(crate) const ADD_MEM_REG: u32 = 37;
    pub(crate) const REM_MEM_REG: u32 = 38;
    pub(crate) const SET_STATUS: u32 = 39;
    pub(crate) const GET_STATUS: u32 = 40;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
}

/// `VIRTIO_F_VERSION_1`, `VIRTIO_RING_F_INDIRECT_DESC` and `VHOST_USER_F_PROTOCOL_FEATURES`.
pub(crate) const BASIC: u64 = 1 << 32 | 1 << 28 | 1 << 30;
/// `MQ`, `LOG_SHMFD`, `REPLY_ACK`, `BACKEND_REQ`, `CONFIG`, `INFLIGHT_SHMFD`, `RESET_DEVICE`,
/// `CONFIGURE_MEM_SLOTS` and `STATUS`.
pub(crate) const PROTOCOL: u64 =
    1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16;

/// Where the monitor has the machine's address 0.
pub(crate) const USER: u64 = 0x7000_0000_0000;
/// A message wants to be answered.
const NEED_REPLY: u32 = 1 << 3;

/// A message with `payload` and no descriptors.
pub(crate) fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let words = [request, flags, len].map(u32::to_ne_bytes).concat();
    [words, payload.to_vec()].concat()
}

pub(crate) fn words(all: &[u64]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(crate) fn halves(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(crate) fn event() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap()
}

/// Memory that can be lent.
pub(crate) fn memory(len: u64) -> File {
    let file = File::from(memfd_create("test-ram", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

/// Whether it can be read from, within `ms`.
pub(crate) fn readable(fd: BorrowedFd<'_>, ms: u16) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::from(ms)).unwrap() > 0
}

/// A machine, and the connection of its monitor.
pub(crate) struct Machine {
    pub(crate) socket: UnixStream,
    pub(crate) ram: File,
    /// Where the device tells the monitor something.
    pub(crate) told: UnixStream,
}

impl Machine {
    /// One with `len` bytes of memory, which has agreed on `features` and all that the protocol offers.
    pub(crate) fn new(path: &Path, features: u64, len: u64) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut machine, theirs) = (Self::over(socket, len), UnixStream::pair().unwrap());
        machine.told = theirs.0;
        machine.tell(request::SET_FEATURES, &words(&[features | BASIC]), &[]);
        machine.tell(request::SET_PROTOCOL_FEATURES, &words(&[PROTOCOL]), &[]);
        machine.done(request::SET_BACKEND_REQ_FD, &[], &[theirs.1.as_fd()]);
        let lent = words(&[0, 0, len, USER, 0]);
        machine.done(request::ADD_MEM_REG, &lent, &[machine.ram.as_fd()]);
        machine
    }

    /// One over a connection on which nothing was said yet.
    pub(crate) fn over(socket: UnixStream, len: u64) -> Self {
        let told = UnixStream::pair().unwrap().0;
        Self { socket, ram: memory(len), told }
    }

    fn send(&self, bytes: &[u8], beside: &[BorrowedFd<'_>]) {
        let raw: Vec<_> = beside.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let parts = [IoSlice::new(bytes)];
        let fd = self.socket.as_raw_fd();
        assert_eq!(sendmsg::<()>(fd, &parts, control, MsgFlags::empty(), None), Ok(bytes.len()));
    }

    /// Says something that is not answered.
    pub(crate) fn tell(&self, request: u32, payload: &[u8], beside: &[BorrowedFd<'_>]) {
        self.send(&message(request, 1, payload), beside);
    }

    /// Asks for something.
    pub(crate) fn ask(&self, request: u32, payload: &[u8]) -> Vec<u8> {
        self.tell(request, payload, &[]);
        self.answer(request)
    }

    /// Asks for a number.
    pub(crate) fn number(&self, request: u32) -> u64 {
        u64::from_ne_bytes(self.ask(request, &[]).try_into().unwrap())
    }

    /// Says something; whether it was done comes back.
    pub(crate) fn is_done(&self, request: u32, body: &[u8], beside: &[BorrowedFd<'_>]) -> bool {
        self.send(&message(request, 1 | NEED_REPLY, body), beside);
        self.answer(request) == [0; 8]
    }

    /// Says something that has to be done.
    pub(crate) fn done(&self, request: u32, payload: &[u8], beside: &[BorrowedFd<'_>]) {
        assert!(self.is_done(request, payload, beside), "request {request} was not done");
    }

    /// The answer to `request`.
    pub(crate) fn answer(&self, request: u32) -> Vec<u8> {
        let mut header = [0; 12];
        (&self.socket).read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (request, 5));
        let mut payload = vec![0; word(8) as usize];
        (&self.socket).read_exact(&mut payload).unwrap();
        payload
    }

    /// The descriptor beside the answer to `request`.
    pub(crate) fn answer_beside(&self, request: u32) -> File {
        let (mut header, mut space) = ([0; 12], nix::cmsg_space!([i32; 1]));
        let mut parts = [IoSliceMut::new(&mut header)];
        let fd = self.socket.as_raw_fd();
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<()>(fd, &mut parts, Some(&mut space), flags).unwrap();
        let mut beside = None;
        for part in got.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(all) = part {
                // SAFETY: the kernel has just made this descriptor for us.
                beside = all.first().map(|fd| unsafe { File::from_raw_fd(*fd) });
            }
        }
        assert_eq!(header[..4], request.to_ne_bytes());
        let mut payload = vec![0; usize::from(header[8])];
        (&self.socket).read_exact(&mut payload).unwrap();
        beside.expect("a descriptor")
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.write_all_at(bytes, at).unwrap();
    }

    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }
}

/// A buffer of a chain: where, how long, and whether the device writes there.
pub(crate) type Part = (u64, u32, bool);

/// A queue, driver's side.
pub(crate) struct Driver<'a> {
    pub(crate) machine: &'a Machine,
    number: u32,
    /// Where its descriptors, its available ring and its used ring lie.
    places: [u64; 3],
    size: u16,
    next: u16,
    available: u16,
    used: u16,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    pub(crate) error: EventFd,
}

/// Flags of descriptors.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Bytes from one part of a small queue to the next.
const PART: u64 = 4096;

impl<'a> Driver<'a> {
    /// Queue `number`, of `size` entries, which takes three pages of `machine`'s memory from `at` on.
    pub(crate) fn new(machine: &'a Machine, number: u32, at: u64, size: u16) -> Self {
        Self::spread(machine, number, [at, at + PART, at + 2 * PART], size)
    }

    /// One whose descriptors, available ring and used ring lie at `places`.
    pub(crate) fn spread(machine: &'a Machine, number: u32, places: [u64; 3], size: u16) -> Self {
        for (at, unit) in places.into_iter().zip([16, 2, 8]) {
            machine.write(at, &vec![0; 6 + unit * usize::from(size)]);
        }
        let mut driver = Self {
            machine,
            number,
            places,
            size,
            next: 0,
            available: 0,
            used: 0,
            kick: event(),
            call: event(),
            error: event(),
        };
        driver.start(0, None);
        driver
    }

    /// Sets it up, from entry `base` on. With `log`, what is written to its used ring is to be noted there.
    pub(crate) fn start(&mut self, base: u16, log: Option<u64>) {
        let Self { machine, number, .. } = *self;
        let [descriptors, available, used] = self.places.map(|at| USER + at);
        (self.available, self.used) = (base, base);
        machine.done(request::SET_VRING_NUM, &halves(&[number, self.size.into()]), &[]);
        machine.done(request::SET_VRING_BASE, &halves(&[number, base.into()]), &[]);
        let places = words(&[descriptors, used, available, log.unwrap_or(0)]);
        let about = halves(&[number, u32::from(log.is_some())]);
        machine.done(request::SET_VRING_ADDR, &[about, places].concat(), &[]);
        let named = words(&[number.into()]);
        for (what, event) in [
            (request::SET_VRING_ERR, &self.error),
            (request::SET_VRING_CALL, &self.call),
            (request::SET_VRING_KICK, &self.kick),
        ] {
            machine.done(what, &named, &[event.as_fd()]);
        }
        machine.done(request::SET_VRING_ENABLE, &halves(&[number, 1]), &[]);
        // Setting the call up rings it.
        let _ = self.call.read();
    }

    /// Writes descriptor `number`.
    pub(crate) fn describe(&self, number: u16, (at, len, _): Part, flags: u16, next: u16) {
        let descriptor = u128::from(at)
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        self.machine.write(self.places[0] + u64::from(number) * 16, &descriptor.to_le_bytes());
    }

    /// Makes a chain of `parts`; its head.
    pub(crate) fn chain(&mut self, parts: &[Part]) -> u16 {
        let head = self.next;
        for (n, part) in parts.iter().enumerate() {
            let number = self.next;
            self.next = (number + 1) % self.size;
            let more = if n + 1 < parts.len() { NEXT } else { 0 };
            let flags = more | if part.2 { WRITE } else { 0 };
            self.describe(number, *part, flags, self.next);
        }
        head
    }

    /// Makes `head` available, and tells the device.
    pub(crate) fn offer(&mut self, head: u16) {
        let entry = u64::from(self.available % self.size);
        self.machine.write(self.places[1] + 4 + entry * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.show(self.available);
    }

    /// Says that so many heads are available, and tells the device.
    pub(crate) fn show(&self, index: u16) {
        self.machine.write(self.places[1] + 2, &index.to_le_bytes());
        self.kick.write(1).unwrap();
    }

    /// The used index, as the device has it.
    pub(crate) fn used(&self) -> u16 {
        u16::from_le_bytes(self.machine.read(self.places[2] + 2))
    }

    /// Waits for the next head to come back: its number, and how many bytes were written.
    pub(crate) fn wait(&mut self) -> (u32, u32) {
        let begun = Instant::now();
        while self.used() == self.used {
            assert!(begun.elapsed() < PATIENCE, "no answer on queue {}", self.number);
            std::thread::yield_now();
        }
        let entry = u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let bytes: [u8; 8] = self.machine.read(self.places[2] + 4 + entry * 8);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        (word(0), word(4))
    }

    /// Begins a request of `kind` with `data`; header and status lie at `at`, 16 bytes and one. Its head.
    pub(crate) fn begin(&mut self, kind: u32, sector: u64, data: &[Part], at: u64) -> u16 {
        self.machine.write(at, &Header { kind, sector }.encode());
        self.machine.write(at + 16, &[0xFF]);
        let parts = [&[(at, 16, false)], data, &[(at + 16, 1, true)]].concat();
        let head = self.chain(&parts);
        self.offer(head);
        head
    }

    /// Does a request from its beginning to its end. Its status comes back.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: &[Part], at: u64) -> u8 {
        let head = self.begin(kind, sector, data, at);
        let (done, _) = self.wait();
        assert_eq!(done, u32::from(head));
        let [status] = self.machine.read(at + 16);
        status
    }
}
