//! Decides whether a packet may go, and says to the port what is left to do for it.
//!
//! Before: `copy_in`. After: `send`. Headers are looked for only where something hangs on them: a
//! packet that claims nothing, of a guest that may send as anybody, is bytes.
//!
//! Trust: the packet is the guest's, a private copy; every length in it is checked against that.

use ring::packet::Headers;
use ring::packet::segment::say_length;

use super::{Fate, Staged};
use crate::filter::Sources;
use crate::offload::to_port;
use crate::stats::Loss;

/// Checks a packet of a guest that may send as `sources`, and writes its header.
#[inline]
pub fn validate<C>(staged: &mut Staged<C>, sources: &Sources) {
    let Staged { buffer, claims, fate, .. } = staged;
    let (Some(buffer), Fate::Done) = (buffer, &*fate) else { return };
    if claims.segments.is_some() {
        // Who cuts it goes by what there is, and so does everything here.
        let size = buffer.len();
        say_length(buffer.packet_mut(), size);
    }
    let headers = if claims.are_any() || !sources.is_any() {
        Headers::find(buffer.packet()).ok()
    } else {
        None
    };
    if !sources.is_any() && !sources.allow(buffer.packet(), headers.as_ref()) {
        *fate = Fate::Lost(Loss::Source);
        return;
    }
    match to_port(buffer.packet_mut(), headers.as_ref(), claims) {
        Ok(header) => buffer.set_header(&header),
        Err(why) => *fate = Fate::Lost(why),
    }
}
