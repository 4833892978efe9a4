//! The command line.

use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use hypervisor::size::Size;

/// Use a network interface that another domain serves
///
/// On Xen it is the domain that it runs in. Elsewhere it joins the embedded hypervisor as a domain of
/// its own (a running `hypervisor` is found, or one is started). It waits until a backend gives this
/// domain an interface, and uses it. On Xen the kernel must leave the interface alone: see the end.
#[derive(Parser)]
#[command(name = "netfront", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which interface, by its number [default: the first there is]
    #[arg(long, global = true, value_name = "NUMBER")]
    pub(crate) vif: Option<u32>,
    /// What to be called as a domain; `netback --domain NAME` serves it
    #[arg(long, global = true, value_name = "NAME", default_value = "guest")]
    pub(crate) domain_name: String,
    /// How much memory to take as a domain
    #[arg(long, global = true, value_name = "SIZE", default_value = "64M")]
    pub(crate) memory: Size,
    /// How long to wait for an interface and for its backend to connect it, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// The most queues to use
    #[arg(long, global = true, value_name = "N", default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) queues: u32,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  netfront info
  netfront tap --name vm0
      then: ip addr add 10.0.0.2/24 dev vm0; ping 10.0.0.1
  ip netns add guest; netfront tap --netns guest
      then: ip netns exec guest ip addr add 10.0.0.2/24 dev eth0
            ip netns exec guest iperf3 -c 10.0.0.1
  netfront bench --mode rr --size 64

In a Linux guest of Xen:
  modprobe -a xen-gntalloc xen-evtchn tun   what it works with; as root. A queue takes about 550 pages:
                                            modprobe xen-gntalloc limit=4096 for several
  The kernel's own driver takes every interface that it finds. Have it let go of one (here number 1):
  echo vif-1 > /sys/bus/xen/drivers/vif/unbind
  netfront info --vif 1
  echo vif-1 > /sys/bus/xen/drivers/vif/bind            gives it back
  An interface is given to a running guest by, in Dom0:
  xl network-attach GUEST bridge=xenbr0";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show what the interface is, how it is connected, and what its backend offers
    Info(Info),
    /// Present the interface as one of the host's, or of a network namespace's, until stopped
    Tap(Tap),
    /// Measure: packets a second, or how long they take there and back
    Bench(Bench),
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
pub(crate) struct Tap {
    /// What to call it
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    pub(crate) name: String,
    /// Put it into this network namespace, one of those that `ip netns` lists
    #[arg(long, value_name = "NAME", conflicts_with = "pid")]
    pub(crate) netns: Option<String>,
    /// Put it into the network namespace of this process
    #[arg(long, value_name = "PID")]
    pub(crate) pid: Option<u32>,
    /// The largest payload of a packet [default: what the toolstack says, or 1500]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..=65_521))]
    pub(crate) mtu: Option<u32>,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Mode {
    /// Send as many packets as the backend takes.
    Tx,
    /// Count what comes, from whoever sends.
    Rx,
    /// Send packets that somebody sends back, and measure how long that takes. One queue.
    Rr,
}

#[derive(clap::Args)]
pub(crate) struct Bench {
    /// What to measure
    #[arg(long, value_enum, default_value = "rr")]
    pub(crate) mode: Mode,
    /// Bytes in each packet, Ethernet header included
    #[arg(long, value_name = "BYTES", default_value = "64",
          value_parser = clap::value_parser!(u32).range(60..=65_535))]
    pub(crate) size: u32,
    /// Packets that are under way at a time, with rr
    #[arg(long, value_name = "N", default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=128))]
    pub(crate) depth: u32,
    /// For how long
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// To which address to send
    #[arg(long, value_name = "MAC", default_value = "ff:ff:ff:ff:ff:ff", value_parser = mac)]
    pub(crate) to: Mac,
    /// Look for packets without ever sleeping
    #[arg(long, conflicts_with = "no_poll")]
    pub(crate) poll: bool,
    /// Sleep whenever there is nothing to do
    #[arg(long)]
    pub(crate) no_poll: bool,
    /// As one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

fn mac(text: &str) -> Result<Mac, String> {
    let mac = netfront::negotiate::parse_mac(text).map(Mac);
    mac.ok_or_else(|| "is not six hexadecimal bytes with colons".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "is no number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
