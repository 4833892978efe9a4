//! `forward`: two TAPs, each in a network namespace, and nothing between them: what comes from one goes to
//! the other, a thread for each direction.
//!
//! What any program between two TAPs must do, and so what a path of packets through more is to be measured
//! against. Source: `Documentation/networking/tuntap.rst`, `linux/if_tun.h`.
#![expect(unsafe_code, reason = "the kernel reads structures by address")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

/// The largest packet that a TAP has, its header included, with some to spare.
const ROOM: usize = 80 << 10;

/// Bytes of an interface's name, with its end.
const NAME: usize = 16;

/// Makes two TAPs and passes packets between them, until it is killed.
#[derive(Parser)]
#[command(name = "forward")]
struct Options {
    /// Without headers in front of packets: the kernel cuts what is large and completes checksums.
    #[arg(long)]
    plain: bool,
    /// The network namespace of one TAP, and what it is called.
    namespace: String,
    name: String,
    /// Those of the other.
    other_namespace: String,
    other_name: String,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forward: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let one = open(&options.namespace, &options.name, !options.plain)?;
    let other = open(&options.other_namespace, &options.other_name, !options.plain)?;
    println!("ready");
    std::thread::scope(|scope| {
        let back = scope.spawn(|| pass(&other, &one));
        pass(&one, &other)?;
        back.join().map_err(|_| anyhow!("a thread panicked"))?
    })
}

fn pass(mut from: &File, mut to: &File) -> Result<()> {
    let mut packet = vec![0; ROOM];
    loop {
        let len = from.read(&mut packet).context("read a packet")?;
        let written = to.write(packet.get(..len).unwrap_or_default());
        match written.as_ref().map_err(std::io::Error::raw_os_error) {
            // An interface that is down, or has no memory, loses packets.
            Ok(_) | Err(Some(libc::EIO | libc::ENOMEM | libc::ENOBUFS | libc::EINVAL)) => {}
            Err(_) => drop(written.context("write a packet")?),
        }
    }
}

/// Makes the TAP `name` in a namespace.
fn open(namespace: &str, name: &str, headers: bool) -> Result<File> {
    ensure!(!name.is_empty() && name.len() < NAME, "interface '{name}': 1 to 15 bytes");
    let path = Path::new("/run/netns").join(namespace);
    let place = File::open(&path).with_context(|| path.display().to_string())?;
    // A thread of its own: which namespace one is in belongs to the thread.
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            setns(&place, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
            attach(name, headers).with_context(|| format!("make the TAP {name}"))
        });
        made.join().map_err(|_| anyhow!("a thread panicked"))?
    })
}

fn attach(name: &str, headers: bool) -> Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
    if headers {
        flags |= libc::IFF_VNET_HDR;
    }
    // `struct ifreq` (linux/if.h): the name, and flags.
    let mut request = [0; size_of::<libc::ifreq>()];
    let flags = (flags as u16).to_ne_bytes();
    let bytes = name.bytes().chain(std::iter::repeat_n(0, NAME.saturating_sub(name.len())));
    for (room, byte) in request.iter_mut().zip(bytes.chain(flags)) {
        *room = byte;
    }
    // SAFETY: this request takes a `struct ifreq`, which `request` is as long as, and keeps nothing
    // of it.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) })?;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let offloads = libc::c_ulong::from(if headers { offloads } else { 0 });
    // SAFETY: the argument of this request is the number itself.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })?;
    Ok(file)
}
