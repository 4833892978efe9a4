//! Two guests' interfaces as TAPs in two network namespaces, with the kernel's own TCP between them.
//!
//! The backends of both are one thread that gives each guest what the other one sent, with all that is
//! said of it: so large packets cross in one piece, and checksums stay blank on the way.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypervisor::embedded::Domain;
use hypervisor::frontend::host::Stop;
use hypervisor::testing::Machine;
use netfront::host::{HostInterface, Namespace, Pump, Tap};
use netfront::{Checksum, Config, Offload};
use nix::sched::{CloneFlags, unshare};
use ring::packet::transport;

use crate::backend::{Backend, DIRECTORY, Features, Packet};

const PATIENCE: Duration = Duration::from_secs(60);
const BYTES: usize = 8 << 20;

/// A network namespace, and a thread in it.
struct Net {
    number: u32,
    work: Option<Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<JoinHandle<()>>,
}

impl Net {
    fn new() -> Result<Self, nix::errno::Errno> {
        let (tell, told) = channel();
        let (work, queue) = channel::<Box<dyn FnOnce() + Send>>();
        let thread = std::thread::spawn(move || {
            let entered = unshare(CloneFlags::CLONE_NEWNET);
            tell.send(entered.map(|()| nix::unistd::gettid().as_raw())).unwrap();
            queue.into_iter().for_each(|work| work());
        });
        let number = told.recv().unwrap()?.cast_unsigned();
        Ok(Self { number, work: Some(work), thread: Some(thread) })
    }

    /// Does `work` there, and gives what it gives when that is asked for.
    fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::sync::mpsc::Receiver<T> {
        let (tell, told) = channel();
        let boxed = Box::new(move || drop(tell.send(work())));
        self.work.as_ref().unwrap().send(boxed).unwrap();
        told
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.begin(work).recv().expect("the work was done")
    }

    fn ip(&self, arguments: &'static str) {
        self.run(move || {
            let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
            assert!(done.status.success(), "ip {arguments}: {done:?}");
        });
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.work = None;
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// One guest: its interface, its TAP, and the threads between.
struct Guest {
    interface: HostInterface<Domain>,
    tap: Arc<Tap>,
    stop: Stop,
    pumps: Vec<JoinHandle<()>>,
}

impl Guest {
    fn new(domain: Domain, net: &Net, queues: u32, mac: u8) -> Self {
        let mut config = Config::default();
        config.queues = queues;
        let interface = HostInterface::open(domain, DIRECTORY, config).unwrap();
        let info = interface.wait(PATIENCE).unwrap();
        let tap = Tap::open("eth0", &Namespace::Of(net.number), queues as usize).unwrap();
        tap.set_up(Some([2, 0, 0, 0, 0, mac]), info.mtu).unwrap();
        let tap = Arc::new(tap);
        let stop = Stop::new().unwrap();
        let pumps = (0..queues)
            .map(|_| {
                let mut pump = Pump::new(interface.queue().unwrap(), &tap).unwrap();
                let stop = stop.clone();
                std::thread::spawn(move || pump.run(&stop).unwrap())
            })
            .collect();
        Self { interface, tap, stop, pumps }
    }

    fn end(self) {
        self.stop.now();
        self.pumps.into_iter().for_each(|pump| pump.join().unwrap());
        self.interface.close();
        drop(self.tap);
    }
}

/// The backends of two guests, each of which gets what the other sends.
struct Wire {
    stop: Arc<AtomicBool>,
    restart: Arc<AtomicBool>,
    /// The largest packet that crossed.
    largest: Arc<AtomicUsize>,
    /// Those that crossed behind a VLAN tag.
    tagged: Arc<Mutex<Vec<Packet>>>,
    thread: JoinHandle<()>,
}

impl Wire {
    fn start(mut ends: [Backend; 2]) -> Self {
        let [stop, restart] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let largest = Arc::new(AtomicUsize::new(0));
        let (asked, again, seen) = (Arc::clone(&stop), Arc::clone(&restart), Arc::clone(&largest));
        let tagged: Arc<Mutex<Vec<Packet>>> = Arc::default();
        let kept = Arc::clone(&tagged);
        let thread = std::thread::spawn(move || {
            let mut held: [VecDeque<Packet>; 2] = Default::default();
            while !asked.load(Ordering::Relaxed) {
                if again.swap(false, Ordering::Relaxed) {
                    ends[0].restart();
                }
                for (from, to) in [(0, 1), (1, 0)] {
                    let end = &mut ends[from];
                    end.live();
                    end.poll();
                    for packet in end.sent.drain(..) {
                        seen.fetch_max(packet.0.len(), Ordering::Relaxed);
                        if packet.0.get(12..14) == Some(&[0x81, 0]) {
                            kept.lock().unwrap().push(packet);
                            continue;
                        }
                        held[to].push_back(packet);
                    }
                    // No wire holds more than that.
                    held[to].truncate(512);
                    let queues = ends[to].queues.len();
                    while let Some(packet) = held[to].pop_front().filter(|_| queues > 0) {
                        // One queue for all of a flow would do; here any will.
                        let queue = packet.0.len() % queues;
                        if !ends[to].give(queue, &packet) {
                            held[to].push_front(packet);
                            break;
                        }
                    }
                }
                std::thread::yield_now();
            }
        });
        Self { stop, restart, largest, tagged, thread }
    }
}

/// Whether this machine has TAPs and namespaces for us.
fn can(test: &str) -> Option<[Net; 2]> {
    if !testbed::skip::unless_root(test)
        || !testbed::skip::unless_installed(test, &[testbed::packages::IP])
    {
        return None;
    }
    let nets = Net::new().and_then(|first| Ok([first, Net::new()?]));
    match nets {
        Ok(nets) if std::path::Path::new("/dev/net/tun").exists() => Some(nets),
        Ok(_) => {
            testbed::skip::because(test, "no /dev/net/tun (modprobe tun)");
            None
        }
        Err(errno) => {
            testbed::skip::because(test, &format!("no network namespaces: {errno}"));
            None
        }
    }
}

/// Sends [`BYTES`] from the second namespace to the first, and sees them arrive as they were.
fn stream(nets: &[Net; 2], address: SocketAddr, midway: impl FnOnce()) {
    let listener = nets[0].run(move || TcpListener::bind(address).unwrap());
    let sending = nets[1].begin(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let data: Vec<u8> = (0..BYTES).map(|n| (n / 7 + n / 65_536) as u8).collect();
        stream.write_all(&data).unwrap();
    });
    let (mut stream, _) = listener.accept().unwrap();
    let mut got = vec![0; BYTES / 2];
    stream.read_exact(&mut got).unwrap();
    midway();
    stream.read_to_end(&mut got).unwrap();
    sending.recv().unwrap();
    assert_eq!(got.len(), BYTES);
    assert!(got.iter().enumerate().all(|(n, byte)| *byte == (n / 7 + n / 65_536) as u8));
}

#[test]
fn the_kernels_own_tcp_goes_from_guest_to_guest() {
    let Some(nets) = can("the_kernels_own_tcp_goes_from_guest_to_guest") else { return };
    for queues in [1, 2] {
        let machine = Machine::new();
        let domains = ["first", "second"].map(|name| machine.domain(name));
        let ends = [0, 1].map(|n| {
            let name = format!("backend{n}");
            Backend::new(&machine, &name, domains[n].id(), Features::default())
        });
        let wire = Wire::start(ends);
        let [first, second] = domains;
        let guests =
            [Guest::new(first, &nets[0], queues, 1), Guest::new(second, &nets[1], queues, 2)];
        nets[0].ip("addr add 10.9.0.1/24 dev eth0");
        nets[1].ip("addr add 10.9.0.2/24 dev eth0");
        nets[0].ip("addr add fd09::1/64 dev eth0 nodad");
        nets[1].ip("addr add fd09::2/64 dev eth0 nodad");

        for address in ["10.9.0.1:5001", "[fd09::1]:5001"] {
            wire.largest.store(0, Ordering::Relaxed);
            stream(&nets, address.parse().unwrap(), || ());
            // The MTU is 9000: only what is to be cut is larger.
            let largest = wire.largest.load(Ordering::Relaxed);
            assert!(largest > 30_000, "{address}: nothing crossed in one piece: {largest} bytes");
        }
        // A backend that goes and comes back costs a pause and no connection.
        stream(&nets, "10.9.0.1:5002".parse().unwrap(), || {
            wire.restart.store(true, Ordering::Relaxed);
        });
        assert!(guests[0].interface.status().connections >= 2);

        // Datagrams, whole and in fragments.
        for (size, port) in [(100, 6001_u16), (8000, 6002), (40_000, 6003)] {
            let server = nets[0].run(move || UdpSocket::bind(("10.9.0.1", port)).unwrap());
            let data: Vec<u8> = (0..size).map(|n| (n * 7) as u8).collect();
            let wanted = data.clone();
            nets[1].run(move || {
                let client = UdpSocket::bind("10.9.0.2:0").unwrap();
                client.send_to(&data, ("10.9.0.1", port)).unwrap();
            });
            let mut got = vec![0; 65_536];
            let (len, _) = server.recv_from(&mut got).unwrap();
            assert_eq!(got[..len], wanted);
        }
        guests.into_iter().for_each(Guest::end);
        wire.stop.store(true, Ordering::Relaxed);
        wire.thread.join().unwrap();
    }
}

/// A large packet behind a VLAN tag, as the kernel hands it to the interface: TCP over IPv4 with 20,000
/// bytes of payload, in segments of 1,000, checksum blank, sent from a packet socket.
const LARGE: &str = "
import socket, struct
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
s.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
s.bind(('eth0', 0))
payload = bytes(n * 7 % 256 for n in range(20000))
tcp = struct.pack('>HHIIBBHHH', 1, 2, 3, 4, 0x50, 0x10, 99, 0, 0)
ip = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 40 + len(payload), 1, 0x4000, 64, 6, 0,
                 bytes([10, 9, 0, 2]), bytes([10, 9, 0, 1]))
ethernet = bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 7, 8, 0])
header = struct.pack('<BBHHHH', 1, 1, 58, 1000, 38, 16)
s.send(header + ethernet + ip + tcp + payload)
";

#[test]
fn what_the_kernel_leaves_to_others_behind_a_vlan_tag_is_done_here() {
    let test = "what_the_kernel_leaves_to_others_behind_a_vlan_tag_is_done_here";
    let Some(nets) = can(test) else { return };
    if !testbed::skip::unless_installed(test, &[testbed::packages::PYTHON]) {
        return;
    }
    let machine = Machine::new();
    let domains = ["first", "second"].map(|name| machine.domain(name));
    let ends = [0, 1].map(|n| {
        let name = format!("backend{n}");
        Backend::new(&machine, &name, domains[n].id(), Features::default())
    });
    let wire = Wire::start(ends);
    let [first, second] = domains;
    let guests = [Guest::new(first, &nets[0], 1, 1), Guest::new(second, &nets[1], 1, 2)];
    nets[1].run(|| {
        let done = Command::new("python3").args(["-c", LARGE]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    });
    let begun = Instant::now();
    while wire.tagged.lock().unwrap().len() < 20 {
        let many = wire.tagged.lock().unwrap().len();
        assert!(begun.elapsed() < PATIENCE, "{many} packets crossed");
        std::thread::yield_now();
    }
    let tagged = std::mem::take(&mut *wire.tagged.lock().unwrap());
    assert_eq!(tagged.len(), 20);
    let mut payload: Vec<u8> = Vec::new();
    for (packet, offload) in &tagged {
        assert_eq!(*offload, Offload { checksum: Checksum::Validated, ..Offload::default() });
        assert!(transport::Checksum::find(packet).unwrap().is_right(packet));
        payload.extend(&packet[58..]);
    }
    assert!(payload.iter().enumerate().all(|(n, byte)| *byte == (n * 7 % 256) as u8));
    assert_eq!(payload.len(), 20_000);
    guests.into_iter().for_each(Guest::end);
    wire.stop.store(true, Ordering::Relaxed);
    wire.thread.join().unwrap();
}

#[test]
fn a_namespace_that_there_is_not_is_named() {
    let name = "no-such-namespace-there-is";
    let error = Tap::open("eth0", &Namespace::Named(name.into()), 1).unwrap_err().to_string();
    assert!(error.contains(name), "{error}");
}
