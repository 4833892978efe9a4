//! One end of an event channel: a word that both ends share and two eventfds.
//!
//! ```text
//!   words, one page a channel:   end 0's word │ end 1's word      PENDING, MASKED
//!   eventfds:                    end 0 waits on │ end 1 waits on  written by the other end
//! ```
//!
//! Notifying sets PENDING in the peer's word and writes the peer's eventfd only if that was news to
//! a peer that listens: a notification that changes nothing is one atomic operation. Taking
//! clears PENDING and sets MASKED; unmasking writes our own eventfd where PENDING was set meanwhile.
//! The broker keeps all of this for as long as one end is open, so that whoever binds the other end
//! again meets a sender who need not have noticed; it makes both ends pending then, whatever
//! they were.
//!
//! The eventfd may have been written when the word says nothing (a peer that was between the two, or
//! one that lies), so taking always empties it *before* it looks at the word: what comes
//! after the look is still there to wake us. It is read without waiting whatever mode the peer has
//! put the shared file into. Writing has no such way: a peer that makes its eventfd one that waits and
//! fills its count can hold up the thread that notifies it, which therefore should serve nobody else.
#![expect(unsafe_code, reason = "preadv2 has no safe wrapper; it alone reads without waiting")]

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::event::{Channel, Events};
use crate::{DomId, EventPort, HostError, PAGE_SIZE};

use super::broker::message::{Reply, Request};
use super::map::{Map, sealed_file};
use super::session::{Domain, Session, unexpected};

/// There is something to take.
const PENDING: u32 = 1;
/// The end does not listen.
const MASKED: u32 = 2;
/// Words between the two ends' words, so that each has a cache line of its own.
const STRIDE: usize = 16;

/// What both ends and the broker share of one channel.
#[derive(Debug)]
pub(crate) struct Words {
    map: Map,
}

impl Words {
    /// New ones, and the file to hand out.
    pub(crate) fn make() -> Result<(Self, OwnedFd), HostError> {
        let file = sealed_file("event-channel", PAGE_SIZE as u64)?;
        Ok((Self::of(&file)?, file))
    }

    fn of(file: impl AsFd) -> Result<Self, HostError> {
        Ok(Self { map: Map::of(file, PAGE_SIZE, true)? })
    }

    fn of_end(&self, end: usize) -> Option<&AtomicU32> {
        self.map.word((end & 1).wrapping_mul(STRIDE))
    }

    /// Makes an end listen and be pending, whatever it was: somebody new has bound the channel.
    pub(crate) fn start(&self, end: usize, bell: &OwnedFd) {
        if let Some(word) = self.of_end(end) {
            word.store(PENDING, SeqCst);
            // It fails only where the eventfd is at its end, and then it is readable.
            let _ = ring(bell);
        }
    }

    /// Makes an end pending that somebody has and may have masked.
    pub(crate) fn wake(&self, end: usize, bell: &OwnedFd) {
        if let Some(word) = self.of_end(end)
            && word.fetch_or(PENDING, SeqCst) & MASKED == 0
        {
            // Even if it was pending: who set that may have died before writing the eventfd.
            let _ = ring(bell);
        }
    }
}

/// An eventfd for one end to wait on.
pub(crate) fn bell() -> Result<OwnedFd, HostError> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map(OwnedFd::from)
        .map_err(|errno| HostError::new("make an eventfd", errno as i32))
}

fn ring(bell: &OwnedFd) -> nix::Result<()> {
    match nix::unistd::write(bell, &1_u64.to_ne_bytes()) {
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Empties an eventfd without ever waiting.
fn empty(bell: &OwnedFd) {
    let mut count = [0_u8; 8];
    let part = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
    // SAFETY: `part` names eight bytes that are ours and live across the call; offset -1 is how a
    // file without offsets is read.
    let read = unsafe { libc::preadv2(bell.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
    if read < 0 && matches!(Errno::last(), Errno::EOPNOTSUPP | Errno::ENOSYS) {
        // A kernel without it (before 5.8): then the file's mode decides.
        let _ = nix::unistd::read(bell, &mut count);
    }
}

/// One end of an event channel. Dropping it closes it, and leaves the peer's end unbound.
///
/// As a file descriptor it polls readable while it is pending and unmasked. It may do so once more
/// after that; [`take`](Channel::take) then says that there was nothing, and ends it.
#[derive(Debug)]
pub struct EventChannel {
    session: Arc<Session>,
    port: EventPort,
    own: usize,
    words: Words,
    own_bell: OwnedFd,
    peer_bell: OwnedFd,
}

impl EventChannel {
    fn opened(
        domain: &Domain,
        request: &Request,
        doing: &dyn Fn() -> String,
    ) -> Result<Self, HostError> {
        let (reply, beside) = domain.ask(request, doing)?;
        let (Reply::Channel { port, end }, Ok([words, own_bell, peer_bell])) =
            (reply, <[OwnedFd; 3]>::try_from(beside))
        else {
            return Err(unexpected(doing()));
        };
        Ok(Self {
            session: domain.session(),
            port: EventPort(port),
            own: end as usize,
            words: Words::of(&words)?,
            own_bell,
            peer_bell,
        })
    }

    fn own_word(&self) -> Option<&AtomicU32> {
        self.words.of_end(self.own)
    }
}

impl Events for Domain {
    type Channel = EventChannel;

    fn allocate(&self, peer: DomId) -> Result<EventChannel, HostError> {
        EventChannel::opened(self, &Request::Allocate { peer: peer.get() }, &|| {
            format!("allocate an event channel for domain {peer}")
        })
    }

    fn bind(&self, peer: DomId, port: EventPort) -> Result<EventChannel, HostError> {
        EventChannel::opened(self, &Request::Bind { peer: peer.get(), port: port.0 }, &|| {
            format!("bind event channel {port} of domain {peer}")
        })
    }
}

impl Channel for EventChannel {
    fn port(&self) -> EventPort {
        self.port
    }

    fn notify(&self) -> Result<(), HostError> {
        let Some(word) = self.words.of_end(self.own.wrapping_add(1)) else { return Ok(()) };
        if word.fetch_or(PENDING, SeqCst) & (PENDING | MASKED) != 0 {
            return Ok(());
        }
        ring(&self.peer_bell).map_err(|errno| {
            HostError::new(format!("notify through event channel {}", self.port), errno as i32)
        })
    }

    fn take(&self) -> bool {
        empty(&self.own_bell);
        let Some(word) = self.own_word() else { return false };
        // A masked end stays as it is; else only PENDING is changed under us, by the peer.
        word.compare_exchange(PENDING, MASKED, SeqCst, SeqCst).is_ok()
    }

    fn unmask(&self) {
        let Some(word) = self.own_word() else { return };
        let before = word.fetch_and(!MASKED, SeqCst);
        if before & (PENDING | MASKED) == PENDING | MASKED {
            // It fails only where the eventfd is at its end, and then it is readable.
            let _ = ring(&self.own_bell);
        }
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.own_bell.as_fd()
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // If the broker is gone, so is the channel.
        let _ = self.session.ask(&Request::Close { port: self.port.0 });
    }
}
