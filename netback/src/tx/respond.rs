//! Hands packets to the port and answers the guest, in the order in which it sent.
//!
//! The last stage, after `validate`. The guest's pages were copied, so they are its own again whatever
//! the port does with the packet; a packet that was lost is answered with an error, which says more to
//! who looks for the reason than to the guest's network, and each extra's slot with none.

use hypervisor::memory::Memory;
use ring::wire::netif::Status;
use ring::wire::netif::gather::Chain;

use super::receive::Receive;
use super::{Fate, Staged};
use crate::buffer::Pool;
use crate::port::Port;
use crate::stats::Stats;
use crate::vnet::gso;

/// Sends one packet, if it may go.
#[inline]
pub fn send<C, P: Port>(staged: &mut Staged<C>, port: &mut P, pool: &mut Pool, stats: &Stats) {
    let Some(buffer) = staged.buffer.take() else { return };
    match staged.fate {
        Fate::Done => {
            stats.tx_bytes.add(buffer.len() as u64);
            if buffer.header().gso_type != gso::NONE {
                stats.tx_gso.add(1);
            }
            port.send(buffer);
        }
        Fate::Lost(_) => pool.put(buffer),
    }
}

/// Answers all slots of a chain.
#[inline]
pub fn respond<M: Memory>(chain: &Chain, fate: Fate, receive: &mut Receive<M>) {
    let status = match fate {
        Fate::Done => Status::OKAY,
        Fate::Lost(_) => Status::ERROR,
    };
    for response in chain.answers(status) {
        receive.answer(&response);
    }
}
