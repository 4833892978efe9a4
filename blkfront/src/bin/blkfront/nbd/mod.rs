//! `blkfront nbd`: the disk for any NBD client.
//!
//! One thread takes connections and hands them round to as many workers as the disk has queues;
//! each worker serves its clients with its own queue. A flush on any connection covers what was
//! answered on all of them, because the disk is one and its backend says so of all its queues.

mod connection;
mod serve;
mod wire;

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;

use anyhow::{Context as _, bail};
use blkfront::DiskInfo;
use hypervisor::host::Domain;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::args::{Args, Nbd};
use crate::attach::{Joined, attach};
use crate::nbd::serve::{Stream, Worker};
use crate::nbd::wire::{Export, flag};

/// Requests of clients that each queue holds.
const DEPTH: u32 = 256;
/// How often the disk is looked after while nobody connects, in milliseconds.
const LOOK: u16 = 500;

/// Where clients connect. A Unix socket's file goes when this does.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    fn open(options: &Nbd) -> anyhow::Result<Self> {
        let listener = match &options.unix {
            Some(path) => {
                // A socket that nobody answers at was left by one that was killed.
                let left = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
                if left && UnixStream::connect(path).is_err() {
                    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
                }
                let listener = UnixListener::bind(path)
                    .with_context(|| format!("listen on {}", path.display()))?;
                listener.set_nonblocking(true)?;
                Self::Unix(listener, path.clone())
            }
            None => {
                let listener = TcpListener::bind(options.listen)
                    .with_context(|| format!("listen on {}", options.listen))?;
                listener.set_nonblocking(true)?;
                Self::Tcp(listener)
            }
        };
        Ok(listener)
    }

    fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream))
            }
        }
    }

    fn uri(&self) -> String {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("nbd://{address}"),
                Err(_) => "nbd://".to_owned(),
            },
            Self::Unix(_, path) => format!("nbd+unix:///?socket={}", path.display()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

pub(crate) fn run<D: Domain>(args: &Args, options: &Nbd, joined: Joined<D>) -> anyhow::Result<()> {
    let attached = attach(args, joined, DEPTH)?;
    let listener = Listener::open(options)?;
    let export = export(&attached.info, options.readonly);
    let mut workers = Vec::new();
    for number in 0..attached.disk.status().queues {
        let queue = attached.disk.queue().context("the disk has fewer queues than it said")?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(EventFd::from_value_and_flags(0, flags).context("make an eventfd")?);
        let (clients, new) = mpsc::channel();
        let worker = Worker::new(queue, new, Arc::clone(&bell), attached.stop.clone());
        let thread = std::thread::Builder::new()
            .name(format!("nbd-{number}"))
            .spawn(move || worker.run())
            .context("start a thread")?;
        workers.push((clients, bell, thread));
    }
    println!("ready: {}", listener.uri());
    let mut turn = workers.iter().cycle();
    let ending = loop {
        if attached.stop.asked() {
            break None;
        }
        if let Some(ending) = attached.disk.status().ending {
            break Some(ending);
        }
        let mut fds = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(attached.stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::from(LOOK)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("wait for clients"),
        }
        match listener.accept() {
            Ok(stream) => {
                let client = (stream, connection::Connection::new(export, &attached.name));
                if let Some((clients, bell, _)) = turn.next() {
                    let _ = clients.send(client);
                    let _ = bell.write(1);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // A client that is gone already, or no descriptors left for a while.
                tracing::warn!("accept a client: {error}");
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    };
    drop(turn);
    attached.stop.now();
    for (clients, bell, thread) in workers {
        drop(clients);
        let _ = bell.write(1);
        match thread.join() {
            Ok(result) => result?,
            Err(_) => bail!("a worker panicked"),
        }
    }
    attached.disk.close();
    match ending {
        Some(ending) => bail!("{}: {ending}", attached.name),
        None => Ok(()),
    }
}

fn export(info: &DiskInfo, readonly: bool) -> Export {
    let mut flags = flag::HAS_FLAGS
        | flag::SEND_FLUSH
        | flag::SEND_FUA
        | flag::SEND_WRITE_ZEROES
        | flag::CAN_MULTI_CONN;
    if info.read_only || readonly {
        flags |= flag::READ_ONLY;
    }
    if info.discard.is_some() {
        flags |= flag::SEND_TRIM;
    }
    // A power of two, which a physical sector need not be.
    let preferred = info.physical_sector_size.checked_next_power_of_two().unwrap_or(4096);
    let preferred = preferred.clamp(4096, wire::MOST);
    Export { size: info.size, flags, sector_size: info.sector_size, preferred }
}
