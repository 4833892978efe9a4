//! Event channels: one bit that crosses from one domain to another.
//!
//! Source: `event_channel.h`. A channel is *pending* from the peer's notification until it is taken,
//! and *masked* from when it is taken until it is unmasked, so that a storm of notifications costs
//! the receiver one wake-up for each time it chose to listen (advisories 331, 332).
//!
//! When the domain that holds one end goes away, the other end becomes unbound, still reserved for
//! the same domain; what is sent into it is lost without an error. Whoever binds it anew begins with a
//! notification, so nothing sent meanwhile is missed. The end that was there all along may be
//! notified too (the embedded hypervisor does so, Xen does not) and must not wait for it: who comes
//! anew looks at everything, and notifies once there is something to be seen.

use crate::{DomId, EventPort, HostError};

/// A domain that can open event channels.
pub trait Events {
    /// One end of a channel. Dropping it closes it.
    type Channel: Channel + Send + Sync + 'static;

    /// A new channel whose other end only `peer` may bind (`EVTCHNOP_alloc_unbound`).
    ///
    /// # Errors
    ///
    /// There are no ports left, or there is no such domain.
    fn allocate(&self, peer: DomId) -> Result<Self::Channel, HostError>;

    /// Binds the end that `peer` allocated for us as `port` (`EVTCHNOP_bind_interdomain`).
    ///
    /// # Errors
    ///
    /// `EINVAL` where the port is not unbound or was not allocated for us: the peer's doing, as
    /// the port's number came from it. Anything else is the host's.
    fn bind(&self, peer: DomId, port: EventPort) -> Result<Self::Channel, HostError>;
}

/// One end of an event channel.
///
/// Under `std`, a channel that can be waited for in an event loop also is a file descriptor
/// (`AsFd`) that polls readable while the channel is pending and unmasked.
pub trait Channel {
    /// Our end's number, to be told to the peer.
    fn port(&self) -> EventPort;

    /// Makes the peer's end pending. Where nobody has bound it, nothing happens.
    ///
    /// # Errors
    ///
    /// The channel is no more.
    fn notify(&self) -> Result<(), HostError>;

    /// Whether our end was pending and unmasked; if so, it no longer is pending, and is masked until
    /// [`unmask`](Self::unmask).
    fn take(&self) -> bool;

    /// Listens again. If a notification came in meanwhile, the channel is pending at once.
    fn unmask(&self);
}
