//! The states of a request on its way.
//!
//! ```text
//! RawRequest  ->  Request  ->  Ready  ->  InFlight  ->  Finished
//!   receive       validate    acquire     submit        complete
//! ```
//!
//! Each owns the duty to answer ([`Job::slot`]), except that while a request is in flight the duty
//! stays in the queue's [table](crate::submit::Table): an engine that breaks takes buffers
//! with it, never an answer.

use crate::segments::Body;
use crate::validate::{Action, Checked};

pub use crate::acquire::InFlight;
pub use crate::receive::RawRequest;

/// What stays the same from validation to the answer.
#[derive(Debug)]
pub struct Job<S> {
    /// The duty to answer.
    pub slot: S,
    /// What is to be done.
    pub action: Action,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub len: u64,
    /// When it was taken, in nanoseconds of the queue's clock.
    pub taken_ns: u64,
}

impl<S> Job<S> {
    /// A request that passed its checks as `checked`.
    #[inline]
    pub fn new(slot: S, checked: Checked, taken_ns: u64) -> Self {
        let Checked { action, offset, len } = checked;
        Self { slot, action, offset, len, taken_ns }
    }
}

/// A request that passed every check.
#[derive(Debug)]
pub struct Request<S, H, P> {
    /// What it is.
    pub job: Job<S>,
    /// Its data, not yet reachable.
    pub body: Box<Body<H, P>>,
    /// Its share of the device's limits is paid for.
    pub paid: bool,
}

/// A request whose data can be reached.
#[derive(Debug)]
pub struct Ready<S, H, P> {
    /// What it is.
    pub job: Job<S>,
    /// Its data.
    pub body: Box<Body<H, P>>,
}

/// A request that the medium is done with, for better or worse.
#[derive(Debug)]
pub struct Finished<S, H, P> {
    /// What it was.
    pub job: Job<S>,
    /// Its data.
    pub body: Box<Body<H, P>>,
    /// Nothing, or the medium's positive `errno`.
    pub result: Result<(), i32>,
}
