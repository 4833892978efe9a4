//! Whichever engine was chosen.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use ::uring::Buffers;
use hypervisor::HostError;

use crate::engine::blocking::Blocking;
use crate::engine::memory::{Disk, Memory};
use crate::engine::null::Null;
use crate::engine::uring::{NoUring, Uring};
use crate::engine::{Engine, Finished, Operation, Woken};
use crate::image::{Geometry, Media};

/// How an image's bytes are to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Choice {
    /// By io_uring where it is to be had, else by plain calls.
    #[default]
    Auto,
    /// By io_uring or not at all.
    Uring,
    /// By plain calls.
    Blocking,
}

/// What a device's queues have behind them. Cheap to clone; all clones are the same medium.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Medium {
    /// A file or block device.
    Image(Arc<Media>, Choice),
    /// Memory of this process.
    Memory(Arc<Disk>),
    /// Nothing.
    Null(Geometry),
}

impl Medium {
    /// Its measures as they are now.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        match self {
            Self::Image(media, _) => media.geometry(),
            Self::Memory(disk) => disk.geometry(),
            Self::Null(geometry) => *geometry,
        }
    }

    /// Queue `queue`'s engine for up to `depth` operations at a time. To be called on the thread
    /// that will use it.
    ///
    /// # Errors
    ///
    /// io_uring was asked for and is not to be had, or the machine fails.
    pub fn engine<T: Buffers>(&self, queue: u16, depth: u32) -> Result<Any<T>, HostError> {
        let (media, choice) = match self {
            Self::Image(media, choice) => (media, *choice),
            Self::Memory(disk) => return Ok(Any::Memory(Memory::new(Arc::clone(disk), depth))),
            Self::Null(_) => return Ok(Any::Null(Null::new(depth))),
        };
        let blocking = || Blocking::new(Arc::clone(media), queue, depth).map(Any::Blocking);
        if choice == Choice::Blocking {
            return blocking();
        }
        match Uring::new(Arc::clone(media), queue, depth) {
            Ok(engine) => Ok(Any::Uring(Box::new(engine))),
            Err(NoUring::Unavailable(why)) if choice == Choice::Auto => {
                tracing::warn!("queue {queue}: {why}; plain calls are used instead");
                blocking()
            }
            Err(NoUring::Unavailable(why)) => {
                Err(HostError::new(format!("use io_uring: {}", why.doing), why.errno))
            }
            Err(NoUring::Host(error)) => Err(error),
        }
    }
}

/// An engine of one kind or another.
#[non_exhaustive]
pub enum Any<T: Buffers> {
    /// By io_uring.
    Uring(Box<Uring<T>>),
    /// By plain calls.
    Blocking(Blocking<T>),
    /// In memory.
    Memory(Memory<T>),
    /// Nothing.
    Null(Null<T>),
}

impl<T: Buffers> Any<T> {
    /// What it is, in a word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Uring(_) => "io_uring",
            Self::Blocking(_) => "blocking",
            Self::Memory(_) => "memory",
            Self::Null(_) => "null",
        }
    }
}

/// Asks whichever engine it is.
macro_rules! whichever {
    ($any:expr, $engine:ident => $call:expr) => {
        match $any {
            Any::Uring($engine) => $call,
            Any::Blocking($engine) => $call,
            Any::Memory($engine) => $call,
            Any::Null($engine) => $call,
        }
    };
}

impl<T: Buffers> Engine<T> for Any<T> {
    fn submit(&mut self, operation: Operation, held: T) -> Result<(), T> {
        whichever!(self, engine => engine.submit(operation, held))
    }

    fn kick(&mut self) -> Result<(), HostError> {
        whichever!(self, engine => engine.kick())
    }

    fn finished(&mut self, into: &mut Vec<Finished<T>>) -> Result<(), HostError> {
        whichever!(self, engine => engine.finished(into))
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> Result<Woken, HostError> {
        whichever!(self, engine => engine.wait(watched, timeout))
    }

    fn under_way(&self) -> usize {
        whichever!(self, engine => engine.under_way())
    }

    fn done_at_once(&self) -> usize {
        whichever!(self, engine => engine.done_at_once())
    }

    fn register(&mut self, slot: u16, base: *mut u8, len: usize) -> bool {
        whichever!(self, engine => engine.register(slot, base, len))
    }
}
