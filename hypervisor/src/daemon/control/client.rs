//! The other side: asks a daemon and waits for what it answers.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::{LONGEST_RESPONSE, Response};
use crate::{ConfigError, Error, HostError};

/// How long an answer may take: longer than a guest may take to let go of its device.
const PATIENCE: Duration = Duration::from_secs(60);

/// A conversation with one daemon.
pub struct Client {
    stream: BufReader<UnixStream>,
    path: String,
}

impl Client {
    /// Connects to the daemon, a `program`, that listens at `path`.
    ///
    /// # Errors
    ///
    /// Nobody answers there.
    pub fn connect(program: &str, path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let stream = UnixStream::connect(path).map_err(|error| {
            ConfigError::new("control socket", &shown, format!("no {program} answers: {error}"))
        })?;
        let host = |error| HostError::from_io(format!("talk to {shown}"), &error);
        stream.set_read_timeout(Some(PATIENCE)).map_err(host)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(host)?;
        Ok(Self { stream: BufReader::new(stream), path: shown })
    }

    /// Waits until the daemon has hung up, or as long as an answer may take.
    pub fn until_gone(mut self) {
        let mut rest = Vec::new();
        while let Ok(1..) = self.stream.read_until(b'\n', &mut rest) {
            rest.clear();
        }
    }

    /// Asks, and answers the result; the inner error is the daemon's own words.
    ///
    /// # Errors
    ///
    /// The daemon is gone, or speaks another language.
    pub fn ask(
        &mut self,
        request: &impl Serialize,
    ) -> Result<Result<serde_json::Value, String>, HostError> {
        let host = |error| HostError::from_io(format!("talk to {}", self.path), &error);
        let mut line = serde_json::to_vec(request).map_err(|error| host(error.into()))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(host)?;
        line.clear();
        let longest = u64::try_from(LONGEST_RESPONSE).unwrap_or(u64::MAX);
        self.stream.by_ref().take(longest).read_until(b'\n', &mut line).map_err(host)?;
        if line.is_empty() {
            return Err(host(std::io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_slice(&line).map_err(|error| host(error.into()))? {
            Response::Result(value) => Ok(Ok(value)),
            Response::Error(words) => Ok(Err(words)),
        }
    }
}
