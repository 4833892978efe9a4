//! What a guest may call itself, and which multicast packets it wants.
//!
//! Without a filter a guest may send as whomever it likes, which is what a guest that is a bridge or a
//! router needs. With one, the Ethernet source must be its own address; and where IP addresses are
//! listed, the guest may send from those and no others, and may claim no others in ARP and in neighbour
//! discovery. What then is neither IP nor ARP is not let through, for it cannot be told whose it is.
//! From no address at all a guest may ask for one: DHCP, ARP's probe, and duplicate address detection.
//!
//! Before: `tx::validate`, and `rx::take` for multicast. Trust: packets are the guest's. Source: RFC
//! 826, RFC 5227 section 2.1.1, RFC 2131 section 4.1, RFC 4861 sections 4 and 4.6.1, RFC 4862 section
//! 5.4.2; "Multicast" in io/netif.h (RELEASE-4.17).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use ring::packet::{Addresses, Headers, Protocol};
use ring::wire::netif::chain::Multicast;

use crate::memo::Memo;

/// An Ethernet address.
pub type Mac = [u8; 6];

const ARP: u16 = 0x0806;
const ICMPV6: u8 = 58;
const DHCP_SERVER: u16 = 67;

/// ICMPv6 types of neighbour discovery.
mod discovery {
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub(super) const REDIRECT: u8 = 137;
    /// Options: the sender's and the target's Ethernet address.
    pub(super) const LINK_ADDRESSES: [u8; 2] = [1, 2];
}

/// Whom a guest may send as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sources {
    /// From this Ethernet address only.
    pub mac: Option<Mac>,
    /// From these IP addresses only, of either kind; `None` for any.
    pub addresses: Option<Vec<std::net::IpAddr>>,
}

impl Sources {
    /// From this Ethernet address, and from these IP addresses; from any where there is none.
    #[must_use]
    pub const fn of(mac: Option<Mac>, addresses: Option<Vec<std::net::IpAddr>>) -> Self {
        Self { mac, addresses }
    }

    /// Whether there is nothing to look for.
    #[inline]
    #[must_use]
    pub const fn is_any(&self) -> bool {
        self.mac.is_none() && self.addresses.is_none()
    }

    /// Whether a packet, with `headers` where they could be followed, may be sent.
    #[must_use]
    pub fn allow(&self, packet: &[u8], headers: Option<&Headers>) -> bool {
        let from = get::<6>(packet, 6);
        if self.mac.is_some_and(|mac| from != Some(mac)) {
            return false;
        }
        if self.addresses.is_none() && self.mac.is_none() {
            return true;
        }
        let Some(headers) = headers else { return self.addresses.is_none() };
        if headers.ether_type == ARP {
            // Behind the Ethernet header and its tags.
            let at = headers.tags.saturating_mul(4).saturating_add(14);
            return self.allow_arp(packet.get(at..).unwrap_or_default());
        }
        let Some(ip) = &headers.ip else { return self.addresses.is_none() };
        match &ip.addresses {
            Addresses::V4(at) => {
                let Some(source) = get::<4>(packet, at.start).map(Ipv4Addr::from) else {
                    return false;
                };
                self.has_v4(source) || (source.is_unspecified() && is_dhcp(packet, headers))
            }
            Addresses::V6(at) => {
                let Some(source) = get::<16>(packet, at.start).map(Ipv6Addr::from) else {
                    return false;
                };
                if !self.has_v6(source) && !source.is_unspecified() {
                    return false;
                }
                if ip.number == ICMPV6 && !ip.fragment {
                    // ICMPv6 ends the headers; where it begins is not kept for what is not TCP or UDP.
                    let body = packet.get(at.end..ip.end).unwrap_or_default();
                    let first = packet.get(ip.at.saturating_add(6)).copied();
                    let message = if first == Some(ICMPV6) { body } else { behind(body, first) };
                    return self.allow_discovery(message, source);
                }
                // Nothing else is sent from nowhere; and discovery in fragments is nobody's.
                !source.is_unspecified() && ip.number != ICMPV6
            }
        }
    }

    fn has_v4(&self, address: Ipv4Addr) -> bool {
        self.addresses.as_ref().is_none_or(|list| list.iter().any(|each| *each == address))
    }

    fn has_v6(&self, address: Ipv6Addr) -> bool {
        self.addresses.as_ref().is_none_or(|list| list.iter().any(|each| *each == address))
    }

    /// An ARP message for IPv4 over Ethernet: its sender is the guest.
    fn allow_arp(&self, message: &[u8]) -> bool {
        // Hardware Ethernet, protocol IPv4, lengths 6 and 4.
        if get::<6>(message, 0) != Some([0, 1, 8, 0, 6, 4]) {
            return false;
        }
        let (Some(mac), Some(ip)) = (get::<6>(message, 8), get::<4>(message, 14)) else {
            return false;
        };
        let ip = Ipv4Addr::from(ip);
        self.mac.is_none_or(|own| own == mac) && (ip.is_unspecified() || self.has_v4(ip))
    }

    /// An ICMPv6 message from `source`.
    fn allow_discovery(&self, message: &[u8], source: Ipv6Addr) -> bool {
        let Some([kind]) = get::<1>(message, 0) else { return false };
        let (target, options) = match kind {
            discovery::ROUTER_SOLICITATION => (None, 8),
            discovery::NEIGHBOUR_SOLICITATION | discovery::NEIGHBOUR_ADVERTISEMENT => {
                let Some(target) = get::<16>(message, 8).map(Ipv6Addr::from) else { return false };
                (Some(target), 24)
            }
            // A guest with a list of addresses is no router.
            discovery::ROUTER_ADVERTISEMENT | discovery::REDIRECT => {
                return self.addresses.is_none() && !source.is_unspecified();
            }
            // Listener reports go out before there is an address.
            _ => return !source.is_unspecified() || (130..=143).contains(&kind),
        };
        // What is claimed: with an answer, and with a question from nowhere.
        let claims = kind == discovery::NEIGHBOUR_ADVERTISEMENT || source.is_unspecified();
        if claims && target.is_some_and(|target| !self.has_v6(target)) {
            return false;
        }
        self.mac.is_none_or(|mac| link_addresses(message, options).all(|each| each == Some(mac)))
    }
}

/// The Ethernet addresses in the options of a message; `None` for what cannot be followed.
fn link_addresses(message: &[u8], from: usize) -> impl Iterator<Item = Option<Mac>> + '_ {
    let mut at = from;
    std::iter::from_fn(move || {
        while at < message.len() {
            let Some([kind, units]) = get::<2>(message, at).filter(|[_, units]| *units > 0) else {
                at = message.len();
                return Some(None);
            };
            let option = at;
            at = at.saturating_add(usize::from(units).saturating_mul(8));
            if discovery::LINK_ADDRESSES.contains(&kind) {
                return Some(get::<6>(message, option.saturating_add(2)));
            }
        }
        None
    })
}

/// What stands behind one extension after another, down to ICMPv6. The headers were followed before,
/// so the extensions are whole.
fn behind(mut rest: &[u8], mut number: Option<u8>) -> &[u8] {
    while number.is_some_and(|number| number != ICMPV6) {
        let Some([next, units]) = get::<2>(rest, 0) else { return &[] };
        let bytes = match number {
            Some(44) => 8,
            Some(51) => usize::from(units).saturating_add(2).saturating_mul(4),
            _ => usize::from(units).saturating_add(1).saturating_mul(8),
        };
        rest = rest.get(bytes..).unwrap_or_default();
        number = Some(next);
    }
    rest
}

/// A question to a DHCP server.
fn is_dhcp(packet: &[u8], headers: &Headers) -> bool {
    headers.transport().is_some_and(|transport| {
        let to = get::<2>(packet, transport.at.saturating_add(2)).map(u16::from_be_bytes);
        transport.protocol == Protocol::Udp && to == Some(DHCP_SERVER)
    })
}

#[inline]
fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The multicast addresses that a frontend wants packets for, where it chose to say
/// (`request-multicast-control`). All queues of a device share it.
#[derive(Debug, Default)]
pub struct Groups {
    chosen: AtomicBool,
    /// The list was another process's.
    unknown: AtomicBool,
    listed: Mutex<Vec<Mac>>,
    /// What outlives this process of it.
    memo: OnceLock<Arc<Memo>>,
}

impl Groups {
    /// How many a frontend may list: as many as Linux's backend takes (v6.1).
    pub const MOST: usize = 64;

    /// Whether the frontend chooses.
    pub fn choose(&self, chosen: bool) {
        self.chosen.store(chosen, Ordering::Relaxed);
    }

    /// What the frontend listed, it told a backend before us: it gets all multicast packets, and drops those that it
    /// does not want.
    pub fn forget_list(&self) {
        self.unknown.store(true, Ordering::Relaxed);
    }

    /// What the frontend listed is this.
    pub fn list(&self, groups: Vec<Mac>) {
        if let Ok(mut listed) = self.listed.lock() {
            *listed = groups;
            listed.truncate(Self::MOST);
        }
    }

    /// Changes are kept in `memo` from now on.
    pub(crate) fn keep(&self, memo: &Arc<Memo>) {
        // Once for each connection.
        let _ = self.memo.set(Arc::clone(memo));
    }

    /// Changes the list. Says whether that was done: it has an end.
    pub fn change(&self, change: Multicast) -> bool {
        let Ok(mut listed) = self.listed.lock() else { return false };
        let before = listed.len();
        let done = match change {
            Multicast::Add(address) if listed.contains(&address) => true,
            Multicast::Add(address) => {
                let room = before < Self::MOST;
                if room {
                    listed.push(address);
                }
                room
            }
            Multicast::Delete(address) => {
                listed.retain(|each| *each != address);
                true
            }
        };
        if let Some(memo) = self.memo.get()
            && listed.len() != before
        {
            memo.listed(&listed);
        }
        done
    }

    /// Whether the frontend wants this packet. It always wants broadcasts.
    #[inline]
    #[must_use]
    pub fn wants(&self, packet: &[u8]) -> bool {
        let Some(to) = get::<6>(packet, 0) else { return true };
        let multicast = to[0] & 1 == 1 && to != [0xFF; 6];
        if !multicast
            || !self.chosen.load(Ordering::Relaxed)
            || self.unknown.load(Ordering::Relaxed)
        {
            return true;
        }
        self.listed.lock().is_ok_and(|listed| listed.contains(&to))
    }
}

#[cfg(test)]
mod tests;
