//! `--stats`: a line each second.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::HostError;

const PERIOD: Duration = Duration::from_secs(1);

/// Prints until dropped.
#[derive(Debug)]
pub struct Printer {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Serialize)]
struct Tagged<'a, L> {
    stats: &'a L,
}

impl Printer {
    /// Prints what `line` says of the time that passed since it was last asked: for people or, where
    /// `as_json`, for programs.
    ///
    /// # Errors
    ///
    /// The host has no threads left.
    pub fn start<L>(
        as_json: bool,
        mut line: impl FnMut(Duration) -> L + Send + 'static,
    ) -> Result<Self, HostError>
    where
        L: Display + Serialize,
    {
        let (end, ended) = channel::<()>();
        let print = move || {
            let terminal = io::stdout().is_terminal() && !as_json;
            let mut at = Instant::now();
            while ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                let now = Instant::now();
                if show(&line(now.duration_since(at)), terminal, as_json).is_err() {
                    // Nobody reads it any more.
                    return;
                }
                at = now;
            }
            if terminal {
                println!();
            }
        };
        let thread = thread::Builder::new().name("stats".into()).spawn(print);
        let thread =
            thread.map_err(|error| HostError::from_io("start the stats' thread", &error))?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A thread that is no more printed all it had.
            let _ = thread.join();
        }
    }
}

fn show(line: &(impl Display + Serialize), terminal: bool, as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match (as_json, terminal) {
        (true, _) => {
            serde_json::to_writer(&mut out, &Tagged { stats: line })?;
            writeln!(out)?;
        }
        // On a terminal each line takes the place of the one before.
        (false, true) => write!(out, "\r\x1b[K{line}")?,
        (false, false) => writeln!(out, "{line}")?,
    }
    out.flush()
}
