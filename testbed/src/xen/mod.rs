//! A real Xen with its Dom0 and stock guests, in QEMU, for anyone.
//!
//! ```text
//! packages ─▶ debs ─▶ root ─▶ bed ─────────▶ boot ─▶ run
//!             fetched  unpacked  images, kept    QEMU    a scenario, its verdict and logs
//! ```
//!
//! Nothing is installed on the machine but QEMU: Xen, the toolstack, the kernel and the guests' programs
//! are Debian's packages, unpacked into an image without running their scripts. Folders: `testbed/dom0`
//! and `testbed/guest` hold what runs in there, `testbed/scenarios` the scenarios. They and the
//! project's programs come into Dom0 over a shared folder (9p), so that a change to them needs no
//! new image.

mod bed;
mod boot;
mod cache;
mod debs;
mod recipe;
mod root;
mod run;
pub mod scenario;

pub use bed::Bed;
pub use boot::{Options, Threads};
pub use cache::folder as cache_folder;
pub use run::{Verdict, run, shell};
