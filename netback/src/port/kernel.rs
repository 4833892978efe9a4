//! A file of the kernel's that has packets, through io_uring: the port behind TAPs and packet sockets.
//!
//! All that a round sends and asks for goes to the kernel in one call. The kernel is asked for packets
//! before they are there, for about as many as came last, so that a wait ends with the packets themselves;
//! looking whether some came costs no system call.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use ::uring::{Completed, FileId, Operation, Ring, WatchId};
use hypervisor::HostError;

use super::interface::{self, Name};
use super::{Port, Readable, Turned};
use crate::buffer::{Buffer, Pool};
use crate::tx::BATCH;
use crate::vnet::Form;

/// Packets that are asked for at a time, at most.
const MOST_READS: usize = 64;
/// As many are asked for as come, however large they are.
const FEW_READS: usize = 4;
/// Bytes in one turn after which fewer are asked for in the next: what is read is to go on while it is in
/// the processor's cache.
const MANY_BYTES: usize = 256 << 10;

/// One queue's way to such a file. It belongs to the thread that made it.
pub struct KernelPort {
    ring: Ring<Buffer>,
    file: FileId,
    /// Whose link is ours to take up and down.
    link: Option<(Arc<OwnedFd>, Name)>,
    form: Form,
    /// How many packets to ask for.
    reads: usize,
    /// How many the kernel was asked for and did not bring yet.
    asked: usize,
    /// Turns since there was something to send, or something came.
    idle: u32,
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
        let depth = BATCH.saturating_add(MOST_READS);
        let depth = u32::try_from(depth).unwrap_or(u32::MAX);
        let mut ring = Ring::new(depth)
            .map_err(|error| HostError::new("make a ring for a port", error.errno))?;
        let add = |error| HostError::from_io("register a port with a ring of the kernel", &error);
        let id = ring.add_packets(file).map_err(add)?;
        Ok(Self {
            ring,
            file: id,
            link: None,
            form,
            reads: 1,
            asked: 0,
            idle: 0,
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

    /// Asks for packets, `most` at most with those that were asked for.
    fn ask(&mut self, pool: &mut Pool, most: usize) {
        while self.asked < self.reads.min(most) {
            let Some(mut buffer) = pool.take() else { break };
            buffer.open(self.form);
            if let Err(buffer) = self.ring.begin(Operation::Receive { file: self.file }, buffer) {
                pool.put(buffer);
                break;
            }
            self.asked = self.asked.saturating_add(1);
        }
    }

    /// Asks for more next time where all came, and else for as many as came.
    fn learn(&mut self, came: usize, bytes: usize) {
        let reads = match self.asked {
            _ if bytes >= MANY_BYTES => (came / 2).max(FEW_READS),
            0 => came.saturating_mul(2),
            _ => came,
        };
        self.reads = reads.clamp(1, MOST_READS);
    }

    /// Takes in what the kernel has done.
    fn settle(
        &mut self,
        pool: &mut Pool,
        into: &mut VecDeque<Buffer>,
        turned: &mut Turned,
    ) -> Result<(), HostError> {
        self.ring.completed(&mut self.completed).map_err(|error| broken(&error))?;
        let (mut gone, mut came, mut bytes) = (None, 0_usize, 0_usize);
        for Completed { mut held, operation, result } in self.completed.drain(..) {
            if matches!(operation, Operation::Receive { .. }) {
                self.asked = self.asked.saturating_sub(1);
            }
            match (operation, result) {
                (Operation::Receive { .. }, Ok(moved)) => {
                    if held.close(moved, self.form) {
                        came = came.saturating_add(1);
                        bytes = bytes.saturating_add(held.len());
                        into.push_back(held);
                        continue;
                    }
                }
                (Operation::Receive { .. }, Err(errno)) => {
                    // What passes by itself: the interface is down, or memory short.
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
        if came > 0 {
            self.idle = 0;
            self.learn(came, bytes);
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
        self.idle = if self.sending > 0 { 0 } else { self.idle.saturating_add(1) };
        self.sending = 0;
        self.ask(pool, most);
        // The first turn that has nothing to send leaves it to the wait that may follow to tell the kernel
        // what is asked for. No system call where there is nothing to tell.
        if self.idle != 1 {
            self.ring.kick().map_err(|error| broken(&error))?;
        }
        self.settle(pool, into, &mut turned)?;
        Ok(turned)
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        receive: bool,
        timeout: Option<Duration>,
    ) -> Result<Readable, HostError> {
        // Where there is room only since the last turn, the kernel was not asked yet.
        if receive && self.asked == 0 {
            return Ok(Readable::NONE);
        }
        self.watch(watched).map_err(|error| broken(&error))?;
        self.ring.wait(timeout).map_err(|error| broken(&error))?;
        self.idle = 0;
        self.ring.completed(&mut self.completed).map_err(|error| broken(&error))?;
        let Self { ring, watched, .. } = self;
        let ready = watched.iter().enumerate().filter(|(_, (_, watch))| ring.take_ready(*watch));
        Ok(ready.map(|(place, _)| place).collect())
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
