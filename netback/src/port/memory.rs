//! Two ports joined back to back in memory: what goes into one comes out of the other.
//!
//! For tests, and for guests of one backend that speak with each other only. A direction holds a
//! bounded number of packets; a port whose direction is full has no room until the other end took some.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hypervisor::HostError;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::buffer::{Buffer, Pool};
use crate::port::{Port, Readable, Turned, poll};
use crate::vnet;

/// One end of a pair.
#[derive(Debug)]
pub struct Memory {
    out: Arc<Wire>,
    inward: Arc<Wire>,
    /// Taken on and not sent yet.
    sending: VecDeque<Buffer>,
}

/// A direction.
#[derive(Debug)]
struct Wire {
    packets: Mutex<VecDeque<Packet>>,
    /// How many there are, to be looked at without the lock.
    held: AtomicUsize,
    most: usize,
    /// Whether the end that they go to takes any.
    up: AtomicBool,
    /// Readable when packets came.
    came: EventFd,
    /// Readable when packets went that had filled it.
    went: EventFd,
}

/// A packet in a direction, with its header.
type Packet = (vnet::Header, Vec<u8>);

/// Two ports, each of which holds up to `most` packets that go its way.
///
/// # Errors
///
/// There are no descriptors left.
pub fn pair(most: usize) -> Result<(Memory, Memory), HostError> {
    let (one, other) = (Arc::new(Wire::new(most)?), Arc::new(Wire::new(most)?));
    let end = |out: &Arc<Wire>, inward: &Arc<Wire>| Memory {
        out: Arc::clone(out),
        inward: Arc::clone(inward),
        sending: VecDeque::new(),
    };
    Ok((end(&one, &other), end(&other, &one)))
}

impl Wire {
    fn new(most: usize) -> Result<Self, HostError> {
        let event = || {
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|errno| HostError::new("make a memory port", errno as i32))
        };
        let (packets, held) = (Mutex::default(), AtomicUsize::new(0));
        let up = AtomicBool::new(true);
        Ok(Self { packets, held, most, up, came: event()?, went: event()? })
    }

    fn room(&self) -> usize {
        self.most.saturating_sub(self.held.load(Ordering::Acquire))
    }

    fn put(&self, header: vnet::Header, packet: Vec<u8>) -> bool {
        let Ok(mut packets) = self.packets.lock() else { return false };
        if packets.len() >= self.most {
            return false;
        }
        packets.push_back((header, packet));
        self.held.store(packets.len(), Ordering::Release);
        drop(packets);
        // Fails only where the counter is full, and then it is readable.
        let _ = self.came.write(1);
        true
    }

    fn take(&self) -> Option<Packet> {
        if self.held.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut packets = self.packets.lock().ok()?;
        let was_full = packets.len() >= self.most;
        let packet = packets.pop_front();
        self.held.store(packets.len(), Ordering::Release);
        drop(packets);
        if was_full {
            let _ = self.went.write(1);
        }
        packet
    }
}

impl Memory {
    /// Sends one packet at once; says whether there was room.
    pub fn put(&mut self, header: &vnet::Header, packet: &[u8]) -> bool {
        self.out.put(*header, packet.to_vec())
    }

    /// Whether the other end takes packets, as far as it has said.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.out.up.load(Ordering::Acquire)
    }

    /// The next packet that came.
    pub fn take(&mut self) -> Option<(vnet::Header, Vec<u8>)> {
        self.inward.take()
    }
}

impl Port for Memory {
    fn room(&self) -> usize {
        self.out.room()
    }

    fn send(&mut self, packet: Buffer) {
        self.sending.push_back(packet);
    }

    fn turn(
        &mut self,
        pool: &mut Pool,
        most: usize,
        into: &mut VecDeque<Buffer>,
    ) -> Result<Turned, HostError> {
        let mut turned = Turned::default();
        for buffer in self.sending.drain(..) {
            if self.out.put(buffer.header(), buffer.packet().to_vec()) {
                turned.sent = turned.sent.saturating_add(1);
            } else {
                turned.lost = turned.lost.saturating_add(1);
            }
            pool.put(buffer);
        }
        for _ in 0..most {
            if self.inward.held.load(Ordering::Acquire) == 0 {
                break;
            }
            let Some(mut buffer) = pool.take() else { break };
            let Some((header, packet)) = self.inward.take() else {
                pool.put(buffer);
                break;
            };
            buffer.fill(&header, &packet);
            into.push_back(buffer);
        }
        Ok(turned)
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        receive: bool,
        timeout: Option<Duration>,
    ) -> Result<Readable, HostError> {
        // Lowered before the look, so that what comes after it is still there to wake us.
        let mut lower = Vec::new();
        let full = self.out.room() == 0;
        if receive {
            lower.push(&self.inward.came);
        }
        if full {
            lower.push(&self.out.went);
        }
        for event in &lower {
            let _ = event.read();
        }
        let came = receive && self.inward.held.load(Ordering::Acquire) > 0;
        if came || (full && self.out.room() > 0) {
            return Ok(Readable::NONE);
        }
        poll::sleep(watched, lower.iter().map(|event| event.as_fd()), timeout)
    }

    fn carrier(&mut self, up: bool) -> Result<(), HostError> {
        self.inward.up.store(up, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_one_end_comes_out_of_the_other() {
        let (mut one, mut other) = pair(2).unwrap();
        let (mut pool, mut into) = (Pool::new(4), VecDeque::new());
        for n in 0..3 {
            let mut buffer = pool.take().unwrap();
            buffer.fill(&vnet::Header::default(), &[n; 60]);
            one.send(buffer);
        }
        let turned = one.turn(&mut pool, 0, &mut into).unwrap();
        assert_eq!((turned.sent, turned.lost, one.room()), (2, 1, 0));
        other.turn(&mut pool, 1, &mut into).unwrap();
        assert_eq!((into.len(), one.room()), (1, 1));
        assert_eq!(into[0].packet(), [0; 60]);
        assert_eq!(other.take().unwrap().1, [1; 60]);
        assert!(other.take().is_none());
    }

    #[test]
    fn a_wait_ends_with_a_packet_and_with_room() {
        let (mut one, mut other) = pair(1).unwrap();
        let header = vnet::Header::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..100_u8 {
                    while !one.put(&header, &[n; 60]) {
                        one.wait(&[], false, None).unwrap();
                    }
                }
            });
            for n in 0..100_u8 {
                let packet = loop {
                    match other.take() {
                        Some((_, packet)) => break packet,
                        None => assert_eq!(other.wait(&[], true, None), Ok(Readable::NONE)),
                    }
                };
                assert_eq!(packet, [n; 60]);
            }
        });
    }

    #[test]
    fn a_wait_says_which_descriptors_are_readable() {
        let (mut one, _other) = pair(1).unwrap();
        let events = [1, 0, 1].map(|count| EventFd::from_value(count).unwrap());
        let watched = events.each_ref().map(|event| event.as_fd());
        let readable = one.wait(&watched, true, None).unwrap();
        assert_eq!([0, 1, 2, 3].map(|place| readable.has(place)), [true, false, true, false]);
    }
}
