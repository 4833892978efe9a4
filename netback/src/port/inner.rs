//! Ports with nothing behind them: what a guest and its backend do with packets can be measured without
//! any network of the host's. Each queue has one of its own.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use hypervisor::{ConfigError, HostError};

use super::{Port, Readable, Turned, poll};
use crate::buffer::{Buffer, Pool};
use crate::tx::BATCH;
use crate::vnet::Header;

/// What becomes of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Whatever the guest sends is taken, and is gone.
    Sink,
    /// Whatever it sends comes back as it is. What it has no room for waits, and then it cannot send.
    Echo,
    /// It is sent packets of the least size as fast as it takes them; what it sends is gone.
    Source,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sink, Self::Echo, Self::Source];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sink => "sink",
            Self::Echo => "echo",
            Self::Source => "source",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| ConfigError::new("port", name, "there are sink, echo and source"))
    }
}

/// What a source sends: to all, from one that nobody has, of the type for local experiments (IEEE 802),
/// and nothing in it.
const PACKET: [u8; 60] = {
    let mut packet = [0; 60];
    let (head, _) = packet.split_at_mut(14);
    head.copy_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 0, 0, 0, 1, 0x88, 0xB5]);
    packet
};

/// One of them.
#[derive(Debug)]
pub struct Inner {
    kind: Kind,
    /// Taken on, and where they come back, not given back yet.
    held: VecDeque<Buffer>,
    /// How many of those were not counted yet.
    new: u64,
}

impl Inner {
    /// A port of that kind.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self { kind, held: VecDeque::with_capacity(BATCH), new: 0 }
    }

    fn has_some(&self) -> bool {
        self.kind == Kind::Source || !self.held.is_empty()
    }
}

impl Port for Inner {
    fn room(&self) -> usize {
        BATCH.saturating_sub(self.held.len())
    }

    fn send(&mut self, packet: Buffer) {
        self.new = self.new.saturating_add(1);
        self.held.push_back(packet);
    }

    fn turn(
        &mut self,
        pool: &mut Pool,
        most: usize,
        into: &mut VecDeque<Buffer>,
    ) -> Result<Turned, HostError> {
        match self.kind {
            Kind::Sink | Kind::Source => self.held.drain(..).for_each(|packet| pool.put(packet)),
            Kind::Echo => into.extend(self.held.drain(..most.min(self.held.len()))),
        }
        if self.kind == Kind::Source {
            for _ in 0..most.min(BATCH) {
                let Some(mut buffer) = pool.take() else { break };
                buffer.fill(&Header::default(), &PACKET);
                into.push_back(buffer);
            }
        }
        Ok(Turned { sent: std::mem::take(&mut self.new), lost: 0 })
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        receive: bool,
        timeout: Option<Duration>,
    ) -> Result<Readable, HostError> {
        if receive && self.has_some() {
            return Ok(Readable::NONE);
        }
        poll::sleep(watched, std::iter::empty(), timeout)
    }

    fn carrier(&mut self, _up: bool) -> Result<(), HostError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(kind: Kind) -> (Inner, Pool) {
        let (mut port, mut pool) = (Inner::new(kind), Pool::new(300));
        for n in 0..3 {
            let mut buffer = pool.take().unwrap();
            buffer.fill(&Header { flags: 1, ..Header::default() }, &[n; 60]);
            port.send(buffer);
        }
        assert_eq!(port.room(), BATCH - 3);
        (port, pool)
    }

    #[test]
    fn what_is_sent_into_a_sink_is_gone() {
        let (mut port, mut pool) = three(Kind::Sink);
        let mut into = VecDeque::new();
        assert_eq!(port.turn(&mut pool, 8, &mut into).unwrap(), Turned { sent: 3, lost: 0 });
        assert_eq!((into.len(), port.room(), pool.available()), (0, BATCH, 300));
    }

    #[test]
    fn an_echo_is_what_was_sent_as_far_as_there_is_room() {
        let (mut port, mut pool) = three(Kind::Echo);
        let mut into = VecDeque::new();
        assert_eq!(port.turn(&mut pool, 2, &mut into).unwrap(), Turned { sent: 3, lost: 0 });
        assert_eq!(port.wait(&[], true, None), Ok(Readable::NONE), "one is left");
        assert_eq!(port.turn(&mut pool, 2, &mut into).unwrap(), Turned { sent: 0, lost: 0 });
        for n in 0..3 {
            let packet = into.pop_front().unwrap();
            assert_eq!((packet.packet(), packet.header().flags), (&[n; 60][..], 1));
        }
        assert!(into.is_empty());
    }

    #[test]
    fn a_source_has_always_some() {
        let (mut port, mut pool) = three(Kind::Source);
        let mut into = VecDeque::new();
        for _ in 0..2 {
            port.turn(&mut pool, 8, &mut into).unwrap();
            assert_eq!(port.wait(&[], true, None), Ok(Readable::NONE));
        }
        assert_eq!((into.len(), port.room()), (16, BATCH));
        assert!(into.iter().all(|packet| packet.packet() == PACKET));
    }

    #[test]
    fn each_is_called_what_it_is() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("hole".parse::<Kind>().unwrap_err().to_string().contains("hole"));
    }
}
