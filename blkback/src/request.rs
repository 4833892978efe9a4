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

use ring::wire::blkif::{Response, Status};

use crate::segments::Body;
use crate::validate::{Action, Checked};

pub use crate::acquire::InFlight;
pub use crate::receive::RawRequest;

/// What stays the same from validation to the answer.
#[derive(Debug)]
pub struct Job<S> {
    /// The duty to answer.
    pub slot: S,
    /// The guest's private value, to be echoed.
    pub id: u64,
    /// The operation to echo.
    pub operation: u8,
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
    pub fn new(slot: S, id: u64, operation: u8, checked: Checked, taken_ns: u64) -> Self {
        let Checked { action, offset, len } = checked;
        Self { slot, id, operation, action, offset, len, taken_ns }
    }

    /// The answer `status` to it.
    #[inline]
    #[must_use]
    pub fn response(&self, status: Status) -> Response {
        Response { id: self.id, operation: self.operation, status }
    }
}

/// A request that passed every check.
#[derive(Debug)]
pub struct Request<S, H> {
    /// What it is.
    pub job: Job<S>,
    /// Its data, not yet reachable.
    pub body: Box<Body<H>>,
    /// Its share of the device's limits is paid for.
    pub paid: bool,
}

/// A request whose data can be reached.
#[derive(Debug)]
pub struct Ready<S, H> {
    /// What it is.
    pub job: Job<S>,
    /// Its data.
    pub body: Box<Body<H>>,
}

/// A request that the medium is done with, for better or worse.
#[derive(Debug)]
pub struct Finished<S, H> {
    /// What it was.
    pub job: Job<S>,
    /// Its data.
    pub body: Box<Body<H>>,
    /// Nothing, or the medium's positive `errno`.
    pub result: Result<(), i32>,
}
