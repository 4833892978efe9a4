//! A monitor: the other end of the socket, and the machine's memory.

use std::fs::File;
use std::io::{IoSlice, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Where the machine has its memory, and where the monitor has it.
pub(crate) const GUEST: u64 = 0x4000_0000;
const USER: u64 = 0x7000_0000_0000;
/// Bytes of it.
pub(crate) const MEMORY: u64 = 8 << 20;

/// Requests (`VHOST_USER_*`).
pub(crate) mod request {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SEND_RARP: u32 = 19;
    pub(crate) const NET_SET_MTU: u32 = 20;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const ADD_MEM_REG: u32 = 37;
}

/// What a machine's memory is, by its own addresses.
#[derive(Clone)]
pub(crate) struct Memory(Rc<File>);

impl Memory {
    pub(crate) fn new() -> Self {
        let file = File::from(memfd_create("machine", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(MEMORY).unwrap();
        Self(Rc::new(file))
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, at - GUEST).unwrap();
    }

    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact_at(&mut bytes, at - GUEST).unwrap();
        bytes
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, at - GUEST).unwrap();
        bytes
    }
}

/// A connection to a device.
pub(crate) struct Monitor {
    stream: UnixStream,
    pub(crate) memory: Memory,
}

impl Monitor {
    /// Connects, and agrees on `features` and on all that the protocol has.
    pub(crate) fn new(path: &Path, features: u64, memory: &Memory) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        let mut monitor = Self { stream, memory: memory.clone() };
        monitor.tell(request::SET_OWNER, &[], &[]);
        let offered = monitor.number(request::GET_FEATURES);
        assert_eq!(features & !offered, 0, "not offered: {:#x}", features & !offered);
        let protocol = monitor.number(request::GET_PROTOCOL_FEATURES);
        monitor.tell(request::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes(), &[]);
        monitor.tell(request::SET_FEATURES, &features.to_ne_bytes(), &[]);
        let table = [&1_u32.to_ne_bytes()[..], &[0; 4], &words(&[GUEST, MEMORY, USER, 0])].concat();
        let file = Rc::clone(&memory.0);
        monitor.tell(request::SET_MEM_TABLE, &table, &[file.as_fd()]);
        monitor
    }

    fn send(&mut self, what: u32, flags: u32, payload: &[u8], beside: &[BorrowedFd<'_>]) {
        let len = payload.len() as u32;
        let mut bytes: Vec<u8> = [what, flags, len].iter().flat_map(|w| w.to_ne_bytes()).collect();
        bytes.extend(payload);
        let fds: Vec<_> = beside.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(&bytes)];
        let fd = self.stream.as_raw_fd();
        let sent = sendmsg::<()>(fd, &parts, control, MsgFlags::MSG_NOSIGNAL, None);
        assert_eq!(sent, Ok(bytes.len()));
    }

    fn answer(&mut self, what: u32) -> Vec<u8> {
        let mut header = [0; 12];
        self.stream.read_exact(&mut header).unwrap();
        assert_eq!(header[..4], what.to_ne_bytes());
        let len = u32::from_ne_bytes(header[8..12].try_into().unwrap());
        let mut payload = vec![0; len as usize];
        self.stream.read_exact(&mut payload).unwrap();
        payload
    }

    /// Has something done; says whether it was.
    pub(crate) fn try_tell(&mut self, what: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        // Before the protocol's features are agreed on, nothing is acknowledged.
        if [request::SET_OWNER, request::SET_PROTOCOL_FEATURES].contains(&what) {
            self.send(what, 1, payload, fds);
            return true;
        }
        self.send(what, 1 | 8, payload, fds);
        self.answer(what) == 0_u64.to_ne_bytes()
    }

    /// Has something done.
    pub(crate) fn tell(&mut self, what: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        assert!(self.try_tell(what, payload, fds), "message {what} was refused");
    }

    /// Asks something.
    pub(crate) fn ask(&mut self, what: u32, payload: &[u8]) -> Vec<u8> {
        self.send(what, 1, payload, &[]);
        self.answer(what)
    }

    /// Asks for a number.
    pub(crate) fn number(&mut self, what: u32) -> u64 {
        u64::from_ne_bytes(self.ask(what, &[]).try_into().unwrap())
    }

    /// Says where queue `number`'s three parts are.
    pub(crate) fn place(&mut self, number: u32, parts: [u64; 3]) {
        let [descriptors, available, used] = parts.map(|at| at - GUEST + USER);
        let front = [number, 0].iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>();
        let payload = [front, words(&[descriptors, used, available, 0])].concat();
        self.tell(request::SET_VRING_ADDR, &payload, &[]);
    }

    /// Adds the region that is there already, or one that begins so much behind it; says whether it was taken.
    pub(crate) fn add_memory(&mut self, behind: u64) -> bool {
        let region = words(&[0, GUEST + behind, MEMORY - behind, USER + behind, behind]);
        let file = Rc::clone(&self.memory.0);
        self.try_tell(request::ADD_MEM_REG, &region, &[file.as_fd()])
    }

    /// Whether the device has hung up.
    pub(crate) fn is_over(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0) | Err(_))
    }
}

/// Two numbers, as messages about queues have them.
pub(crate) fn pair(number: u32, value: u32) -> Vec<u8> {
    [number, value].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
