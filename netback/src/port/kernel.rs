//! A file of the kernel's that has packets, through io_uring: the port behind TAPs and packet sockets.
//!
//! All that a round sends and asks for goes to the kernel in one call. Packets are asked for only
//! while there are some, several at a time, and each is there at once or not at all: so they stay in
//! order, and nothing is woken for one that another takes. Once none is left, the kernel is asked to
//! say when there is one; looking whether it has costs no system call.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use ::uring::{Completed, FileId, Operation, Ring, WatchId};
use hypervisor::HostError;

use super::interface::{self, Name};
use super::{Port, Turned};
use crate::buffer::{Buffer, Pool};
use crate::tx::BATCH;
use crate::vnet::Form;

/// Packets that are asked for at a time: at first, and at most.
const FIRST_READS: usize = 4;
const MOST_READS: usize = 64;
/// Bytes in one turn after which fewer are asked for in the next: what is read is to go on while it is in
/// the processor's cache.
const MANY_BYTES: usize = 256 << 10;

/// One queue's way to such a file. It belongs to the thread that made it.
pub struct KernelPort {
    ring: Ring<Buffer>,
    file: FileId,
    /// Whose link is ours to take up and down.
    link: Option<(Arc<OwnedFd>, Name)>,
    watch: WatchId,
    form: Form,
    /// There may be packets.
    hot: bool,
    /// How many to ask for.
    reads: usize,
    /// Begun since the last turn.
    sending: usize,
    /// For which the ring had no room.
    refused: Vec<Buffer>,
    watched: Vec<(RawFd, WatchId)>,
    completed: Vec<Completed<Buffer>>,
}

impl KernelPort {
    /// A way to `file`, whose packets have headers of that form.
    pub(super) fn new(file: BorrowedFd<'_>, form: Form) -> Result<Self, HostError> {
        let depth = u32::try_from(BATCH.saturating_add(MOST_READS)).unwrap_or(u32::MAX);
        let mut ring = Ring::new(depth)
            .map_err(|error| HostError::new("make a ring for a port", error.errno))?;
        let add = |error| HostError::from_io("register a port with a ring of the kernel", &error);
        let id = ring.add_packets(file).map_err(add)?;
        let watch = ring.watch(file).map_err(add)?;
        Ok(Self {
            ring,
            file: id,
            link: None,
            watch,
            form,
            hot: true,
            reads: FIRST_READS,
            sending: 0,
            refused: Vec::new(),
            watched: Vec::new(),
            completed: Vec::new(),
        })
    }

    /// A queue of a TAP of that name, whose link it takes up and down.
    pub(super) fn tap(file: Arc<OwnedFd>, name: Name) -> Result<Self, HostError> {
        let mut port = Self::new(file.as_fd(), Form::Whole)?;
        port.link = Some((file, name));
        Ok(port)
    }

    /// Asks for packets where there may be some. Says for how many.
    fn ask(&mut self, pool: &mut Pool, most: usize) -> Result<usize, HostError> {
        if !self.hot {
            // Where the kernel has said something; else a look at memory.
            self.ring.completed(&mut self.completed).map_err(|error| broken(&error))?;
            self.hot = self.ring.take_ready(self.watch);
        }
        if !self.hot {
            return Ok(0);
        }
        let mut asked = 0_usize;
        while asked < self.reads.min(most) {
            let Some(mut buffer) = pool.take() else { break };
            buffer.open(self.form);
            if let Err(buffer) = self.ring.begin(Operation::Receive { file: self.file }, buffer) {
                pool.put(buffer);
                break;
            }
            asked = asked.saturating_add(1);
        }
        Ok(asked)
    }

    /// Asks for more next time where all came. Where fewer did, none is left, and the kernel is to say
    /// when there is one: together with what the next turn has for it.
    fn learn(&mut self, asked: usize, came: usize, bytes: usize) {
        if came >= asked {
            let reads = if bytes >= MANY_BYTES { asked / 2 } else { asked.saturating_mul(2) };
            self.reads = reads.clamp(FIRST_READS, MOST_READS);
            return;
        }
        self.reads = came.saturating_add(FIRST_READS).min(MOST_READS);
        self.hot = false;
        self.ring.want(self.watch, true);
        self.ring.listen();
    }

    /// Takes in what the kernel has done.
    fn settle(
        &mut self,
        pool: &mut Pool,
        into: &mut VecDeque<Buffer>,
        turned: &mut Turned,
    ) -> Result<(), HostError> {
        self.ring.completed(&mut self.completed).map_err(|error| broken(&error))?;
        let mut gone = None;
        for Completed { mut held, operation, result } in self.completed.drain(..) {
            match (operation, result) {
                (Operation::Receive { .. }, Ok(moved)) => {
                    if held.close(moved, self.form) {
                        into.push_back(held);
                        continue;
                    }
                }
                (Operation::Receive { .. }, Err(errno)) => {
                    // None there; and what passes by itself: the interface is down, or memory short.
                    let passing = [libc::EAGAIN, libc::ENETDOWN, libc::ENOBUFS, libc::ENOMEM];
                    if !passing.contains(&errno) {
                        gone = Some(errno);
                    }
                }
                (_, Ok(_)) => turned.sent = turned.sent.saturating_add(1),
                (_, Err(errno)) => {
                    turned.lost = turned.lost.saturating_add(1);
                    // The interface itself is no more. Anything else is one packet's.
                    if [libc::EBADFD, libc::ENODEV, libc::ENXIO].contains(&errno) {
                        gone = Some(errno);
                    }
                }
            }
            pool.put(held);
        }
        match gone {
            Some(errno) => Err(HostError::new("use the interface behind a port", errno)),
            None => Ok(()),
        }
    }

    /// Sees to it that the ring watches exactly these descriptors, beside the file.
    fn watch(&mut self, watched: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let same =
            |((have, _), want): (&(RawFd, WatchId), &BorrowedFd<'_>)| *have == want.as_raw_fd();
        if self.watched.len() == watched.len() && self.watched.iter().zip(watched).all(same) {
            return Ok(());
        }
        for (_, watch) in self.watched.drain(..) {
            self.ring.unwatch(watch)?;
        }
        for descriptor in watched {
            let watch = self.ring.watch(*descriptor)?;
            self.watched.push((descriptor.as_raw_fd(), watch));
        }
        Ok(())
    }
}

impl Port for KernelPort {
    fn room(&self) -> usize {
        BATCH.saturating_sub(self.sending)
    }

    fn send(&mut self, mut packet: Buffer) {
        packet.show(self.form);
        match self.ring.begin(Operation::Send { file: self.file }, packet) {
            Ok(()) => self.sending = self.sending.saturating_add(1),
            Err(packet) => self.refused.push(packet),
        }
    }

    fn turn(
        &mut self,
        pool: &mut Pool,
        most: usize,
        into: &mut VecDeque<Buffer>,
    ) -> Result<Turned, HostError> {
        let mut turned = Turned::default();
        for buffer in self.refused.drain(..) {
            turned.lost = turned.lost.saturating_add(1);
            pool.put(buffer);
        }
        let asked = self.ask(pool, most)?;
        // With what the last turn left to be said. No system call where there is nothing.
        self.ring.kick().map_err(|error| broken(&error))?;
        self.sending = 0;
        let before = into.len();
        self.settle(pool, into, &mut turned)?;
        if asked > 0 {
            let came = into.iter().skip(before);
            let (count, bytes) = came.fold((0_usize, 0_usize), |(count, bytes), packet| {
                (count.saturating_add(1), bytes.saturating_add(packet.len()))
            });
            self.learn(asked, count, bytes);
        }
        Ok(turned)
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        receive: bool,
        timeout: Option<Duration>,
    ) -> Result<(), HostError> {
        if receive && self.hot {
            return Ok(());
        }
        self.watch(watched).map_err(|error| broken(&error))?;
        self.ring.want(self.watch, receive);
        self.ring.wait(timeout).map_err(|error| broken(&error))?;
        self.ring.completed(&mut self.completed).map_err(|error| broken(&error))?;
        for (_, watch) in &self.watched {
            self.ring.take_ready(*watch);
        }
        self.hot |= self.ring.take_ready(self.watch);
        Ok(())
    }

    fn carrier(&mut self, up: bool) -> Result<(), HostError> {
        match &self.link {
            Some((file, name)) => interface::set_carrier(file.as_fd(), name, up),
            None => Ok(()),
        }
    }
}

fn broken(error: &std::io::Error) -> HostError {
    HostError::from_io("use a port's ring of the kernel", error)
}
