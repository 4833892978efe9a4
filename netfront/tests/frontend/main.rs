//! The frontend against backends that do as they should, and against those that do not.
//!
//! Both ends are domains of one machine in this process. The backend is a small one of our own,
//! driven by the test step by step, so that nothing here depends on time.

mod backend;
mod control;
mod exchange;
mod hostile;
mod host;
mod packets;
mod reconnect;
#[cfg(feature = "smoltcp")]
mod smoltcp;
mod tap;
#[cfg(feature = "cli")]
mod tool;
