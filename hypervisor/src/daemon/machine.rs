//! How a daemon serves a virtual machine that another process runs: its control socket, its signals and what it
//! says, around [`Serving`].

use std::path::{Path, PathBuf};

use nix::sys::signal::SigSet;
use serde_json::json;

use super::control::{Desk, Server, socket};
use super::{outcome, signals};
use crate::embedded::Place;
use crate::vhost_user::{Device, Serving};
use crate::{Error, HostError};

/// What a daemon has beside its device.
pub struct Shell<'a> {
    /// The daemon's name.
    pub name: &'static str,
    /// What it serves: its control socket is named after that, where no other was asked for.
    pub served: &'a str,
    /// The control socket that was asked for.
    pub control: Option<&'a Path>,
    /// Whether it prints JSON.
    pub json: bool,
    /// The signals that end it, held since before it had threads.
    pub signals: SigSet,
}

impl Shell<'_> {
    /// Serves `device` until it is told to end, and answers at `desk` meanwhile. `ready` is told where the control
    /// socket is; what it returns is kept until the end.
    ///
    /// # Errors
    ///
    /// The control socket cannot be had, or the host cannot serve.
    pub fn run<D, K, C, A, R>(
        self,
        serving: Serving<C, A>,
        device: &D,
        desk: K,
        ready: impl FnOnce(&Path) -> Result<R, HostError>,
        change: impl FnMut(C) -> Result<A, Error>,
    ) -> Result<(), Error>
    where
        D: Device,
        K: Desk,
        C: Send + 'static,
        A: Send + 'static,
    {
        let listening = Server::start(&self.control()?, desk)?;
        signals::pass_on(self.signals, serving.slot())?;
        let meanwhile = ready(listening.path())?;
        let ended = serving.run(device, change);
        drop(meanwhile);
        drop(listening);
        ended?;
        outcome::say(self.json, "detached", &json!({ "ended": "detached" }));
        Ok(())
    }

    fn control(&self) -> Result<PathBuf, Error> {
        if let Some(path) = self.control {
            return Ok(path.to_owned());
        }
        let place = Place::standard();
        place.prepare()?;
        Ok(socket::path_for(self.name, place.folder(), self.served))
    }
}
