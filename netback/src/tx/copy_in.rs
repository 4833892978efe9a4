//! Copies packets out of the guest's pages, all that were taken in a round in one batch.
//!
//! Before: `assemble`. After: `validate`. A packet is copied as a whole before anything of it is looked
//! at, wherever its pieces end: what the guest writes meanwhile tears the copy and changes nothing
//! afterwards (advisories 155, 423, 448). Each piece has a status of its own, and one that was refused
//! loses its packet (advisories 361, 362).

use hypervisor::DomId;
use hypervisor::memory::{CopyOp, Direction, GrantStatus, Using};
use ring::wire::netif::gather::Content;

use super::{Fate, Staged};
use crate::kept::Kept;
use crate::stats::{Loss, Stats};

/// Copies what is `staged` of `peer`, which has its grants in `kept` stay mapped.
#[inline]
pub fn copy_in<'a, U: Using>(
    domain: &U,
    peer: DomId,
    kept: Option<&Kept>,
    staged: impl Iterator<Item = &'a mut Staged>,
    pieces: usize,
    stats: &Stats,
) {
    let kept = kept.and_then(Kept::look);
    let mut found = 0_u64;
    let mut ops = Vec::with_capacity(if kept.is_some() { 0 } else { pieces });
    let mut fates = Vec::new();
    for Staged { chain, buffer, fate, .. } in staged {
        let (Some(buffer), Content::Packet(packet)) = (buffer, chain.content()) else { continue };
        let mut rest = buffer.packet_mut();
        let mut count = 0_usize;
        for piece in packet.pieces() {
            // The sizes add up to the packet's: the first one is what the others leave of it.
            let Some((local, after)) = rest.split_at_mut_checked(usize::from(piece.size)) else {
                *fate = Fate::Lost(Loss::TooLarge);
                break;
            };
            rest = after;
            let there = kept.as_ref().and_then(|kept| kept.read(piece.gref, piece.offset, local));
            if let Some(copied) = there {
                found = found.saturating_add(1);
                if !copied {
                    *fate = Fate::Lost(Loss::TxGrant);
                }
                continue;
            }
            let status = GrantStatus::GENERAL_ERROR;
            let direction = Direction::FromPeer;
            ops.push(CopyOp { gref: piece.gref, offset: piece.offset, direction, local, status });
            count = count.saturating_add(1);
        }
        fates.push((count, fate));
    }
    drop(kept);
    stats.tx_kept.add(found);
    if ops.is_empty() {
        return;
    }
    let asked = domain.copy(peer, &mut ops);
    let mut statuses = ops.iter().map(|op| op.status);
    for (count, fate) in fates {
        // All of the packet's, whatever the first one says, for the next packet's come after them.
        let refused = statuses.by_ref().take(count).filter(|status| !status.is_okay()).count();
        if asked.is_err() || refused > 0 {
            *fate = Fate::Lost(Loss::TxGrant);
        }
    }
}
