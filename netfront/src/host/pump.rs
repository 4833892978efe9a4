//! Packets between a queue and a queue of a TAP.
//!
//! What comes from the TAP is read into granted pages at once; what comes from the backend is written
//! from the pages that it is in. Either way the kernel's copy is the only one. Headers that somebody has to
//! look at are copied out first, and the copy is what the kernel is given, so that a backend that
//! changes them meanwhile changes nothing.
//!
//! Where a packet cannot be passed on it is lost and counted, as on any network. While there is no backend
//! the TAP has no carrier.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hypervisor::frontend::host::Stop;
use hypervisor::memory::Granting;
use hypervisor::{Error, HostError};
use nix::errno::Errno;
use ring::packet::segment::say_length;

use crate::host::cutting::Cutting;
use crate::host::tap::Tap;
use crate::host::{Host, HostQueue, vectors, vnet};
use crate::negotiate::{NetInfo, Offloads};
use crate::queue::Queue;
use crate::receive::Received;
use crate::transmit::Refused;
use crate::{Checksum, Offload};

/// Packets in either direction between two looks at the other one.
const BATCH: usize = 32;
/// Bytes after which the backend is shown what was done meanwhile, so that it works while we do: a few
/// large packets are all that a ring holds.
const SHOWN: usize = 128 << 10;
/// Bytes of a packet that are copied to find its headers.
const HEAD: usize = 512;

/// What a pump has done so far, beside what its queue counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Pumped {
    /// Packets from the TAP that the backend could not be given.
    pub unsent: u64,
    /// Packets from the backend that the TAP could not be given.
    pub undelivered: u64,
}

/// What a turn found.
#[derive(Clone, Copy, Default)]
struct Turn {
    worked: bool,
    /// There was no room to send.
    full: bool,
    /// There was nobody to send to.
    unlinked: bool,
}

/// Moves packets between a queue and a queue of a TAP, until it is told to stop.
pub struct Pump<H: Host> {
    queue: HostQueue<H>,
    tap: Arc<Tap>,
    file: Arc<OwnedFd>,
    /// What the TAP was last told.
    told: Option<(NetInfo, Option<Offloads>)>,
    cutting: Cutting,
    pumped: Pumped,
}

impl<H: Host> Pump<H> {
    /// Between `queue` and the TAP's queue of the same number; `None` where that has none.
    #[must_use]
    pub fn new(queue: HostQueue<H>, tap: &Arc<Tap>) -> Option<Self> {
        let file = tap.queue(queue.number())?;
        let (cutting, pumped) = (Cutting::default(), Pumped::default());
        Some(Self { queue, tap: Arc::clone(tap), file, told: None, cutting, pumped })
    }

    /// What it has done so far.
    #[must_use]
    pub fn pumped(&self) -> Pumped {
        self.pumped
    }

    /// Moves packets until it is asked to stop, or the interface is over.
    ///
    /// # Errors
    ///
    /// The TAP is gone, or the process cannot wait.
    pub fn run(&mut self, stop: &Stop) -> Result<(), Error> {
        let file = Arc::clone(&self.file);
        while !stop.asked() {
            let turn = self.turn()?;
            if turn.worked {
                self.queue.worked();
                continue;
            }
            if self.queue.number() == 0 {
                self.follow()?;
            }
            if self.queue.ending().is_some() {
                return Ok(());
            }
            let both = [stop.as_fd(), file.as_fd()];
            // What cannot be sent on is left in the TAP.
            let count = if turn.full || turn.unlinked { 1 } else { 2 };
            self.queue.rest(turn.full, both.get(..count).unwrap_or_default(), None)?;
        }
        Ok(())
    }

    /// Tells the TAP what became of the interface.
    fn follow(&mut self) -> Result<(), HostError> {
        let Some(info) = self.queue.info() else { return Ok(()) };
        let now = (info, self.queue.with(|queue| queue.sends()).flatten());
        if self.told != Some(now) {
            self.tap.follow(&now.0, now.1)?;
            self.told = Some(now);
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<Turn, HostError> {
        let (file, pumped, cutting) = (self.file.as_fd(), &mut self.pumped, &mut self.cutting);
        let turned = self.queue.with(|queue| {
            let mut turn = Turn::default();
            deliver_all(queue, file, pumped, &mut turn)?;
            // The backend fills pages again while we send.
            queue.flush();
            send_all(queue, file, cutting, pumped, &mut turn)?;
            Ok(turn)
        });
        turned.unwrap_or_else(|| Ok(Turn { unlinked: true, ..Turn::default() }))
    }
}

/// From the backend to the TAP.
fn deliver_all<G>(
    queue: &mut Queue<G>,
    file: BorrowedFd<'_>,
    pumped: &mut Pumped,
    turn: &mut Turn,
) -> Result<(), HostError>
where
    G: Granting + hypervisor::event::Events,
{
    let mut unshown = 0_usize;
    for _ in 0..BATCH {
        let Some(received) = queue.receive() else { break };
        turn.worked = true;
        unshown = unshown.saturating_add(received.len());
        let delivered = deliver(queue, file, &received);
        queue.release(received);
        if unshown >= SHOWN {
            queue.flush();
            unshown = 0;
        }
        match delivered {
            Ok(true) => {}
            Ok(false) => pumped.undelivered = pumped.undelivered.wrapping_add(1),
            Err(Errno::EBADFD | Errno::ENODEV) => return Err(gone(Errno::EBADFD)),
            // It is down, or will not have this packet.
            Err(_) => pumped.undelivered = pumped.undelivered.wrapping_add(1),
        }
    }
    Ok(())
}

/// Says whether the packet was one that can be passed on.
fn deliver<G>(queue: &Queue<G>, file: BorrowedFd<'_>, received: &Received) -> Result<bool, Errno>
where
    G: Granting + hypervisor::event::Events,
{
    let offload: Offload = received.offload();
    let mut head = [0; vnet::SIZE + HEAD];
    let Some((room, copy)) = head.split_at_mut_checked(vnet::SIZE) else { return Ok(false) };
    let looked_at = offload.gso.is_some() || offload.checksum == Checksum::Blank;
    let copied = if looked_at { queue.read(received, 0, copy) } else { 0 };
    let copy = copy.get_mut(..copied).unwrap_or_default();
    if offload.gso.is_some() {
        say_length(copy, received.len());
    }
    let Some(header) = vnet::encode(&offload, copy, received.len()) else { return Ok(false) };
    room.copy_from_slice(&header);
    let head = head.get(..vnet::SIZE.saturating_add(copied)).unwrap_or_default();
    let Some(memory) = queue.rx_memory() else { return Ok(false) };
    vectors::write(file, head, memory, behind(received, copied))?;
    Ok(true)
}

/// The pieces of a packet without its first `skip` bytes.
fn behind(received: &Received, skip: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
    received
        .pieces()
        .scan(skip, |skip, (offset, len)| {
            let skipped = len.min(*skip);
            *skip = skip.saturating_sub(skipped);
            Some((offset.saturating_add(skipped), len.saturating_sub(skipped)))
        })
        .filter(|(_, len)| *len > 0)
}

/// From the TAP to the backend.
fn send_all<G>(
    queue: &mut Queue<G>,
    file: BorrowedFd<'_>,
    cutting: &mut Cutting,
    pumped: &mut Pumped,
    turn: &mut Turn,
) -> Result<(), HostError>
where
    G: Granting + hypervisor::event::Events,
{
    let mut unshown = 0_usize;
    for _ in 0..BATCH {
        if unshown >= SHOWN {
            queue.flush();
            unshown = 0;
        }
        let cut = cutting.go_on(queue);
        turn.worked |= cut.sent;
        pumped.unsent = pumped.unsent.wrapping_add(cut.lost.into());
        if cut.full {
            turn.full = true;
            break;
        }
        // Room for the largest that may come.
        let place = match queue.place(queue.longest()) {
            Ok(place) => place,
            Err(Refused::Full) => {
                turn.full = true;
                break;
            }
            Err(_) => {
                turn.unlinked = true;
                break;
            }
        };
        let mut header = [0; vnet::SIZE];
        let read = match queue.tx_memory() {
            Some(memory) => vectors::read(file, &mut header, memory, place.runs()),
            None => Err(Errno::EAGAIN),
        };
        let size = match read {
            Ok(bytes) => bytes.saturating_sub(vnet::SIZE),
            Err(errno) => {
                queue.put_back(place);
                match errno {
                    Errno::EBADFD | Errno::ENODEV => return Err(gone(errno)),
                    // Nothing there, or the interface is down.
                    _ => break,
                }
            }
        };
        turn.worked = true;
        unshown = unshown.saturating_add(size);
        let sent = match vnet::decode(&header) {
            Some(offload) if cutting.take(queue, &place, size, &offload) => {
                queue.put_back(place);
                true
            }
            // Refused where it was cut off, too: then it is longer than its place.
            Some(offload) => queue.send_place(place, size, offload).is_ok(),
            None => {
                queue.put_back(place);
                false
            }
        };
        if !sent {
            pumped.unsent = pumped.unsent.wrapping_add(1);
        }
    }
    Ok(())
}

fn gone(errno: Errno) -> HostError {
    HostError::new("use the TAP", errno as i32)
}
