//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use hypervisor::size::Size;

/// Use a disk that another domain serves
///
/// On Xen it is the domain that it runs in. Elsewhere it joins the embedded hypervisor as a domain of
/// its own (a running `hypervisor` is found, or one is started). It waits until a backend gives this
/// domain a disk, and uses it. On Xen the kernel must leave the disk alone: see the end.
#[derive(Parser)]
#[command(name = "blkfront", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which disk: xvda, sdb, hdc, or its number [default: the first there is]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) vdev: Option<String>,
    /// What to be called as a domain; `blkback --domain NAME` serves it
    #[arg(long, global = true, value_name = "NAME", default_value = "guest")]
    pub(crate) domain_name: String,
    /// How much memory to take as a domain
    #[arg(long, global = true, value_name = "SIZE", default_value = "64M")]
    pub(crate) memory: Size,
    /// How long to wait for a disk and for its backend to connect it, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// The most queues to use
    #[arg(long, global = true, value_name = "N", default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) queues: u32,
    /// The largest ring of each queue, as an order of pages: 0 for 32 requests, 4 for 512
    #[arg(long, global = true, value_name = "ORDER", default_value = "2",
          value_parser = clap::value_parser!(u32).range(0..=4))]
    pub(crate) ring_page_order: u32,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  blkfront info
  blkfront read --offset 1M --length 4K -o part.bin
  blkfront write --offset 1M part.bin
  blkfront discard --offset 1G --length 512M
  blkfront bench --rw randrw --bs 4k --depth 32 --verify
  blkfront nbd --listen 127.0.0.1:10809
      then: qemu-img info nbd://127.0.0.1:10809

In a Linux guest of Xen:
  modprobe -a xen-gntalloc xen-evtchn       what it works with; as root
  The kernel's own driver takes every disk that it finds. Have it let go of one (here xvdb, 51728):
  umount /dev/xvdb; echo vbd-51728 > /sys/bus/xen/drivers/vbd/unbind
  blkfront info --vdev xvdb
  echo vbd-51728 > /sys/bus/xen/drivers/vbd/bind        gives it back
  or keep the module xen-blkfront from being loaded. A disk is given to a running guest by, in Dom0:
  xl block-attach GUEST 'format=raw,vdev=xvdb,access=rw,target=/path/disk.img'";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show what the disk is and how it is connected
    Info(Info),
    /// Copy bytes from the disk to a file or to standard output
    Read(Read),
    /// Copy a file or standard input to the disk
    Write(Write),
    /// Let go of a part of the disk: what is there is lost, and need not be kept any more
    Discard(Discard),
    /// Measure: requests a second and how long they take. Modes that write destroy what is there
    Bench(Bench),
    /// Export the disk over the network block device protocol
    Nbd(Nbd),
    /// Print shell completions
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(clap::Args)]
pub(crate) struct Info {
    /// As one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Read {
    /// From where on; whole sectors
    #[arg(long, default_value = "0", value_name = "BYTES")]
    pub(crate) offset: Size,
    /// How much; whole sectors [default: to the end of the disk]
    #[arg(long, value_name = "BYTES")]
    pub(crate) length: Option<Size>,
    /// To which file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct Write {
    /// From where on; whole sectors
    #[arg(long, default_value = "0", value_name = "BYTES")]
    pub(crate) offset: Size,
    /// How much; whole sectors [default: all there is]
    #[arg(long, value_name = "BYTES")]
    pub(crate) length: Option<Size>,
    /// From which file [default: standard input]
    #[arg(value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct Discard {
    /// From where on; whole sectors
    #[arg(long, default_value = "0", value_name = "BYTES")]
    pub(crate) offset: Size,
    /// How much; whole sectors
    #[arg(long, value_name = "BYTES")]
    pub(crate) length: Size,
}

/// In which order, and what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Mode {
    /// Reads at random places.
    Randread,
    /// Writes at random places.
    Randwrite,
    /// Reads and writes, as many of either, at random places.
    Randrw,
    /// Reads from the beginning on.
    Read,
    /// Writes from the beginning on.
    Write,
}

#[derive(clap::Args)]
pub(crate) struct Bench {
    /// What to do
    #[arg(long, value_enum, default_value = "randread")]
    pub(crate) rw: Mode,
    /// Bytes in each request; whole sectors
    #[arg(long, default_value = "4k", value_name = "BYTES")]
    pub(crate) bs: Size,
    /// Requests that are under way at a time, in each queue
    #[arg(long, default_value = "32", value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) depth: u32,
    /// For how long
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// Use no more of the disk than this, from its beginning [default: all]
    #[arg(long, value_name = "BYTES")]
    pub(crate) range: Option<Size>,
    /// Check what is read, and read back all that was written at the end
    #[arg(long)]
    pub(crate) verify: bool,
    /// Look for completions without ever sleeping
    #[arg(long, conflicts_with = "no_poll")]
    pub(crate) poll: bool,
    /// Sleep whenever there is nothing to do
    #[arg(long)]
    pub(crate) no_poll: bool,
    /// Grant the buffers themselves to the backend, and so trust it with them, instead of copying
    #[arg(long)]
    pub(crate) zero_copy: bool,
    /// As one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Nbd {
    /// Listen on this address
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10809")]
    pub(crate) listen: SocketAddr,
    /// Listen on a Unix socket instead
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    pub(crate) unix: Option<PathBuf>,
    /// Let nobody write
    #[arg(long)]
    pub(crate) readonly: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "is no number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
