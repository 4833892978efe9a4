//! Gives packets to the queues that the frontend wants them on.
//!
//! Before: a port's turn. After: `take`. Unless the frontend has said on the control ring how packets are
//! spread, one goes the way of the queue whose port brought it. Source: "Control messages" in io/netif.h
//! (RELEASE-4.17).

use std::collections::VecDeque;

use ring::packet::Headers;
use ring::packet::flow::Flow;
use ring::packet::steering::Steering;

use crate::buffer::{Buffer, Pool};
use crate::queue::Serving;
use crate::stats::{Loss, Stats};

/// Hands over what `arrived` for other queues than `own`, and appends what they have for this one,
/// `most` packets at most.
#[inline]
pub fn steer(
    arrived: &mut VecDeque<Buffer>,
    most: usize,
    own: u16,
    serving: &Serving,
    pool: &mut Pool,
    stats: &Stats,
) {
    if serving.queues() < 2 {
        return;
    }
    if let Some(steering) = serving.steering() {
        for _ in 0..arrived.len() {
            let Some(packet) = arrived.pop_front() else { break };
            let to = queue_of(packet.packet(), &steering);
            if to == own {
                arrived.push_back(packet);
                continue;
            }
            let handed = match serving.inbox(to) {
                Some(inbox) => inbox.put(packet),
                None => Err(packet),
            };
            match handed {
                Ok(()) => {
                    stats.rx_steered.add(1);
                    pool.give_away();
                }
                Err(packet) => {
                    stats.lose(Loss::NotPosted, 1);
                    pool.put(packet);
                }
            }
        }
    }
    let Some(inbox) = serving.inbox(own) else { return };
    for _ in 0..inbox.take(most.saturating_sub(arrived.len()), arrived) {
        pool.adopt();
    }
}

fn queue_of(packet: &[u8], steering: &Steering) -> u16 {
    let headers = Headers::find(packet).ok();
    let flow = headers.and_then(|headers| Flow::of(packet, &headers));
    steering.queue(flow.and_then(|flow| steering.hash(&flow)))
}
