//! Driving an engine from a test, one operation at a time.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use blkback::engine::{Any, Engine, Operation};

use crate::buffers::Pages;

/// No test waits longer for what must come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// What `count` operations held and came to, in the order in which they finished.
pub(crate) fn finish(engine: &mut Any<Pages>, count: usize) -> Vec<(Pages, Result<u64, i32>)> {
    let (never, _writer) = std::io::pipe().unwrap();
    let start = Instant::now();
    let mut finished = Vec::new();
    while finished.len() < count {
        assert!(start.elapsed() < DEADLINE, "{} of {count} finished", finished.len());
        engine.wait(&[never.as_fd()], Some(Duration::from_secs(5))).unwrap();
        engine.finished(&mut finished).unwrap();
    }
    assert_eq!(engine.under_way(), 0);
    finished.into_iter().map(|one| (one.held, one.result)).collect()
}

/// One operation from its beginning to its end.
pub(crate) fn one(
    engine: &mut Any<Pages>,
    operation: Operation,
    held: Pages,
) -> (Pages, Result<u64, i32>) {
    assert!(engine.submit(operation, held).is_ok());
    finish(engine, 1).remove(0)
}
