//! A queue's ends on the rings of a Xen frontend.

use std::rc::Rc;
use std::sync::Arc;

use hypervisor::memory::Using;
use hypervisor::{DomId, PeerFault};

use super::{Ends, Serving};
use crate::connect::{Features, Link};
use crate::rx::post::Post;
use crate::rx::xen::Receiving;
use crate::stats::{Loss, Stats};
use crate::tx::receive::Receive;
use crate::tx::xen::Sending;

/// Queue `number`'s ends for `peer`, whose rings and channels are in `link`.
///
/// # Errors
///
/// There cannot be rings like that.
pub fn ends_of_rings<U: Using, C>(
    number: u16,
    (peer, link, features): (DomId, Link<U::Mapping, C>, Features),
    domain: U,
    serving: &Arc<Serving>,
    stats: &Stats,
) -> Result<Ends<Sending<U>, Receiving<U>, C>, PeerFault> {
    let Link { tx, rx, channels } = link;
    let domain = Rc::new(domain);
    let mut post = Post::attach(rx, peer)?;
    let spoilt = post.give_up_spoilt()?;
    if spoilt > 0 {
        stats.lose(Loss::Interrupted, u64::from(spoilt));
    }
    let receive = Receive::attach(tx, peer)?;
    let source = Sending::new(receive, Rc::clone(&domain), Arc::clone(serving), number);
    let sink = Receiving::new(post, features, domain, Arc::clone(serving), number);
    Ok(Ends { source, sink, tells: features.rx_notify, channels })
}
