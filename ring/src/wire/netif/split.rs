//! A frontend makes the chain of transmit slots for a packet.
//!
//! Before it: a packet that lies in granted pages. After it: the ring.
//!
//! Source: "Guest transmit" in io/netif.h (RELEASE-4.17).

use super::chain::{Checksum, Multicast, Offload};
use super::extra::{Extra, Kind};
use super::gather::{Piece, check_piece};
use super::tx::{Flags, Request, Slot};
use super::{ETHERNET_HEADER, MAX_TX_SIZE, SLOTS_MIN};

/// A packet that no chain can be made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unsendable {
    /// In more pieces than every backend takes.
    #[error("a packet in {pieces} pieces, where {SLOTS_MIN} are the most")]
    Pieces {
        /// Pieces it is in.
        pieces: usize,
    },
    /// Shorter than an Ethernet header, or longer than its size can say.
    #[error("a packet of {size} bytes")]
    Size {
        /// Bytes it has.
        size: usize,
    },
    /// A piece that does not lie within its page.
    #[error("a piece of {} bytes at offset {} of a page", piece.size, piece.offset)]
    Piece {
        /// The piece.
        piece: Piece,
    },
    /// Not as many ids as pieces.
    #[error("{ids} ids for {pieces} pieces")]
    Ids {
        /// Ids there are.
        ids: usize,
        /// Pieces there are.
        pieces: usize,
    },
}

/// A packet to be sent as a chain.
#[derive(Clone, Copy, Debug)]
pub struct Split<'a> {
    pieces: &'a [Piece],
    ids: &'a [u16],
    offload: Offload,
    size: u16,
}

impl<'a> Split<'a> {
    /// A packet in `pieces`, with an id to be echoed for each of them.
    ///
    /// # Errors
    ///
    /// [`Unsendable`].
    pub fn new(pieces: &'a [Piece], ids: &'a [u16], offload: Offload) -> Result<Self, Unsendable> {
        if pieces.is_empty() || pieces.len() > SLOTS_MIN {
            return Err(Unsendable::Pieces { pieces: pieces.len() });
        }
        if pieces.len() != ids.len() {
            return Err(Unsendable::Ids { ids: ids.len(), pieces: pieces.len() });
        }
        for piece in pieces {
            check_piece(piece.offset, piece.size)
                .map_err(|_| Unsendable::Piece { piece: *piece })?;
        }
        let size = pieces.iter().map(|piece| usize::from(piece.size)).sum();
        match u16::try_from(size) {
            Ok(size16) if (ETHERNET_HEADER..=MAX_TX_SIZE).contains(&size) => {
                Ok(Self { pieces, ids, offload, size: size16 })
            }
            _ => Err(Unsendable::Size { size }),
        }
    }

    /// How many slots it takes.
    #[must_use]
    pub fn slots_needed(&self) -> usize {
        self.pieces.len().saturating_add(self.offload.extras())
    }

    /// The slots in order.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        let last = self.pieces.len().saturating_sub(1);
        let mut requests =
            self.pieces.iter().zip(self.ids).enumerate().map(move |(n, (piece, id))| {
                let (mut flags, mut size) = (Flags::NONE, piece.size);
                if n == 0 {
                    size = self.size;
                    flags = flags.with(match self.offload.checksum {
                        Checksum::Unchecked => Flags::NONE,
                        Checksum::Validated => Flags::DATA_VALIDATED,
                        // A blank checksum was left so by the sender itself, so the data is right.
                        Checksum::Blank => Flags::CSUM_BLANK.with(Flags::DATA_VALIDATED),
                    });
                    if self.offload.extras() > 0 {
                        flags = flags.with(Flags::EXTRA_INFO);
                    }
                }
                if n < last {
                    flags = flags.with(Flags::MORE_DATA);
                }
                let request =
                    Request { gref: piece.gref, offset: piece.offset, flags, id: *id, size };
                Slot::from(request)
            });
        let first = requests.next();
        first.into_iter().chain(extras(&self.offload).map(Slot::from)).chain(requests)
    }
}

/// The extras that say `offload`, in order.
pub(super) fn extras(offload: &Offload) -> impl Iterator<Item = Extra> + use<> {
    let gso = offload.gso.map(|gso| Extra { more: offload.hash.is_some(), kind: Kind::Gso(gso) });
    let hash = offload.hash.map(|hash| Extra { more: false, kind: Kind::Hash(hash) });
    gso.into_iter().chain(hash)
}

/// The chain that changes the multicast list: a request without data, and what it is about.
#[must_use]
pub fn multicast(id: u16, change: Multicast) -> [Slot; 2] {
    let request =
        Request { gref: hypervisor::GrantRef(0), offset: 0, flags: Flags::EXTRA_INFO, id, size: 0 };
    let kind = match change {
        Multicast::Add(address) => Kind::McastAdd(address),
        Multicast::Delete(address) => Kind::McastDel(address),
    };
    [request.into(), Extra { more: false, kind }.into()]
}
