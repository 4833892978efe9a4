//! Real Xen, from a Linux process in any of its domains.
//!
//! ```text
//!   Domain ── using ────> /dev/xen/gntdev     map, unmap, copy
//!     ├────── granting ─> /dev/xen/gntalloc   pages born granted
//!     ├────── channel ──> /dev/xen/evtchn     one open file a channel
//!     └────── store ────> xenstored's socket, or /dev/xen/xenbus
//! ```
//!
//! Written against the kernel's ioctl interface: no C library, and no privcmd. A process needs
//! access to these nodes and no other privilege.
//!
//! # What a medium may do with granted pages
//!
//! On a PV domain 0 of Xen 4.17 with Linux 6.1, for pages that gntdev mapped and for pages of
//! gntalloc alike (`tests/on_xen/medium.rs` asks, and prints what holds where it runs):
//!
//! | | works |
//! | --- | --- |
//! | reads and writes through the page cache | yes |
//! | O_DIRECT reads and writes, to virtio-blk and to a RAM disk | yes |
//! | the same through io_uring | yes |
//! | writes from pages mapped read-only | yes |
//! | fixed io_uring buffers (`IORING_REGISTER_BUFFERS`) | no: `EOPNOTSUPP`, the memory is a file's |
//!
//! # What it costs
//!
//! Mapping and unmapping has a price for each call, whatever its size; copying has one for each page
//! and almost none for the call. In microseconds, under emulation, so only the ratios say something
//! (`tests/on_xen/costs.rs`):
//!
//! | pages | map and unmap, one call | one call each | copy, one call | read what stays mapped |
//! | ---: | ---: | ---: | ---: | ---: |
//! | 1 | 1742 | 849 | 53 | 91 |
//! | 8 | 2267 | 7373 | 106 | 12 |
//! | 32 | 1043 | 30717 | 414 | 48 |
//! | 256 | 6777 | 144858 | 2569 | 608 |
//!
//! So: what stays mapped is free, else copy, and never map for a single request. That 512 other
//! pages are mapped made no difference to one more (527), so one open file serves all.
//!
//! Trust: the kernel and Xen are trusted; whoever granted, or is granted, a page is not.
//! Sources: the kernel's `include/uapi/xen/`, and Xen's `grant_table.h` and `event_channel.h`
//! (RELEASE-4.17).

pub mod about;
mod channel;
mod domain;
mod granting;
mod ioctl;
pub mod leak;
pub mod node;
mod store;
mod using;
mod window;

pub use about::{About, about};
pub use channel::EventChannel;
pub use domain::Domain;
pub use granting::{Offered, Pages};
pub use node::Node;
pub use using::{Lease, Mapping};
pub use window::Window;
