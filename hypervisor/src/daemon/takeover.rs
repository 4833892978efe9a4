//! Taking a device over from the process that serves it.
//!
//! ```text
//!   the next process                         the one that serves
//!     made ready as far as it can be
//!     hand over, I read these formats  ───>  refuses, or takes nothing more and answers what is under way;
//!     waits for the end                <───  leaves the rings as they are, says so, lets go of everything
//!     goes on with the rings
//! ```
//!
//! Whoever is asked says no before it stops anything: where the other could not read what is kept of requests
//! under way, should they have to be handed over, or where what is served would end with the process.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use super::control::Client;
use crate::{ConfigError, Error};

/// A process that serves what we are to serve.
pub struct Former {
    client: Client,
    path: PathBuf,
}

impl Former {
    /// The daemon, a `program`, that listens at `path`; nothing where nobody answers.
    #[must_use]
    pub fn at(program: &str, path: &Path) -> Option<Self> {
        let client = Client::connect(program, path).ok()?;
        Some(Self { client, path: path.to_owned() })
    }

    /// Asks it something.
    ///
    /// # Errors
    ///
    /// It refuses, or is gone.
    pub fn ask(&mut self, request: &impl Serialize) -> Result<Value, Error> {
        let words = match self.client.ask(request)? {
            Ok(value) => return Ok(value),
            Err(words) => words,
        };
        let problem = format!("who serves there goes on: {words}");
        Err(ConfigError::new("--takeover", self.path.display(), problem).into())
    }

    /// Has it hand over, by the `request` that means so to it, and waits until it has let go. Says since
    /// when nobody serves: since it was asked, at the earliest.
    ///
    /// # Errors
    ///
    /// It refuses. That it is gone is no error: what it left is known.
    pub fn hand_over(mut self, request: &impl Serialize) -> Result<Instant, Error> {
        let since = Instant::now();
        match self.ask(request) {
            Ok(_) => {}
            Err(Error::Host(error)) => {
                tracing::warn!("it ended while it was asked to hand over: {error}");
            }
            Err(error) => return Err(error),
        }
        self.client.until_gone();
        Ok(since)
    }
}

/// Whether a process that reads these `formats` of what is kept can go on where one that writes `own` is.
///
/// # Errors
///
/// It cannot; in words for whoever asks.
pub fn check(own: u64, formats: &[u64]) -> Result<(), String> {
    if formats.contains(&own) {
        return Ok(());
    }
    let read: Vec<String> = formats.iter().map(|format| format!("{format:#x}")).collect();
    let read = if read.is_empty() { "none".to_owned() } else { read.join(", ") };
    Err(format!(
        "what it keeps of requests under way has format {own:#x}, and the next one reads {read}"
    ))
}
