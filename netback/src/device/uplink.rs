//! Where an interface's packets go: which of the host's interfaces it is or uses, and its ports.
//!
//! Before: the command line, or a toolstack. After: `port`. A TAP is there from before a frontend hears of the
//! device until the device is no more, whoever connects meanwhile: bridges, scripts and addresses of the
//! host's hang on it. A script may give it another name, as stock ones do, and brings it up itself. It
//! has one queue then, and as many as the frontend uses while one is
//! connected; its link is up only then.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use hypervisor::{DomId, Error, HostError};

use crate::connect::Features;
use crate::port::Port;
use crate::port::inner::{Inner, Kind};
use crate::port::interface::Name;
use crate::port::packet;
use crate::port::pcap::Pcap;
use crate::port::tap::{Offloads, Tap};

/// What lies behind an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Uplink {
    /// A TAP of its own.
    Tap {
        /// What it is called; without a name, after guest and device: `vif5.0`.
        name: Option<Name>,
        /// The bridge that it is put on.
        bridge: Option<Name>,
        /// Whether it is brought up here. Where a script does that, it is left down: the kernel lets no
        /// interface be renamed that is up.
        up: bool,
        /// Whether it outlives this process, for the next one to go on with.
        kept: bool,
    },
    /// An interface that is there already.
    Packet(Name),
    /// Nothing: for measuring.
    Inner(Kind),
}

/// What makes the port of one queue, on the thread that serves it.
pub type Opener = Box<dyn FnOnce() -> Result<Box<dyn Port>, HostError> + Send>;

/// An uplink that is there.
#[derive(Debug)]
pub struct Open {
    behind: Behind,
    /// Where packets are written down as well.
    file: Option<(PathBuf, File)>,
    written: AtomicBool,
}

#[derive(Debug)]
enum Behind {
    Tap(Tap),
    Packet(Name),
    Inner(Kind, Name),
}

impl Uplink {
    /// Makes it, for device `number` of `guest`. What passes is written to `pcap` as well.
    ///
    /// # Errors
    ///
    /// There is no such bridge or interface, or the kernel refuses.
    pub fn open(
        &self,
        guest: DomId,
        number: u32,
        mtu: Option<u16>,
        pcap: Option<&PathBuf>,
    ) -> Result<Open, Error> {
        let behind = match self {
            Self::Tap { name, bridge, up, kept } => {
                let name = match name {
                    Some(name) => name.clone(),
                    None => Name::new(&format!("vif{guest}.{number}"))?,
                };
                if let Some(bridge) = bridge {
                    bridge.demand("--bridge")?;
                }
                let tap = Tap::open(name, 1)?;
                if *up {
                    tap.set_up(mtu)?;
                } else {
                    tap.dress(mtu)?;
                }
                tap.set_carrier(false)?;
                if let Some(bridge) = bridge {
                    tap.join(bridge)?;
                }
                tap.keep(*kept)?;
                Behind::Tap(tap)
            }
            Self::Packet(name) => {
                name.demand("--interface")?;
                Behind::Packet(name.clone())
            }
            Self::Inner(kind) => Behind::Inner(*kind, Name::new(kind.name())?),
        };
        let file = match pcap {
            Some(path) => {
                let file = File::create(path).map_err(|error| {
                    HostError::from_io(format!("make file {}", path.display()), &error)
                })?;
                Some((path.clone(), file))
            }
            None => None,
        };
        Ok(Open { behind, file, written: AtomicBool::new(false) })
    }

    /// The most queues that it can have.
    #[must_use]
    pub const fn queues(&self, wanted: u16) -> u16 {
        match self {
            Self::Tap { .. } | Self::Inner(_) => wanted,
            Self::Packet(_) => 1,
        }
    }
}

impl Open {
    /// The host's interface, or what stands in its place.
    #[must_use]
    pub fn name(&self) -> Name {
        match &self.behind {
            Behind::Tap(tap) => tap.name(),
            Behind::Packet(name) | Behind::Inner(_, name) => name.clone(),
        }
    }

    /// What makes the ports of so many queues for a guest with these features.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn ports(&self, features: &Features, queues: u16) -> Result<Vec<Opener>, HostError> {
        let (offloads, many) = (features.into(), self.queues(queues));
        (0..many).map(|number| self.port(number, &offloads)).collect()
    }

    /// What makes the port of queue `number` for a guest that is left so much. An interface of several queues gets
    /// another one for each, while that is in use.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn port(&self, number: u16, offloads: &Offloads) -> Result<Opener, HostError> {
        match &self.behind {
            Behind::Tap(tap) => {
                let further = (number > 0).then(|| Tap::open(tap.name(), 1)).transpose()?;
                tap.serve(offloads)?;
                let port = further.as_ref().unwrap_or(tap).queue(0);
                let port = port.ok_or_else(|| HostError::new("use a TAP", libc::ENODEV))?;
                self.written_down(move || Ok(Box::new(port()?) as _))
            }
            Behind::Packet(name) => {
                let name = name.clone();
                self.written_down(move || Ok(Box::new(packet::open(&name)?) as _))
            }
            Behind::Inner(kind, _) => {
                let kind = *kind;
                self.written_down(move || Ok(Box::new(Inner::new(kind)) as _))
            }
        }
    }

    /// Of so many queues, those that it can have.
    const fn queues(&self, wanted: u16) -> u16 {
        match &self.behind {
            Behind::Packet(_) if wanted > 1 => 1,
            _ => wanted,
        }
    }

    /// Whether large UDP can be left to it, and taken from it.
    #[must_use]
    pub fn cuts_udp(&self) -> bool {
        match &self.behind {
            Behind::Tap(tap) => tap.cuts_udp(),
            Behind::Packet(_) | Behind::Inner(..) => false,
        }
    }

    /// Sends a packet of the guest's.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn send(&self, packet: &[u8]) -> Result<(), HostError> {
        match &self.behind {
            Behind::Tap(tap) => tap.send(packet),
            // Whoever is behind it has not moved.
            Behind::Packet(_) | Behind::Inner(..) => Ok(()),
        }
    }

    /// Sets the largest payload of packets, where the interface is ours.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), HostError> {
        match &self.behind {
            Behind::Tap(tap) => tap.set_mtu(mtu),
            Behind::Packet(_) | Behind::Inner(..) => Ok(()),
        }
    }

    /// Has what passes a port written down, where that is wanted. There is one queue then.
    fn written_down(
        &self,
        port: impl FnOnce() -> Result<Box<dyn Port>, HostError> + Send + 'static,
    ) -> Result<Opener, HostError> {
        let Some((path, file)) = &self.file else { return Ok(Box::new(port)) };
        let file = file.try_clone().map_err(|error| {
            HostError::from_io(format!("open file {} again", path.display()), &error)
        })?;
        let again = self.written.swap(true, Ordering::Relaxed);
        Ok(Box::new(move || note(port()?, file, again)))
    }

    /// Says whether somebody takes its packets.
    pub fn set_carrier(&self, up: bool) {
        if let Behind::Tap(tap) = &self.behind
            && let Err(error) = tap.set_carrier(up)
        {
            tracing::warn!(up, "the host's side of the link was not told: {error}");
        }
    }

    /// Sees to it that it stays when this process ends.
    pub fn keep(&self) {
        if let Behind::Tap(tap) = &self.behind
            && let Err(error) = tap.keep(true)
        {
            tracing::warn!("interface {} goes with this process: {error}", tap.name());
        }
    }

    /// Sees to it that it goes with this process after all.
    pub fn forget(&self) {
        if let Behind::Tap(tap) = &self.behind
            && let Err(error) = tap.keep(false)
        {
            tracing::warn!("interface {} stays: {error}", tap.name());
        }
    }
}

fn note(
    port: Box<dyn Port>,
    file: impl Write + 'static,
    again: bool,
) -> Result<Box<dyn Port>, HostError> {
    Ok(if again { Box::new(Pcap::resume(port, file)) } else { Box::new(Pcap::new(port, file)?) })
}
