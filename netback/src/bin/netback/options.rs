//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use hypervisor::backend::{Spot, Wanted};
use hypervisor::vhost_user::Entrance;
use netback::credit::Rate;
use netback::device::mac::Shown;
use netback::port::inner::Kind;
use netback::port::interface::Name;

const EXAMPLES: &str = "\
Examples:
  netback --bridge br0                         give the domain named guest an interface on a bridge
  netback --domain web --devid 1 --mtu 9000    a second interface of web's, on no bridge: vif5.1
  netback --bridge br0 --rate 100Mb/s --allow-ip 10.0.0.2
  netback --interface eth1                     what eth1 receives is the guest's
  netback --port echo                          no network; netfront bench --mode rr measures the pair
  netback --bridge br0 --pcap guest.pcap       write down what passes, for tcpdump -r
  netback --bridge br0 --vhost-user /run/vm1-net.sock --mac 52:54:00:12:34:56
                                               the same for a virtual machine of QEMU's
  netback --watch                              serve the interfaces of all guests that xl starts
  netback ctl list                             what is served here, and to whom
  netback ctl limits --tx 10Mb/s               hold the guest to a rate while it runs

A bridge: ip link add br0 type bridge; ip link set br0 up; ip addr add 10.0.0.1/24 dev br0

The daemon joins the hypervisor that runs here; where there is none, it starts one for itself. It
waits for its guest, and when that one goes, for the next of the name. SIGTERM lets the guest finish.
A guest may send as its own Ethernet address only, unless --allow-mac says otherwise.

In Dom0, netback --watch takes the place of the kernel's xen-netback, which must not be loaded. Stock
scripts (vif-bridge and others) work with it: a guest's xl configuration stays as it is. On SIGTERM, the
watcher's processes leave their devices in order; the guests wait for the next netback --watch. To
upgrade, start the new program as the old one was, with --takeover: guests notice a pause.";

/// Serves a network interface to a guest domain.
#[derive(Debug, Parser)]
#[command(name = "netback", version, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) serve: Serve,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// A rate, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Speed(pub(crate) Option<Rate>);

impl FromStr for Speed {
    type Err = hypervisor::ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As the store has it, too: so it is passed on to the processes of a watcher.
        if text.contains(',') { Rate::parse(text) } else { Rate::parse_speed(text) }.map(Self)
    }
}

/// Whom a guest may send as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AllowedMac {
    /// Anybody.
    Any,
    /// This one.
    Only(Shown),
}

impl FromStr for AllowedMac {
    type Err = hypervisor::ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "any" { Ok(Self::Any) } else { text.parse().map(Self::Only) }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// Put the interface on this bridge.
    #[arg(long, value_name = "BRIDGE", conflicts_with = "interface")]
    pub(crate) bridge: Option<Name>,
    /// What the host's end is called [default: vif, the guest's number, a dot, and --devid].
    #[arg(long, value_name = "NAME", conflicts_with_all = ["interface", "watch", "device"])]
    pub(crate) tap: Option<Name>,
    /// Make no interface; give the guest what this one receives, and send what the guest sends out
    /// of it. One queue.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["watch", "device"])]
    pub(crate) interface: Option<Name>,
    /// No network: what the guest sends is gone (sink), or comes back (echo), or it is sent small packets
    /// without end (source). For measuring, by netfront bench.
    #[arg(long, value_name = "sink|echo|source")]
    #[arg(conflicts_with_all = ["bridge", "tap", "interface", "watch", "device"])]
    pub(crate) port: Option<Kind>,
    /// Serve every interface that a toolstack makes here, each by a process of its own.
    #[arg(long, conflicts_with_all = ["domain", "devid", "device", "mac", "stats", "pcap"])]
    pub(crate) watch: bool,
    /// Serve the one device that a toolstack made in this directory of the store.
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["domain", "devid", "mac", "mtu"])]
    pub(crate) device: Option<Spot>,
    /// Serve a virtual machine that QEMU, cloud-hypervisor or crosvm runs, over vhost-user: the socket to which its
    /// monitor connects. It is made here unless systemd has made and passed it; fd=N is a listening socket that was
    /// inherited, systemd the one that systemd passed, systemd:NAME one of several.
    #[arg(long, value_name = "PATH|fd=N|systemd[:NAME]")]
    #[arg(conflicts_with_all = ["watch", "device", "domain", "devid", "takeover"])]
    pub(crate) vhost_user: Option<Entrance>,
    /// With --vhost-user: the monitor listens there, and we connect, again whenever it is gone.
    #[arg(long, requires = "vhost_user")]
    pub(crate) reconnect: bool,
    /// Take over from the netback that serves the same interface, or from the watcher with --watch: this one goes
    /// on with the guest's rings. Where none runs, begin as without this.
    #[arg(long)]
    pub(crate) takeover: bool,
    /// The guest to serve, by name (waited for) or number. Without it, on the embedded hypervisor: the
    /// guest named guest.
    #[arg(long, value_name = "NAME|ID")]
    pub(crate) domain: Option<Wanted>,
    /// Which of the guest's interfaces it is.
    #[arg(long, default_value_t = 0, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=9999))]
    pub(crate) devid: u32,
    /// The guest's address. Without it, one of Xen's (00:16:3e) that is the same each time for this
    /// machine, guest and --devid. With --vhost-user: the address that its monitor gives the machine, too, as
    /// in QEMU's mac=; without it, the machine may send as anybody, unless --allow-mac says otherwise.
    #[arg(long, value_name = "MAC")]
    pub(crate) mac: Option<Shown>,
    /// The largest payload of a packet [default: 1500].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..=65521))]
    #[arg(conflicts_with_all = ["interface", "watch"])]
    pub(crate) mtu: Option<u16>,
    /// How much the guest may send: 10Mb/s, 250KB/s, 1GB/s@20ms, as in xl's configurations. 0 is no
    /// limit. Can be changed while running (ctl limits).
    #[arg(long, value_name = "RATE")]
    pub(crate) rate: Option<Speed>,
    /// How much it may receive.
    #[arg(long, value_name = "RATE")]
    pub(crate) rate_rx: Option<Speed>,
    /// The most queues that the guest may use, each served by a thread of its own. Without it, one
    /// for each processor up to 4.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64), value_name = "N")]
    pub(crate) queues: Option<u16>,
    /// The Ethernet address that the guest may send as, or any [default: its own].
    #[arg(long, value_name = "MAC|any")]
    pub(crate) allow_mac: Option<AllowedMac>,
    /// An IP address that the guest may send as, and no others; may be given several times.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "watch")]
    pub(crate) allow_ip: Vec<IpAddr>,
    /// Write down what passes, for tcpdump and its like. One queue.
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,
    /// Never sleep: each queue takes a whole processor. For measuring.
    #[arg(long, conflicts_with = "no_poll")]
    pub(crate) poll: bool,
    /// Always sleep as soon as there is nothing to do. By default a queue looks around for a while
    /// where that has paid lately, and sleeps when the guest is idle.
    #[arg(long)]
    pub(crate) no_poll: bool,
    /// Print a line each second: packets and bits each way, and losses.
    #[arg(long)]
    pub(crate) stats: bool,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where the control socket lies, if not in the hypervisor's runtime folder.
    #[arg(long, value_name = "PATH", conflicts_with = "watch")]
    pub(crate) control: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask a running netback, or change what it does.
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
    /// The daemon that serves this guest, by name or number, where there are several.
    #[arg(long = "domain", global = true, value_name = "NAME|ID", conflicts_with = "control")]
    pub(crate) guest: Option<String>,
    /// And of those the one that serves this of its interfaces.
    #[arg(long = "devid", global = true, value_name = "N", conflicts_with = "control")]
    pub(crate) number: Option<u32>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum UpDown {
    Up,
    Down,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// What is served, to whom, and in which state; of all daemons found.
    List,
    /// Where the rings are.
    Rings,
    /// What was counted, since the guest connected and ever.
    Counters,
    /// Show the rates, or change them: 10Mb/s, 250KB/s, 1GB/s@20ms; 0 is no limit.
    Limits {
        /// Of what the guest sends.
        #[arg(long, value_name = "RATE")]
        tx: Option<String>,
        /// Of what it receives.
        #[arg(long, value_name = "RATE")]
        rx: Option<String>,
    },
    /// Tell the guest that its link is up or down, as a cable would; or show which.
    Link {
        /// Which.
        state: Option<UpDown>,
    },
    /// Leave the interface as it is, and end the daemon: the next one of the same command goes on, and a watcher
    /// starts that at once. To leave no gap, start the next one with --takeover instead.
    Handover,
    /// Take the interface away from the guest, and end the daemon.
    Detach {
        /// Without waiting for the guest to let go of it.
        #[arg(long)]
        force: bool,
    },
}
