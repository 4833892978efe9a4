//! The handshake of a Xen network device, backend side.
//!
//! What this backend can do stands in its directory before state InitWait ([`Offer`]). The frontend
//! answers with its rings and event channels and with what it takes itself, which is read and checked
//! ([`read`]) and then taken into use ([`connect`]). Some of that it may change while connected:
//! whether it chooses multicast packets ([`multicast_control`]), and how much room it wants in front of
//! packets ([`headroom`]). The toolstack may change the rate ([`rate`]).
//!
//! Before: `hypervisor::backend`. After: the queues. Trust: the frontend's directory is
//! attacker-written; each value is bounded where it is read. Source: `io/netif.h` (RELEASE-4.17) by way
//! of [`ring::wire::netif::keys`].

use std::time::{Duration, Instant};

use hypervisor::backend::{self, Key};
use hypervisor::event::Events;
use hypervisor::memory::{Access, Using};
use hypervisor::store::{Store, StoreError, Transaction};
use hypervisor::xenbus::{Keys, Seat};
use hypervisor::{Error, EventPort, GrantRef, PeerFault};
use ring::wire::netif::fit::Takes;
use ring::wire::netif::keys::{self, Value};

use crate::connect::{Channels, Connection, ControlLink, Features, Link};
use crate::credit::Rate;
use crate::offload::Sums;

/// The most queues that can be offered, and so be asked for.
pub const MAX_QUEUES: u16 = 64;
/// Time between two tries to bind a channel.
const BETWEEN: Duration = Duration::from_millis(5);
/// `EINVAL`: the hypervisor's word for a port that is not there or not for us.
const EINVAL: i32 = 22;
/// The longest `rate` that could be one.
const LONGEST_RATE: usize = 64;

/// What this backend can do for any frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Queues, from 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Whether a frontend may say how packets are spread over its queues.
    pub control_ring: bool,
}

/// What a frontend wrote for this connection, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// What it takes and does.
    pub features: Features,
    /// Its queues, by number.
    pub queues: Vec<QueueKeys>,
    /// Its control ring, where it has one: the ring's page, and its end of the event channel.
    pub control: Option<(GrantRef, EventPort)>,
}

/// One queue of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueKeys {
    /// The page of the ring on which it sends.
    pub tx: GrantRef,
    /// That of the ring on which it receives.
    pub rx: GrantRef,
    /// Its ends of their event channels.
    pub ports: Ports,
}

/// A frontend's ends of a queue's event channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// One for both rings.
    Both(EventPort),
    /// One for each.
    Split {
        /// For what the guest sends.
        tx: EventPort,
        /// For what it receives.
        rx: EventPort,
    },
}

impl backend::Offer for Offer {
    fn keys(&self) -> Vec<Key> {
        let queues = self.queues.clamp(1, MAX_QUEUES).to_string();
        let mut said: Vec<Key> = [
            (keys::FEATURE_SG, true),
            (keys::FEATURE_GSO_TCPV4, true),
            (keys::FEATURE_GSO_TCPV6, true),
            (keys::FEATURE_IPV6_CSUM_OFFLOAD, true),
            (keys::FEATURE_RX_COPY, true),
            (keys::FEATURE_RX_FLIP, false),
            (keys::FEATURE_MULTICAST_CONTROL, true),
            (keys::FEATURE_DYNAMIC_MULTICAST_CONTROL, true),
            (keys::FEATURE_SPLIT_EVENT_CHANNELS, true),
            (keys::FEATURE_CTRL_RING, self.control_ring),
            (keys::FEATURE_XDP_HEADROOM, true),
        ]
        .map(|(key, on)| (key.name, u8::from(on).to_string()))
        .into();
        said.push((keys::MULTI_QUEUE_MAX_QUEUES.name, queues));
        said
    }

    fn after<S: Store + ?Sized>(&self, seat: &Seat, store: &S) -> Result<Self, Error> {
        let said = own(seat, store, keys::MULTI_QUEUE_MAX_QUEUES.name)?;
        let before = said.and_then(|text| text.parse().ok()).unwrap_or(1);
        Ok(Self { queues: self.queues.max(MAX_QUEUES.min(before)), ..*self })
    }
}

/// Reads what the frontend wrote for this connection.
///
/// # Errors
///
/// A key is missing or says what cannot be: the frontend's fault, with the key's path, its value
/// and what would have been allowed. Or the store is gone.
pub fn read<S: Store + ?Sized>(
    seat: &Seat,
    store: &S,
    offered: &Offer,
) -> Result<Transport, Error> {
    let keys = seat.peer_keys(store, Transaction::NONE);
    if !flag(&keys, &keys::REQUEST_RX_COPY)? {
        let what = "frontend does not want to be copied to";
        return Err(PeerFault::new(seat.peer, what, keys::REQUEST_RX_COPY.name).into());
    }
    let features = features(seat, store, &keys)?;
    let most = offered.queues.clamp(1, MAX_QUEUES);
    let many = keys.number(keys::MULTI_QUEUE_NUM_QUEUES.name, 1..=most)?.unwrap_or(1);
    let mut queues = Vec::with_capacity(many.into());
    if many == 1 {
        queues.push(queue(&keys)?);
    } else {
        for number in 0..many {
            let directory = format!("{}/queue-{number}", seat.opposite);
            let keys = Keys::new(store, Transaction::NONE, &directory, seat.peer);
            queues.push(queue(&keys)?);
        }
    }
    let control = match keys.number(keys::CTRL_RING_REF.name, 0..=u32::MAX)? {
        Some(gref) if offered.control_ring => {
            Some((GrantRef(gref), port(&keys, keys::EVENT_CHANNEL_CTRL.name)?))
        }
        _ => None,
    };
    Ok(Transport { features, queues, control })
}

/// Maps the frontend's rings and binds its event channels. A channel that a process had which was just killed
/// may be that one's for a moment, until the kernel is done with all that it had under way: so
/// long is waited for it, within `patience`.
///
/// # Errors
///
/// The hypervisor refuses a grant or a port: the frontend's fault. Or the host cannot. Whatever was
/// mapped or bound before that is let go.
pub fn connect<H>(
    seat: &Seat,
    domain: &H,
    transport: &Transport,
    patience: Duration,
) -> Result<Connection<H::Mapping, H::Channel>, Error>
where
    H: Using + Events,
{
    let map = |gref| domain.map(seat.peer, &[gref], Access::ReadWrite).map_err(Error::from);
    let begun = Instant::now();
    let bind = |port| loop {
        match domain.bind(seat.peer, port) {
            Ok(channel) => break Ok(channel),
            Err(error) if error.errno != EINVAL => break Err(Error::from(error)),
            Err(_) if begun.elapsed() < patience => std::thread::sleep(BETWEEN),
            Err(_) => {
                let what = "event channel is refused";
                break Err(PeerFault::new(seat.peer, what, port).into());
            }
        }
    };
    let mut links = Vec::with_capacity(transport.queues.len());
    for queue in &transport.queues {
        let (tx, rx) = (map(queue.tx)?, map(queue.rx)?);
        let channels = match queue.ports {
            Ports::Both(port) => Channels::Both(bind(port)?),
            Ports::Split { tx, rx } => Channels::Split { tx: bind(tx)?, rx: bind(rx)? },
        };
        links.push(Link::new(tx, rx, channels));
    }
    let control = match transport.control {
        Some((gref, port)) => Some(ControlLink::new(map(gref)?, bind(port)?)),
        None => None,
    };
    Ok(Connection::new(seat.peer, transport.features, links, control))
}

/// Whether the frontend wants only the multicast packets that it lists, now.
///
/// # Errors
///
/// It says what cannot be, or the store is gone.
pub fn multicast_control<S: Store + ?Sized>(seat: &Seat, store: &S) -> Result<bool, Error> {
    flag(&seat.peer_keys(store, Transaction::NONE), &keys::REQUEST_MULTICAST_CONTROL)
}

/// How many bytes the frontend wants free in front of packets, now.
///
/// # Errors
///
/// It says what cannot be, or the store is gone.
pub fn headroom<S: Store + ?Sized>(seat: &Seat, store: &S) -> Result<u16, Error> {
    let keys = seat.peer_keys(store, Transaction::NONE);
    let most = u16::try_from(keys::MAX_XDP_HEADROOM).unwrap_or(u16::MAX);
    Ok(keys.number(keys::XDP_HEADROOM.name, 0..=most)?.unwrap_or(0))
}

/// The rate that the toolstack gave what the guest sends, now.
///
/// # Errors
///
/// It is not of the form of one, or the store is gone.
pub fn rate<S: Store + ?Sized>(seat: &Seat, store: &S) -> Result<Option<Rate>, Error> {
    match own(seat, store, keys::RATE.name)? {
        Some(text) => Ok(Rate::parse(text.get(..LONGEST_RATE).unwrap_or(&text))?),
        None => Ok(None),
    }
}

/// What stands in our own directory, as far as it is text.
fn own<S: Store + ?Sized>(seat: &Seat, store: &S, key: &str) -> Result<Option<String>, StoreError> {
    match store.read(Transaction::NONE, &format!("{}/{key}", seat.own)) {
        Ok(value) => Ok(String::from_utf8(value).ok()),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn features<S: Store + ?Sized>(
    seat: &Seat,
    store: &S,
    keys: &Keys<'_, S>,
) -> Result<Features, Error> {
    let sums = Sums {
        v4: !flag(keys, &keys::FEATURE_NO_CSUM_OFFLOAD)?,
        v6: flag(keys, &keys::FEATURE_IPV6_CSUM_OFFLOAD)?,
    };
    let mut takes = Takes::default();
    takes.sg = flag(keys, &keys::FEATURE_SG)?;
    // A packet to be cut has more than a page, and a blank checksum.
    takes.gso_tcpv4 = flag(keys, &keys::FEATURE_GSO_TCPV4)? && takes.sg && sums.v4;
    takes.gso_tcpv6 = flag(keys, &keys::FEATURE_GSO_TCPV6)? && takes.sg && sums.v6;
    takes.headroom = headroom(seat, store)?;
    let mut features = Features::new(takes, sums);
    features.rx_notify = flag(keys, &keys::FEATURE_RX_NOTIFY)?;
    features.multicast_control = flag(keys, &keys::REQUEST_MULTICAST_CONTROL)?;
    Ok(features)
}

/// What `key` says, or what it means that it is not there.
fn flag<S: Store + ?Sized>(keys: &Keys<'_, S>, key: &keys::Key) -> Result<bool, Error> {
    let absent = matches!(key.value, Value::Flag { absent: true });
    Ok(keys.said(key.name)?.unwrap_or(absent))
}

/// One queue's rings and channels. A channel for Tx counts beside one for Rx only: where one of the two is
/// missing, Linux's backend (v6.1) takes the one for both.
fn queue<S: Store + ?Sized>(keys: &Keys<'_, S>) -> Result<QueueKeys, Error> {
    let ring = |key: &keys::Key| keys.needed(key.name, 0..=u32::MAX).map(GrantRef);
    let (tx, rx) = (ring(&keys::TX_RING_REF)?, ring(&keys::RX_RING_REF)?);
    let split = |key: &keys::Key| keys.number(key.name, 1..=u32::MAX).map(|n| n.map(EventPort));
    let ports = match (split(&keys::EVENT_CHANNEL_TX)?, split(&keys::EVENT_CHANNEL_RX)?) {
        // The same port in both keys is one channel, to Linux as well.
        (Some(tx), Some(rx)) if rx == tx => Ports::Both(tx),
        (Some(tx), Some(rx)) => Ports::Split { tx, rx },
        _ => Ports::Both(port(keys, keys::EVENT_CHANNEL.name)?),
    };
    Ok(QueueKeys { tx, rx, ports })
}

fn port<S: Store + ?Sized>(keys: &Keys<'_, S>, key: &str) -> Result<EventPort, Error> {
    keys.needed(key, 1..=u32::MAX).map(EventPort)
}
