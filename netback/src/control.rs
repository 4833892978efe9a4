//! The control ring: what a frontend says of how packets are spread over its queues.
//!
//! Requests are rare and may wait, so the ring has a thread that sleeps. What they change is shared with
//! the queues ([`Serving`]), which look at it with every packet once there is something.
//!
//! A frontend may also have grants of its own stay mapped, for each queue ([`kept`]).
//!
//! Before: `connect`. After: `rx::take`. Trust: the frontend wrote every field; keys and tables are
//! copied out of its pages once, bounded before that, and checked as copies. Source: "Control messages"
//! in io/netif.h (RELEASE-4.17); where it leaves the answer open, as Linux's xen-netback (v6.1).

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use hypervisor::event::Channel;
use hypervisor::memory::{CopyOp, Direction, GrantStatus, Memory, Using};
use hypervisor::{DomId, GrantRef, HostError, PAGE_SIZE};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring::packet::steering::{MAPPING, Steering};
use ring::wire::netif;
use ring::wire::netif::control::{
    Gref, GrefList, MAPPING_ENTRY, Operation, Request, Response, Status,
};
use ring::{Back, Listener};

use crate::connect::ControlLink;
use crate::kept::{self, Kept};
use crate::queue::{Control as Line, Ended, Serving};
use crate::stats::Stats;

/// The most bytes of a table or a list: each lies in one page.
const LARGEST: usize = PAGE_SIZE;

/// A control ring that is served.
#[derive(Debug)]
pub struct Handle {
    line: Arc<Line>,
    thread: JoinHandle<Ended>,
}

impl Handle {
    /// Tells it to end.
    pub fn stop(&self) {
        self.line.stop();
    }

    /// Whether it has ended by itself or as told.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end. Tell it to stop first.
    #[must_use]
    pub fn join(self) -> Ended {
        self.thread.join().unwrap_or_else(|_| Ended::Failed(panicked()))
    }
}

fn panicked() -> HostError {
    HostError::new("serve a control ring: its thread panicked", libc::EIO)
}

/// Serves `peer`'s control ring, which changes how the device of `serving` spreads packets. `at_end`
/// is called last of all, when the ring is given up.
///
/// # Errors
///
/// There is no descriptor or thread to be had.
pub fn spawn<U, C>(
    name: &str,
    peer: DomId,
    link: ControlLink<U::Mapping, C>,
    domain: U,
    serving: Arc<Serving>,
    at_end: impl FnOnce(&Ended) + Send + 'static,
) -> Result<Handle, HostError>
where
    U: Using + Send + 'static,
    U::Mapping: Memory,
    C: Channel + AsFd + Send + 'static,
{
    let line = Line::new()?;
    let theirs = Arc::clone(&line);
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Whoever waits for this end is told of it, even of a panic.
            let serve = AssertUnwindSafe(|| serve(peer, link, &domain, &serving, &theirs));
            let ended = catch_unwind(serve).unwrap_or_else(|_| Ended::Failed(panicked()));
            at_end(&ended);
            ended
        })
        .map_err(|error| HostError::from_io("start a control ring's thread", &error))?;
    Ok(Handle { line, thread })
}

fn serve<U, C>(
    peer: DomId,
    link: ControlLink<U::Mapping, C>,
    domain: &U,
    serving: &Serving,
    line: &Line,
) -> Ended
where
    U: Using,
    U::Mapping: Memory,
    C: Channel + AsFd,
{
    let ControlLink { ring, channel } = link;
    let broken = |fault: ring::Fault| Ended::Fault(fault.by(peer));
    let mut ring = match Back::<netif::Control, _>::attach(ring) {
        Ok(ring) => ring,
        Err(fault) => return broken(fault),
    };
    let (mut listener, stats) = (Listener::default(), Stats::default());
    while !line.is_stopped() {
        match round(&mut ring, peer, domain, serving) {
            Ok(true) => {
                listener.found();
                // Each by itself: no more than one answer is ever written and not published.
                if ring.publish().is_needed()
                    && let Err(error) = channel.notify()
                {
                    return Ended::Failed(error);
                }
            }
            Ok(false) => {
                match ring.rearm() {
                    Ok(recheck) if recheck.is_more() => continue,
                    Ok(_) => {}
                    Err(fault) => return broken(fault),
                }
                let pause = listener.pause(&stats.empty_events, &stats.storms);
                if pause.is_none() {
                    channel.unmask();
                }
                match sleep(&channel, line, pause) {
                    Ok(true) => listener.rang(&stats.events),
                    Ok(false) => {}
                    Err(error) => return Ended::Failed(error),
                }
            }
            Err(fault) => return broken(fault),
        }
    }
    Ended::Stopped
}

/// Sleeps until there is something to look at, or a pause of so many nanoseconds is over. Says
/// whether the guest sent an event.
fn sleep<C: Channel + AsFd>(
    channel: &C,
    line: &Line,
    pause: Option<u64>,
) -> Result<bool, HostError> {
    let mut polled = [channel.as_fd(), line.fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let timeout = match pause {
        None => PollTimeout::NONE,
        Some(ns) => PollTimeout::from(u16::try_from(ns.div_ceil(1_000_000)).unwrap_or(u16::MAX)),
    };
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(HostError::new("wait at a control ring", errno as i32)),
    }
    line.heard();
    Ok(channel.take())
}

/// Answers one request of `peer`'s, if there is one, unseen until the ring is published, which is to be before the next.
/// Says whether there was.
///
/// # Errors
///
/// The frontend's index cannot be.
pub fn round<U: Using, M: Memory>(
    ring: &mut Back<netif::Control, M>,
    peer: DomId,
    domain: &U,
    serving: &Serving,
) -> Result<bool, ring::Fault> {
    let index = ring.taken();
    let Some((request, slot)) = ring.take_request()? else { return Ok(false) };
    let memo = serving.memo();
    if let Some(response) = memo.and_then(|memo| memo.recall(index)) {
        // What was taken may be this answer, and not a request any more.
        ring.respond(slot, &response);
        return Ok(true);
    }
    let (status, data) = answer(&request, peer, domain, serving);
    let response = Response::to(&request, status, data);
    if let Some(memo) = memo {
        memo.answered(index, &response, serving);
    }
    ring.respond(slot, &response);
    Ok(true)
}

fn answer<U: Using>(
    request: &Request,
    peer: DomId,
    domain: &U,
    serving: &Serving,
) -> (Status, u32) {
    let steer = |change: &mut dyn FnMut(&mut Steering) -> Status| serving.steer(change);
    let only = |status| (status, 0);
    match request.operation {
        Operation::GetHashFlags => {
            let (status, types) = serving.steer(|steering| steering.types());
            (status, types.0)
        }
        Operation::SetHashFlags(types) => only(steer(&mut |steering| steering.set_types(types))),
        Operation::SetHashAlgorithm(algorithm) => {
            only(steer(&mut |steering| steering.set_algorithm(algorithm)))
        }
        Operation::SetHashKey { gref, size } => {
            let checked = Steering::check_key(size);
            if checked != Status::SUCCESS {
                return only(checked);
            }
            only(with_page(domain, peer, gref, size, |key| steer(&mut |s| s.set_key(key))))
        }
        Operation::GetHashMappingSize => {
            (Status::SUCCESS, u32::try_from(MAPPING).unwrap_or(u32::MAX))
        }
        Operation::SetHashMappingSize { entries } => {
            only(steer(&mut |steering| steering.set_mapping_size(entries)))
        }
        Operation::SetHashMapping { gref, entries, offset } => {
            let checked = serving.steer(|steering| steering.check_mapping(entries, offset));
            if checked != Status::SUCCESS {
                return only(checked);
            }
            let bytes = entries.saturating_mul(MAPPING_ENTRY as u32);
            only(with_page(domain, peer, gref, bytes, |table| {
                steer(&mut |steering| steering.set_mapping(offset, table))
            }))
        }
        Operation::GetGrefMappingSize { queue } => match kept_of(serving, queue) {
            Some(_) => (Status::SUCCESS, u32::try_from(kept::MOST).unwrap_or(u32::MAX)),
            None => only(Status::INVALID_PARAMETER),
        },
        Operation::AddGrefMapping(list) => {
            only(with_list(domain, peer, serving, list, |kept, grefs| {
                kept.add(domain, peer, grefs)
            }))
        }
        Operation::DelGrefMapping(list) => {
            let mut removed = 0;
            let status = with_list(domain, peer, serving, list, |kept, grefs| {
                removed = kept.remove(domain, peer, grefs);
                let mut bytes: Vec<u8> = grefs.iter().flat_map(Gref::encode).collect();
                let (gref, direction) = (list.gref, Direction::ToPeer);
                match copy(domain, peer, gref, direction, &mut bytes) {
                    true => Status::SUCCESS,
                    false => Status::INVALID_PARAMETER,
                }
            });
            (status, removed)
        }
        _ => only(Status::NOT_SUPPORTED),
    }
}

fn kept_of(serving: &Serving, queue: u32) -> Option<&Kept> {
    serving.kept(u16::try_from(queue).ok()?)
}

/// Reads a list of grants, and does something with them.
fn with_list<U: Using>(
    domain: &U,
    peer: DomId,
    serving: &Serving,
    list: GrefList,
    what: impl FnOnce(&Kept, &mut [Gref]) -> Status,
) -> Status {
    let Some(kept) = kept_of(serving, list.queue) else { return Status::INVALID_PARAMETER };
    if list.entries as usize > Gref::PER_PAGE {
        return Status::INVALID_PARAMETER;
    }
    let bytes = list.entries.saturating_mul(Gref::SIZE as u32);
    with_page(domain, peer, list.gref, bytes, |bytes| {
        let (entries, _) = bytes.as_chunks();
        let mut grefs: Vec<Gref> = entries.iter().map(Gref::decode).collect();
        what(kept, &mut grefs)
    })
}

/// Copies the first `len` bytes of a page and does something with them.
fn with_page<U: Using>(
    domain: &U,
    peer: DomId,
    gref: GrantRef,
    len: u32,
    what: impl FnOnce(&[u8]) -> Status,
) -> Status {
    let mut bytes = [0; LARGEST];
    let Some(local) = usize::try_from(len).ok().and_then(|len| bytes.get_mut(..len)) else {
        return Status::BUFFER_OVERFLOW;
    };
    if local.is_empty() {
        return what(local);
    }
    if copy(domain, peer, gref, Direction::FromPeer, local) {
        what(local)
    } else {
        Status::INVALID_PARAMETER
    }
}

/// Copies between the beginning of a page and `local`. Says whether that was done.
fn copy<U: Using>(
    domain: &U,
    peer: DomId,
    gref: GrantRef,
    direction: Direction,
    local: &mut [u8],
) -> bool {
    let mut op = CopyOp { gref, offset: 0, direction, local, status: GrantStatus::GENERAL_ERROR };
    domain.copy(peer, std::slice::from_mut(&mut op)).is_ok() && op.status.is_okay()
}
