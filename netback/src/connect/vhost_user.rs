//! What a virtual machine's driver and this backend agree on.
//!
//! Features and configuration are all that a virtio network device has of a handshake; the rest is the session's
//! ([`hypervisor::vhost_user`]). Not every monitor lets the driver see all of that: QEMU has an address, a link and
//! a control queue of its own for its machines, and cloud-hypervisor a control queue; crosvm leaves all of it to
//! us. Source: virtio 1.2, 5.1.3 and 5.1.4.

use hypervisor::vhost_user::VERSION_1;
use ring::wire::virtio_net::{Configuration, LINK_UP, feature};

use crate::filter::Mac;
use crate::offload::Accepts;
use crate::port::tap::Offloads;
use crate::vnet::Header;

/// The most pairs of queues that can be offered.
pub const MAX_PAIRS: u16 = 64;
/// The largest payload of a packet, where nothing else was said.
const MTU: u16 = 1500;

/// What a device is like that is offered to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Pairs of queues, from 1 to [`MAX_PAIRS`].
    pub pairs: u16,
    /// The machine's address, where we know it.
    pub mac: Option<Mac>,
    /// The largest payload of a packet, where it was said.
    pub mtu: Option<u16>,
    /// Whether large UDP can be left to the host, and taken from it.
    pub uso: bool,
}

impl Offer {
    /// What the device can do.
    #[must_use]
    pub const fn features(&self) -> u64 {
        let mut all = feature::CSUM
            | feature::GUEST_CSUM
            | feature::MTU
            | feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::GUEST_ECN
            | feature::HOST_TSO4
            | feature::HOST_TSO6
            | feature::HOST_ECN
            | feature::MRG_RXBUF
            | feature::STATUS
            | feature::CTRL_VQ
            | feature::GUEST_ANNOUNCE;
        if self.mac.is_some() {
            all |= feature::MAC;
        }
        if self.pairs > 1 {
            all |= feature::MQ;
        }
        if self.uso {
            all |= feature::GUEST_USO4 | feature::GUEST_USO6 | feature::HOST_USO;
        }
        all
    }

    /// What the driver is told, while the link is `up` or down.
    #[must_use]
    pub fn configuration(&self, up: bool) -> Configuration {
        Configuration {
            mac: self.mac.unwrap_or_default(),
            status: if up { LINK_UP } else { 0 },
            max_virtqueue_pairs: self.pairs,
            mtu: self.mtu.unwrap_or(MTU),
        }
    }
}

/// The number of the control queue of a driver with these features; `None` where it has none.
#[must_use]
pub const fn control_queue(features: u64, pairs: u16) -> Option<u16> {
    if features & feature::CTRL_VQ == 0 {
        return None;
    }
    let used = if features & feature::MQ != 0 { pairs } else { 1 };
    Some(used.saturating_mul(2))
}

/// Bytes of the header in front of each packet of a driver with these features.
#[inline]
#[must_use]
pub const fn header_bytes(features: u64) -> usize {
    let whole = features & (VERSION_1 | feature::MRG_RXBUF) != 0;
    if whole { Header::SIZE } else { Header::SHORT }
}

/// What a driver with these features takes.
#[must_use]
pub const fn accepts(features: u64) -> Accepts {
    let sums = features & feature::GUEST_CSUM != 0;
    let uso = feature::GUEST_USO4 | feature::GUEST_USO6;
    Accepts {
        sums,
        tso4: sums && features & feature::GUEST_TSO4 != 0,
        tso6: sums && features & feature::GUEST_TSO6 != 0,
        ecn: features & feature::GUEST_ECN != 0,
        uso: sums && features & uso == uso,
    }
}

/// What of that the host's kernel can leave to the driver.
#[must_use]
pub const fn offloads(features: u64) -> Offloads {
    let Accepts { sums, tso4, tso6, ecn, uso } = accepts(features);
    Offloads { sums, tso4, tso6, ecn: ecn && (tso4 || tso6), uso }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_queue_is_behind_the_last_pair_that_may_be_used() {
        assert_eq!(control_queue(feature::MQ, 4), None);
        assert_eq!(control_queue(feature::CTRL_VQ, 4), Some(2));
        assert_eq!(control_queue(feature::CTRL_VQ | feature::MQ, 4), Some(8));
    }

    #[test]
    fn a_driver_is_left_nothing_that_needs_a_checksum_which_it_does_not_complete() {
        let large = feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_ECN;
        let none = Accepts { sums: false, tso4: false, tso6: false, ecn: true, uso: false };
        assert_eq!(accepts(large | feature::GUEST_USO4 | feature::GUEST_USO6), none);
        assert_eq!(offloads(large), Offloads::default());
        let all = offloads(large | feature::GUEST_CSUM);
        assert!(all.sums && all.tso4 && all.tso6 && all.ecn && !all.uso);
        assert!(!accepts(feature::GUEST_CSUM | feature::GUEST_USO4).uso, "both families or none");
    }

    #[test]
    fn what_is_not_there_is_not_offered() {
        let mut offer = Offer { pairs: 1, mac: None, mtu: None, uso: false };
        let extra = feature::MAC | feature::MQ | feature::HOST_USO;
        assert_eq!(offer.features() & extra, 0);
        (offer.pairs, offer.mac, offer.uso) = (2, Some([2; 6]), true);
        assert_eq!(offer.features() & extra, extra);
        let said = offer.configuration(true);
        assert_eq!((said.mac, said.status, said.mtu), ([2; 6], LINK_UP, 1500));
        assert_eq!(offer.configuration(false).status, 0);
    }
}
