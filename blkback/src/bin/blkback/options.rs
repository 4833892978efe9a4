//! The command line.

use std::path::PathBuf;

use blkback::engine::Choice;
use blkback::image::Direct;
use blkback::policy::acquire::Reach;
use blkback::queue::OnError;
use blkback::vdev::Vdev;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hypervisor::backend::{Spot, Wanted};
use hypervisor::size;
use hypervisor::vhost_user::Entrance;

const EXAMPLES: &str = "\
Examples:
  blkback --image disk.img                     serve an image to the domain named guest, as xvda
  blkback --image new.img --size 10G           make a sparse image first, if there is none
  blkback --image cd.img --readonly --vdev xvdb --domain web
  blkback --image /dev/vg0/data --queues 2 --limit-iops 5000 --stats
  blkback --engine null --size 1T --poll       measure what lies in front of the image
  blkback --watch                              serve the disks of all guests that xl starts
  blkback --image disk.img --vhost-user /run/vm1.sock   serve a virtual machine of QEMU's
  blkback ctl list                             what is served here, and to whom
  blkback ctl resize 20G                       grow the image while the guest uses it

The daemon joins the hypervisor that runs here; where there is none, it starts one for itself. It
waits for its guest, and when that one goes, for the next of the name. SIGTERM lets the guest finish.

With blkback --watch running in Dom0, a disk in a guest's xl configuration is
  disk = ['script=block-domkit,vdev=xvda,format=raw,access=rw,target=/images/disk.img']
and from Xen 4.19 on, beside the kernel's backend and not in its place,
  disk = ['backendtype=tap,script=block-domkit,vdev=xvda,format=raw,access=rw,target=/images/disk.img']
The script block-domkit belongs into /etc/xen/scripts. On SIGTERM, the watcher's processes answer what
is under way and leave their devices in order; the guests wait for the next blkback --watch. One that
is killed leaves a journal, by which the next one knows what is under way. To upgrade, start the new
program as the old one was, with --takeover: guests notice a pause of some milliseconds.";

/// Serves a disk image to a guest domain.
#[derive(Debug, Parser)]
#[command(name = "blkback", version, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) serve: Serve,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What carries requests to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineName {
    /// io_uring, or plain calls where the kernel refuses it.
    Auto,
    /// io_uring.
    Uring,
    /// Plain reads and writes.
    Blocking,
    /// Nothing: all requests succeed at once and keep nothing. For measuring; needs no image.
    Null,
    /// This process's memory. Needs no image.
    Memory,
}

/// What is done about a request that the image refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnErrorName {
    /// Tell the guest.
    Report,
    /// Hold it where there is no space left, and tell the guest of anything else.
    HoldFull,
    /// Hold it, whatever the reason.
    Hold,
}

impl OnErrorName {
    /// What it says.
    pub(crate) const fn policy(self) -> OnError {
        match self {
            Self::Report => OnError::Report,
            Self::HoldFull => OnError::HoldFull,
            Self::Hold => OnError::Hold,
        }
    }
}

/// How a guest's pages are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReachName {
    /// As suits what the guest's driver says of itself.
    Auto,
    /// Mapped when first used, and kept.
    Persistent,
    /// Mapped for each request.
    Map,
    /// Copied, many at a time.
    Copy,
}

impl ReachName {
    /// What it says; nothing where the guest decides.
    pub(crate) const fn reach(self) -> Option<Reach> {
        match self {
            Self::Auto => None,
            Self::Persistent => Some(Reach::Persistent { pages: Reach::PERSISTENT_PAGES }),
            Self::Map => Some(Reach::Map),
            Self::Copy => Some(Reach::Copy { pages: Reach::COPY_PAGES }),
        }
    }
}

impl EngineName {
    /// How it reads and writes an image; nothing where it needs none.
    pub(crate) const fn choice(self) -> Option<Choice> {
        match self {
            Self::Auto => Some(Choice::Auto),
            Self::Uring => Some(Choice::Uring),
            Self::Blocking => Some(Choice::Blocking),
            Self::Null | Self::Memory => None,
        }
    }
}

/// As a value is given on the command line.
pub(crate) fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// The image: a raw file or a block device.
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// Make a sparse image of this size where there is none (10G, 512M, ...).
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    pub(crate) size: Option<u64>,
    /// Serve every device that a toolstack makes here, each by a process of its own.
    #[arg(long, conflicts_with_all = ["domain", "vdev", "device", "image", "size", "stats"])]
    pub(crate) watch: bool,
    /// The kind of devices to watch for; may be given several times. Without it: vbd3, and of vbd
    /// those whose script is block-domkit. All of vbd can be served where the kernel's xen-blkback
    /// is not loaded.
    #[arg(long = "type", value_name = "KIND", requires = "watch", value_parser = kind)]
    pub(crate) kinds: Vec<String>,
    /// Serve the one device that a toolstack made in this directory of the store.
    #[arg(long, value_name = "DIRECTORY")]
    #[arg(conflicts_with_all = ["domain", "vdev", "image", "size", "readonly", "cdrom", "removable"])]
    pub(crate) device: Option<Spot>,
    /// Serve a virtual machine of another process (QEMU, cloud-hypervisor, crosvm): listen at this
    /// socket for its monitor, by the vhost-user protocol. PATH is made here unless systemd has made and passed
    /// it; fd=N is a listening socket that was inherited, systemd the one that systemd passed, systemd:NAME one of
    /// several.
    #[arg(long, value_name = "PATH|fd=N|systemd[:NAME]")]
    #[arg(conflicts_with_all = ["domain", "watch", "device", "cdrom", "removable", "journal"])]
    pub(crate) vhost_user: Option<Entrance>,
    /// The monitor listens there: connect to it, and again whenever it went away.
    #[arg(long, requires = "vhost_user")]
    pub(crate) reconnect: bool,
    /// The disk's serial number for a virtual machine's driver: 20 bytes at most.
    #[arg(long, value_name = "NAME", requires = "vhost_user", value_parser = serial)]
    pub(crate) serial: Option<String>,
    /// Take over from the blkback that serves the same disk, or from the watcher with --watch: it answers what is
    /// under way, and this one goes on with the guest's rings. Where none runs, begin as without this.
    #[arg(long, conflicts_with = "vhost_user")]
    pub(crate) takeover: bool,
    /// The guest to serve, by name (waited for) or number; the disk is made for it, in place of one whose backend's
    /// domain is gone where there is such a one. Without it, on
    /// Xen: every disk that is configured for this image; on the embedded hypervisor: the guest
    /// named guest.
    #[arg(long, value_name = "NAME|ID")]
    pub(crate) domain: Option<Wanted>,
    /// The disk's name in the guest.
    #[arg(long, default_value = "xvda", value_name = "NAME")]
    pub(crate) vdev: Vdev,
    /// Refuse writes. Several daemons may serve one image so.
    #[arg(long, alias = "read-only")]
    pub(crate) readonly: bool,
    /// Look like the drive of a compact disc; implies --readonly and --removable.
    #[arg(long)]
    pub(crate) cdrom: bool,
    /// Look like a disk that can be taken out.
    #[arg(long)]
    pub(crate) removable: bool,
    /// Do not let the guest discard what it does not need: the image keeps its blocks.
    #[arg(long)]
    pub(crate) no_discard: bool,
    /// Bytes in a sector: 512 or 4096. Without it, what the image has.
    #[arg(long, value_name = "BYTES")]
    pub(crate) sector_size: Option<u32>,
    /// The most queues that the guest may use, each served by a thread of its own. Without it, one
    /// for each processor up to 4.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64), value_name = "N")]
    pub(crate) queues: Option<u16>,
    /// The most pages of a ring, as a power of two: 0 is 32 requests at a time, 4 is 512.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=4))]
    #[arg(value_name = "N")]
    pub(crate) ring_page_order: u32,
    /// Go past the page cache: on, off, or auto, wherever that works.
    #[arg(long, default_value = "auto", value_name = "on|off|auto")]
    pub(crate) direct: Direct,
    /// What carries requests to the image.
    #[arg(long, value_enum, default_value_t = EngineName::Auto, value_name = "ENGINE")]
    pub(crate) engine: EngineName,
    /// The most requests a second. Can be changed while running (ctl limits). 0 is no limit.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) limit_iops: u64,
    /// The most bytes a second (100M, ...). Can be changed while running. 0 is no limit.
    #[arg(long, default_value = "0", value_parser = size::parse, value_name = "SIZE")]
    pub(crate) limit_bytes: u64,
    /// What to do with a request that the image refuses. The guest sees an error, or a slow disk: what is held is
    /// tried again by itself, after 0.1 s and then less and less often up to every 10 s, and by ctl resume.
    /// Flushes that fail are always reported.
    #[arg(long, value_enum, default_value_t = OnErrorName::Report, value_name = "WHAT")]
    pub(crate) on_error: OnErrorName,
    /// Never sleep: each queue takes a whole processor. For measuring.
    #[arg(long, conflicts_with = "no_poll")]
    pub(crate) poll: bool,
    /// Always sleep as soon as there is nothing to do. By default a queue looks around for a while
    /// where that has paid lately, and sleeps when the guest is idle.
    #[arg(long)]
    pub(crate) no_poll: bool,
    /// How the guest's pages are reached. For measuring.
    #[arg(long, value_enum, default_value_t = ReachName::Auto, value_name = "HOW")]
    pub(crate) reach: ReachName,
    /// Keep no journal of what is under way: a process that is killed leaves its guest to connect anew.
    #[arg(long)]
    pub(crate) no_journal: bool,
    /// Keep a journal even where none is of use: on the embedded hypervisor, where the domain ends with this
    /// process. For measuring.
    #[arg(long, conflicts_with = "no_journal")]
    pub(crate) journal: bool,
    /// Print a line each second: requests, bytes, latency and queue depth.
    #[arg(long)]
    pub(crate) stats: bool,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where the control socket lies, if not in the hypervisor's runtime folder.
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
}

/// What a disk can be named by for a virtual machine's driver.
fn serial(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 20 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a serial number has 1 to 20 printable characters".into());
    }
    Ok(text.to_owned())
}

/// A kind of device, as it stands in the store's paths.
fn kind(text: &str) -> Result<String, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err("a kind of device has letters and digits, as vbd3".into());
    }
    Ok(text.to_owned())
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask a running blkback, or change what it does.
    Ctl(Ctl),
    /// Print completions for a shell.
    Completions {
        /// Which.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

#[derive(Args, Debug)]
pub(crate) struct Ctl {
    /// The daemon's control socket. Without it, the one daemon in the hypervisor's runtime folder.
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// The daemon that serves this image, where there are several.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "control")]
    pub(crate) image: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// What is served, to whom, and in which state; of all daemons found.
    List,
    /// Where the rings are.
    Rings,
    /// What was counted, since the guest connected and ever.
    Counters,
    /// Grow the image to a size, or take over what it has been grown to; the guest is told.
    Resize {
        /// The new size (20G, ...). Without it, look how large the image is now.
        #[arg(value_parser = size::parse)]
        size: Option<u64>,
    },
    /// Show the limits, or change them.
    Limits {
        /// The most requests a second; 0 is no limit.
        #[arg(long)]
        iops: Option<u64>,
        /// The most bytes a second; 0 is no limit.
        #[arg(long, value_parser = size::parse)]
        bytes: Option<u64>,
    },
    /// Try again at once what the image refused and is held (--on-error).
    Resume,
    /// Answer what is under way, leave the disk as it is, and end the daemon: the next one of the same command
    /// goes on, and a watcher starts that at once. To leave no gap, start the next one with --takeover instead.
    Handover,
    /// Take the disk away from the guest, and end the daemon.
    Detach {
        /// Without waiting for the guest to let go of it.
        #[arg(long)]
        force: bool,
    },
}
