//! What the two ends agree on, and the keys in which they say so.
//!
//! Source: `io/netif.h`, RELEASE-4.17, by way of [`ring::wire::netif::keys`]. The backend offers before
//! its state is InitWait; we choose and publish with Connected, as backends know frontends. What a
//! backend says is checked for range here, in the same way whether it is heard for the first time or
//! after a reconnection (advisories 405, 465). Sizes are in bytes.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hypervisor::store::{Store, StoreError, Transaction};
use hypervisor::xenbus::{Keys, Seat};
use hypervisor::{ConfigError, Error, EventPort, GrantRef, PeerFault};
use ring::wire::netif::keys::{self, Key, Value};

/// What an end is able to receive.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Offloads {
    /// Packets of more than one page.
    pub sg: bool,
    /// IPv4 packets with a blank checksum.
    pub checksum_v4: bool,
    /// IPv6 packets with a blank checksum.
    pub checksum_v6: bool,
    /// Large TCP packets over IPv4.
    pub gso_tcpv4: bool,
    /// Large TCP packets over IPv6.
    pub gso_tcpv6: bool,
}

impl Offloads {
    /// Plain packets of up to a page, and nothing else.
    pub const NONE: Self = Self {
        sg: false,
        checksum_v4: false,
        checksum_v6: false,
        gso_tcpv4: false,
        gso_tcpv6: false,
    };
    /// Everything that there is.
    pub const ALL: Self =
        Self { sg: true, checksum_v4: true, checksum_v6: true, gso_tcpv4: true, gso_tcpv6: true };

    /// What both this and `other` have.
    #[must_use]
    pub const fn both(self, other: Self) -> Self {
        Self {
            sg: self.sg && other.sg,
            checksum_v4: self.checksum_v4 && other.checksum_v4,
            checksum_v6: self.checksum_v6 && other.checksum_v6,
            gso_tcpv4: self.gso_tcpv4 && other.gso_tcpv4,
            gso_tcpv6: self.gso_tcpv6 && other.gso_tcpv6,
        }
        .consistent()
    }

    /// Only what makes sense together: a large packet has more than a page, and its checksum is blank.
    #[must_use]
    pub const fn consistent(self) -> Self {
        Self {
            gso_tcpv4: self.gso_tcpv4 && self.sg && self.checksum_v4,
            gso_tcpv6: self.gso_tcpv6 && self.sg && self.checksum_v6,
            ..self
        }
    }
}

/// What a backend offers before there is a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Offer {
    /// The most queues.
    pub queues: u32,
    /// What may be sent to it.
    pub offloads: Offloads,
    /// Whether Tx and Rx may have an event channel each.
    pub split_channels: bool,
    /// Whether it can keep multicast packets from us.
    pub multicast_control: bool,
    /// Whether it takes a control ring.
    pub control_ring: bool,
    /// Whether it can leave bytes free in front of packets.
    pub headroom: bool,
}

impl Offer {
    /// Reads what the backend at `seat` offers.
    ///
    /// # Errors
    ///
    /// A value is out of range, it would not copy into our pages, or the store is gone.
    pub fn read<S: Store + ?Sized>(store: &S, seat: &Seat) -> Result<Self, Error> {
        let keys = seat.peer_keys(store, Transaction::NONE);
        let flag = |key: &Key| flag(&keys, key);
        if !flag(&keys::FEATURE_RX_COPY)? {
            let what = "backend does not copy into pages";
            return Err(PeerFault::new(seat.peer, what, keys::FEATURE_RX_COPY.name).into());
        }
        let offloads = Offloads {
            sg: flag(&keys::FEATURE_SG)?,
            checksum_v4: !flag(&keys::FEATURE_NO_CSUM_OFFLOAD)?,
            checksum_v6: flag(&keys::FEATURE_IPV6_CSUM_OFFLOAD)?,
            gso_tcpv4: flag(&keys::FEATURE_GSO_TCPV4)?,
            gso_tcpv6: flag(&keys::FEATURE_GSO_TCPV6)?,
        };
        let queues = keys.number(keys::MULTI_QUEUE_MAX_QUEUES.name, 1..=65_535)?;
        Ok(Self {
            queues: queues.unwrap_or(1),
            offloads: offloads.consistent(),
            split_channels: flag(&keys::FEATURE_SPLIT_EVENT_CHANNELS)?,
            multicast_control: flag(&keys::FEATURE_MULTICAST_CONTROL)?,
            control_ring: flag(&keys::FEATURE_CTRL_RING)?,
            headroom: flag(&keys::FEATURE_XDP_HEADROOM)?,
        })
    }
}

/// What `key` says, or what it means that it is not there.
fn flag<S: Store + ?Sized>(keys: &Keys<'_, S>, key: &Key) -> Result<bool, Error> {
    let absent = matches!(key.value, Value::Flag { absent: true });
    Ok(keys.said(key.name)?.unwrap_or(absent))
}

/// What a connected interface is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct NetInfo {
    /// Its address, where the toolstack gave it one.
    pub mac: Option<[u8; 6]>,
    /// The largest payload of a packet.
    pub mtu: u32,
    /// Whether the link is up, as the backend has it.
    pub carrier: bool,
}

impl NetInfo {
    /// Reads what the connected backend at `seat` serves, and what the toolstack says of it.
    ///
    /// # Errors
    ///
    /// A value is out of range, or the store is gone.
    pub fn read<S: Store + ?Sized>(store: &S, seat: &Seat) -> Result<Self, Error> {
        let peers = seat.peer_keys(store, Transaction::NONE);
        let mac = match own(store, seat, &keys::MAC)? {
            Some(text) => Some(parse_mac(&text).ok_or_else(|| {
                ConfigError::new(keys::MAC.name, &text, "is not six hexadecimal bytes with colons")
            })?),
            None => None,
        };
        let mtu = match own(store, seat, &keys::MTU)? {
            Some(text) => {
                text.parse().ok().filter(|mtu| (68..=65_535).contains(mtu)).ok_or_else(|| {
                    ConfigError::new(keys::MTU.name, &text, "is no number from 68 to 65535")
                })?
            }
            None => 1500,
        };
        Ok(Self { mac, mtu, carrier: flag(&peers, &keys::CARRIER)? })
    }
}

/// What the toolstack wrote into our own directory.
fn own<S: Store + ?Sized>(store: &S, seat: &Seat, key: &Key) -> Result<Option<String>, StoreError> {
    match store.read(Transaction::NONE, &format!("{}/{}", seat.own, key.name)) {
        Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `00:16:3e:01:02:03`.
#[must_use]
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| matches!(part.len(), 1 | 2))?;
        if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// How the backend finds one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QueueKeys {
    pub(crate) tx_ring: GrantRef,
    pub(crate) rx_ring: GrantRef,
    pub(crate) tx_port: EventPort,
    /// The same as for Tx where the two share a channel.
    pub(crate) rx_port: EventPort,
}

/// How the backend finds the control ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ControlKeys {
    pub(crate) ring: GrantRef,
    pub(crate) port: EventPort,
}

/// What is published besides queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wishes {
    pub(crate) receive: Offloads,
    pub(crate) multicast_control: bool,
    pub(crate) control: Option<ControlKeys>,
}

/// The keys that publish `queues` and `wishes`.
pub(crate) fn publication(queues: &[QueueKeys], wishes: &Wishes) -> Vec<(String, String)> {
    let mut said = Vec::new();
    let mut say = |key: String, value: String| said.push((key, value));
    let takes = wishes.receive.consistent();
    let flags = [
        (keys::REQUEST_RX_COPY, true),
        (keys::FEATURE_RX_NOTIFY, true),
        (keys::FEATURE_SG, takes.sg),
        (keys::FEATURE_GSO_TCPV4, takes.gso_tcpv4),
        (keys::FEATURE_GSO_TCPV6, takes.gso_tcpv6),
        (keys::FEATURE_NO_CSUM_OFFLOAD, !takes.checksum_v4),
        (keys::FEATURE_IPV6_CSUM_OFFLOAD, takes.checksum_v6),
        (keys::REQUEST_MULTICAST_CONTROL, wishes.multicast_control),
    ];
    for (key, wanted) in flags {
        say(key.name.into(), u8::from(wanted).to_string());
    }
    if let Some(control) = wishes.control {
        say(keys::CTRL_RING_REF.name.into(), control.ring.to_string());
        say(keys::EVENT_CHANNEL_CTRL.name.into(), control.port.to_string());
    }
    if queues.len() > 1 {
        say(keys::MULTI_QUEUE_NUM_QUEUES.name.into(), queues.len().to_string());
    }
    for (number, queue) in queues.iter().enumerate() {
        let directory = if queues.len() > 1 { format!("queue-{number}/") } else { String::new() };
        let mut say = |key: Key, value: String| say(format!("{directory}{}", key.name), value);
        say(keys::TX_RING_REF, queue.tx_ring.to_string());
        say(keys::RX_RING_REF, queue.rx_ring.to_string());
        if queue.tx_port == queue.rx_port {
            say(keys::EVENT_CHANNEL, queue.tx_port.to_string());
        } else {
            say(keys::EVENT_CHANNEL_TX, queue.tx_port.to_string());
            say(keys::EVENT_CHANNEL_RX, queue.rx_port.to_string());
        }
    }
    said
}

/// Whether `key` is one that [`publication`] may have written, of this connection or an earlier one
/// with other parameters.
pub(crate) fn publishes(key: &str) -> bool {
    key.starts_with("queue-")
        || [
            keys::REQUEST_RX_COPY,
            keys::FEATURE_RX_NOTIFY,
            keys::FEATURE_SG,
            keys::FEATURE_GSO_TCPV4,
            keys::FEATURE_GSO_TCPV6,
            keys::FEATURE_NO_CSUM_OFFLOAD,
            keys::FEATURE_IPV6_CSUM_OFFLOAD,
            keys::REQUEST_MULTICAST_CONTROL,
            keys::CTRL_RING_REF,
            keys::EVENT_CHANNEL_CTRL,
            keys::MULTI_QUEUE_NUM_QUEUES,
            keys::TX_RING_REF,
            keys::RX_RING_REF,
            keys::EVENT_CHANNEL,
            keys::EVENT_CHANNEL_TX,
            keys::EVENT_CHANNEL_RX,
        ]
        .iter()
        .any(|published| published.name == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_toolstacks_write_them() {
        let mac = Some([0, 0x16, 0x3E, 1, 2, 0xFF]);
        assert_eq!(parse_mac("00:16:3e:01:02:ff"), mac);
        assert_eq!(parse_mac("0:16:3E:1:2:FF"), mac);
        for wrong in
            ["", "00:16:3e:01:02", "00:16:3e:01:02:ff:00", "00:16:3e:01:02:+f", "é:1:2:3:4:5"]
        {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_was_published_can_be_withdrawn() {
        let one = |tx: u32, rx: u32| QueueKeys {
            tx_ring: GrantRef(8),
            rx_ring: GrantRef(9),
            tx_port: EventPort(tx),
            rx_port: EventPort(rx),
        };
        let control = Some(ControlKeys { ring: GrantRef(7), port: EventPort(6) });
        let wishes = Wishes { receive: Offloads::ALL, multicast_control: true, control };
        for queues in [vec![one(1, 1)], vec![one(1, 2)], vec![one(1, 2), one(3, 4)]] {
            for (key, _) in publication(&queues, &wishes) {
                let top = key.split('/').next().unwrap();
                assert!(publishes(top), "{key}");
            }
        }
        for theirs in ["backend", "backend-id", "state", "mac", "mtu", "handle", "trusted"] {
            assert!(!publishes(theirs), "{theirs}");
        }
    }

    #[test]
    fn one_queue_is_published_flat_and_several_are_not() {
        let queue = QueueKeys {
            tx_ring: GrantRef(8),
            rx_ring: GrantRef(9),
            tx_port: EventPort(3),
            rx_port: EventPort(3),
        };
        let wishes = Wishes { receive: Offloads::NONE, multicast_control: false, control: None };
        let flat = publication(&[queue], &wishes);
        let has = |keys: &[(String, String)], key: &str, value: &str| {
            keys.iter().any(|(k, v)| k == key && v == value)
        };
        assert!(has(&flat, "tx-ring-ref", "8") && has(&flat, "event-channel", "3"));
        assert!(has(&flat, "feature-no-csum-offload", "1") && has(&flat, "feature-sg", "0"));
        let split = QueueKeys { rx_port: EventPort(4), ..queue };
        let deep = publication(&[split, split], &wishes);
        assert!(
            has(&deep, "multi-queue-num-queues", "2") && has(&deep, "queue-1/rx-ring-ref", "9")
        );
        assert!(has(&deep, "queue-0/event-channel-rx", "4") && !has(&deep, "tx-ring-ref", "8"));
    }

    #[test]
    fn large_packets_need_pages_and_blank_checksums() {
        let odd = Offloads { sg: false, ..Offloads::ALL };
        assert!(!odd.consistent().gso_tcpv4 && !odd.consistent().gso_tcpv6);
        let odd = Offloads { checksum_v6: false, ..Offloads::ALL };
        assert!(odd.consistent().gso_tcpv4 && !odd.consistent().gso_tcpv6);
    }
}
