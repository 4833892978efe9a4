//! What a watcher has beside its processes: a control socket, and the way from one watcher to the next.
//!
//! A watcher that takes over asks the one before to [yield](Event::Yield): it starts nothing more and ends
//! with its last process. The processes that the next one starts take each device over by themselves.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::control::{Client, Desk, Server, socket};
use super::takeover::{self, Former};
use crate::backend::Slot;
use crate::backend::watch::{Board, Event};
use crate::{ConfigError, DomId, Error};

/// What watchers' sockets begin with.
const WATCH: &str = "watch";

/// What is asked of a watcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// As whom it watches, and what it has given up: a [`Watching`].
    List,
    /// Yield to another watcher.
    Handover {
        /// The formats that its processes read.
        formats: Vec<u64>,
    },
}

/// A watcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Watching {
    /// Its process.
    pub pid: u32,
    /// The domain that it is.
    pub domain: u16,
    /// Devices that it has given up.
    pub given_up: Vec<GivenUp>,
}

/// A device that nobody serves any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GivenUp {
    /// Its directory.
    pub device: String,
    /// Why.
    pub why: String,
}

/// A watcher's desk.
pub struct WatcherDesk {
    /// Who watches.
    pub me: DomId,
    /// The format that its processes write.
    pub format: u64,
    /// What was given up.
    pub board: Board,
    /// The watcher's thread.
    pub slot: Slot<Event>,
}

impl Desk for WatcherDesk {
    type Request = Request;

    fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::List => {
                let given_up = self.board.given_up().into_iter();
                let given_up =
                    given_up.map(|(spot, why)| GivenUp { device: spot.to_string(), why }).collect();
                let watching =
                    Watching { pid: std::process::id(), domain: self.me.get(), given_up };
                serde_json::to_value(watching).map_err(|error| error.to_string())
            }
            Request::Handover { formats } => {
                takeover::check(self.format, &formats)?;
                self.slot.put(Event::Yield).map_err(|_| "it is ending".to_owned())?;
                Ok(Value::Null)
            }
        }
    }
}

/// Listens for whoever asks a watcher of `program`s in `folder`.
///
/// # Errors
///
/// The host refuses.
pub fn listen(program: &str, folder: &Path, desk: WatcherDesk) -> Result<Server, Error> {
    Server::start(&socket::path_for(WATCH, folder, program), desk)
}

/// Every watcher of `program`s in `folder` that answers, and where.
///
/// # Errors
///
/// The folder cannot be read.
pub fn find(program: &str, folder: &Path) -> Result<Vec<(PathBuf, Watching)>, Error> {
    let mut found = Vec::new();
    let prefix = format!("{WATCH}-{program}");
    for path in socket::find(WATCH, folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(&prefix) {
            continue;
        }
        // One that was killed has left its socket and does not answer.
        let Ok(mut client) = Client::connect(program, &path) else { continue };
        if let Ok(Ok(answer)) = client.ask(&Request::List)
            && let Ok(watching) = serde_json::from_value(answer)
        {
            found.push((path, watching));
        }
    }
    Ok(found)
}

/// The one watcher to take over from, of those in `folder`; that of domain `me`, where that is said. Nothing where there
/// is none.
///
/// # Errors
///
/// There are several.
pub fn former(
    program: &str,
    folder: &Path,
    me: Option<DomId>,
) -> Result<Option<(Former, DomId)>, Error> {
    let mut found = find(program, folder)?;
    found.retain(|(_, watching)| me.is_none_or(|me| watching.domain == me.get()));
    if let [_, _, ..] = found.as_slice() {
        let all = found.iter().map(|(path, w)| format!("{} (domain {})", path.display(), w.domain));
        let all = all.collect::<Vec<_>>().join(", ");
        let problem = "there are several watchers; choose one by DOMKIT_DOMAIN";
        return Err(ConfigError::new("--takeover", all, problem).into());
    }
    let Some((path, watching)) = found.pop() else { return Ok(None) };
    let domain = DomId::new(watching.domain);
    Ok(Former::at(program, &path).zip(domain))
}
