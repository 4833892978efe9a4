//! A guest with an interface on a bridge, in two network namespaces of this machine, that nothing else of
//! its network touches: whether packets come back, how soon, and how much passes each way.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use nix::sched::{CloneFlags, setns};
use nix::unistd::geteuid;
use serde::Serialize;
use testbed::network::{Namespace, v4};
use testbed::packages::{self, IP};
use testbed::scene::Scene;

use crate::stage::Stages;

/// What the host is on its bridge, and the guest.
const HOST: u8 = 1;
const GUEST: u8 = 2;
/// Packets that are sent to be sent back, and bytes of each.
const ECHOES: u32 = 2000;
const SMALL: usize = 64;
/// How long one may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Network {
    echoes: u32,
    lost: u32,
    round_trip_us: RoundTrip,
    guest_sends_mbit: f64,
    guest_receives_mbit: f64,
}

#[derive(Clone, Debug, Serialize)]
struct RoundTrip {
    p50: f64,
    p99: f64,
}

impl Network {
    pub(crate) fn print(&self) {
        let Self { echoes, lost, round_trip_us: trip, .. } = self;
        println!();
        println!("A guest's network, on a bridge of its own:");
        println!();
        println!("  {:34} {:>10} {:>9} {:>9}", "", "lost", "p50 us", "p99 us");
        let what = format!("{echoes} packets there and back");
        println!("  {what:34} {lost:>10} {:>9.1} {:>9.1}", trip.p50, trip.p99);
        println!("  {:34} {:>10.0} Mbit/s", "TCP that the guest sends", self.guest_sends_mbit);
        println!("  {:34} {:>10.0} Mbit/s", "TCP that it receives", self.guest_receives_mbit);
    }
}

/// Why there can be no network here, if so.
pub(crate) fn why_not() -> Option<&'static str> {
    if !geteuid().is_root() {
        return Some(
            "left out: namespaces and TAPs are root's; as root, this shows a guest's network",
        );
    }
    if packages::find(IP).is_none() {
        return Some("left out: there is no ip; install iproute2 to see a guest's network");
    }
    let tun = std::path::Path::new("/dev/net/tun").exists();
    (!tun).then_some(
        "left out: there is no /dev/net/tun; load the module tun to see a guest's network",
    )
}

/// Serves an interface to a guest of the scene's hypervisor, and measures it.
pub(crate) fn show(scene: &Scene, stages: &Stages, seconds: u64) -> Result<Network> {
    let (host, guest) = (Namespace::new()?, Namespace::new()?);
    let (netback, netfront) = stages.run("serving an interface", || {
        host.bridge("br0")?;
        host.address("br0", HOST)?;
        let options = ["--bridge", "br0", "--domain", "netguest"];
        let mut netback = host.start(scene, "netback", options)?;
        netback.line_with("ready")?;
        let options = ["--domain-name", "netguest", "--timeout", "60", "tap", "--netns"];
        let arguments = options.into_iter().chain([guest.name()]);
        let mut netfront = scene.start("netfront", "netfront", arguments)?;
        let said = netfront.line_with("is eth0")?;
        guest.until_up("eth0")?;
        guest.address("eth0", GUEST)?;
        Ok(((netback, netfront), said))
    })?;
    let network = stages.run("measuring the network, as the guest", || {
        let (lost, trips) = echo(&guest, &host)?;
        ensure!(lost == 0, "{lost} of {ECHOES} packets were lost");
        let guest_sends_mbit = stream(&guest, &host, &v4(HOST), seconds)?;
        let guest_receives_mbit = stream(&host, &guest, &v4(GUEST), seconds)?;
        let at = |quantile| trips.value_at_quantile(quantile) as f64 / 1000.0;
        let round_trip_us = RoundTrip { p50: at(0.5), p99: at(0.99) };
        let said = format!(
            "{ECHOES} packets came back, half of them within {:.0} us; {guest_sends_mbit:.0} Mbit/s \
             sent, {guest_receives_mbit:.0} received",
            round_trip_us.p50
        );
        let echoes = ECHOES;
        let measured =
            Network { echoes, lost, round_trip_us, guest_sends_mbit, guest_receives_mbit };
        Ok((measured, said))
    })?;
    netfront.end()?;
    netback.end()?;
    Ok(network)
}

/// Does `work` in a namespace, which is one thread's at a time.
fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = format!("/run/netns/{}", namespace.name());
    let file = File::open(&path).with_context(|| format!("open {path}"))?;
    std::thread::scope(|scope| {
        let entered = scope.spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}"))?;
            work()
        });
        entered.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
    })
}

/// Sends packets that are sent back; says how many were not, and how long the others took.
fn echo(from: &Namespace, to: &Namespace) -> Result<(u32, Histogram<u64>)> {
    let server = inside(to, || Ok(UdpSocket::bind((v4(HOST), 0))?))?;
    let address = server.local_addr()?;
    let client = inside(from, || Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    client.connect(address)?;
    client.set_read_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        // Sockets stay in the namespace that they were made in.
        let answering = scope.spawn(|| -> Result<()> {
            let mut packet = [0; SMALL];
            loop {
                let (len, peer) = server.recv_from(&mut packet)?;
                if len == 0 {
                    return Ok(());
                }
                server.send_to(packet.get(..len).unwrap_or_default(), peer)?;
            }
        });
        let asked = ask(&client);
        // Empty ones, until one of them ends the other side.
        while !answering.is_finished() {
            client.send(&[])?;
            std::thread::sleep(Duration::from_millis(10));
        }
        asked
    })
}

fn ask(client: &UdpSocket) -> Result<(u32, Histogram<u64>)> {
    let mut trips = Histogram::<u64>::new_with_max(60_000_000_000, 3)?;
    let mut lost = 0_u32;
    // The first one also finds out who has the address.
    for number in 0..=ECHOES {
        let mut packet = [0; SMALL];
        if let Some(head) = packet.first_chunk_mut() {
            *head = number.to_le_bytes();
        }
        let since = Instant::now();
        client.send(&packet)?;
        let mut back = [0; SMALL];
        let came = loop {
            match client.recv(&mut back) {
                Ok(_) if back == packet => break true,
                // One that was given up before.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(error) => return Err(error.into()),
            }
        };
        if number == 0 {
            continue;
        }
        if came {
            trips.saturating_record(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
        } else {
            lost = lost.saturating_add(1);
        }
    }
    Ok((lost, trips))
}

/// Sends by TCP for so long; says how many Mbit arrived in a second.
fn stream(from: &Namespace, to: &Namespace, address: &str, seconds: u64) -> Result<f64> {
    let listener = inside(to, || Ok(TcpListener::bind((address, 0))?))?;
    let address: SocketAddr = listener.local_addr()?;
    std::thread::scope(|scope| {
        let receiving = scope.spawn(move || -> Result<f64> {
            let (mut stream, _) = listener.accept()?;
            let began = Instant::now();
            let (mut bytes, mut room) = (0_u64, vec![0; 1 << 18]);
            loop {
                match stream.read(&mut room)? {
                    0 => break,
                    some => bytes = bytes.saturating_add(some as u64),
                }
            }
            Ok(bytes as f64 * 8.0 / 1e6 / began.elapsed().as_secs_f64())
        });
        inside(from, || {
            let mut stream = TcpStream::connect(address)?;
            let (began, data) = (Instant::now(), vec![7; 1 << 18]);
            while began.elapsed() < Duration::from_secs(seconds) {
                stream.write_all(&data)?;
            }
            Ok(())
        })?;
        receiving.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
    })
}
