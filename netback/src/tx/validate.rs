//! Decides whether a packet may go, and says to the port what is left to do for it.
//!
//! Before: `copy_in`. After: `send`. Headers are looked for only where something hangs on them: a
//! packet that claims nothing, of a guest that may send as anybody, is bytes.
//!
//! Trust: the packet is the guest's, a private copy; every length in it is checked against that.

use ring::packet::Headers;
use ring::packet::segment::say_length;
use ring::wire::netif::chain::Checksum;
use ring::wire::netif::gather::Content;

use super::{Fate, Staged};
use crate::filter::Sources;
use crate::offload::to_port;

/// Checks a packet of a guest that may send as `sources`, and writes its header.
#[inline]
pub fn validate(staged: &mut Staged, sources: &Sources) {
    let Staged { chain, buffer, fate } = staged;
    let (Some(buffer), Fate::Done) = (buffer, &*fate) else { return };
    let Content::Packet(packet) = chain.content() else { return };
    let offload = packet.offload;
    if offload.gso.is_some() {
        // Who cuts it goes by what there is, and so does everything here.
        say_length(buffer.packet_mut(), usize::from(packet.size));
    }
    let claims = offload.gso.is_some() || offload.checksum == Checksum::Blank;
    let headers =
        if claims || !sources.is_any() { Headers::find(buffer.packet()).ok() } else { None };
    if !sources.is_any() && !sources.allow(buffer.packet(), headers.as_ref()) {
        *fate = Fate::Lost(crate::stats::Loss::Source);
        return;
    }
    match to_port(buffer.packet_mut(), headers.as_ref(), &offload) {
        Ok(header) => buffer.set_header(&header),
        Err(why) => *fate = Fate::Lost(why),
    }
}
