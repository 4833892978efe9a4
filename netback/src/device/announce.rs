//! Tells the network where a guest is, so that bridges and switches send its packets here.
//!
//! A broadcast from its address does that; the one that is usual has it ask for its own IP address (RARP), which
//! nobody answers. QEMU asks for it after a migration of a machine that cannot do it itself; we do so whenever a
//! machine begins to use its interface, which may be a new one on its bridge. Source: RFC 903; QEMU,
//! docs/interop/vhost-user.rst, `VHOST_USER_SEND_RARP`.

use hypervisor::{Error, Peer, PeerFault};

use crate::device::vif::Vif;
use crate::filter::Mac;

/// Bytes of the least packet that Ethernet has, without its checksum.
const LEAST: usize = 60;
/// The least payload that IPv4 may be given (RFC 791).
const LEAST_MTU: u64 = 68;

/// A reverse ARP request of `mac`'s for itself.
fn rarp(mac: Mac) -> Vec<u8> {
    let mut packet = vec![0xFF; 6];
    packet.extend(mac);
    // EtherType; hardware Ethernet, protocol IPv4, lengths 6 and 4; reverse request.
    packet.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    // Sender and target: each an Ethernet and an IP address.
    for _ in 0..2 {
        packet.extend(mac);
        packet.extend([0; 4]);
    }
    packet.resize(LEAST, 0);
    packet
}

impl Vif {
    /// Tells the network that the guest is here, where its address is known.
    pub(super) fn announce(&self) {
        if let Some(mac) = self.policy().mac {
            self.announce_as(mac);
        }
    }

    /// Tells it that a guest with that address is here, if this one may be that.
    pub(super) fn announce_as(&self, mac: Mac) {
        let allowed = self.policy().sources.mac.is_none_or(|own| own == mac);
        if !allowed {
            return tracing::warn!(?mac, "not announced: the machine may not send as that");
        }
        if let Some(open) = self.uplink()
            && let Err(error) = open.send(&rarp(mac))
        {
            tracing::warn!("the network is not told where the machine is: {error}");
        }
    }

    /// The machine's monitor tells it of packets with so many bytes of payload.
    ///
    /// # Errors
    ///
    /// There cannot be such packets here.
    pub(super) fn take_mtu(&self, mtu: u64) -> Result<(), Error> {
        let most = self.policy().mtu.unwrap_or(u16::MAX);
        match u16::try_from(mtu) {
            Ok(fits) if mtu >= LEAST_MTU && fits <= most => {
                if self.policy().mtu.is_none()
                    && let Some(open) = self.uplink()
                {
                    open.set_mtu(fits)?;
                }
                Ok(())
            }
            _ => {
                let value = format!("{mtu}, where {LEAST_MTU} to {most} can be; see --mtu");
                Err(PeerFault::new(Peer::Machine, "mtu", value).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_from_the_machine_to_all() {
        let mac = [2, 0, 0, 0, 0, 9];
        let packet = rarp(mac);
        assert_eq!(packet.len(), 60);
        assert_eq!((&packet[..6], &packet[6..12]), (&[0xFF; 6][..], &mac[..]));
        assert_eq!(packet[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&packet[22..28], &packet[32..38]), (&mac[..], &mac[..]));
    }
}
