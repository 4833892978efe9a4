//! Two kernels' networks through a queue: a TAP on the host's side, in a network namespace of its own,
//! and a guest that is another namespace behind another TAP.
//!
//! What crosses is what Linux's own TCP makes, with all that it leaves to others.
#![expect(unsafe_code, reason = "an interface gets its address by a request of the kernel's")]

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use netback::buffer::{Buffer, Pool};
use netback::connect::Features;
use netback::offload::Sums;
use netback::port::Port;
use netback::port::interface::Name;
use netback::port::memory::pair;
use netback::port::packet;
use netback::port::tap::{Offloads, Tap};
use netback::vnet;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use ring::packet::transport::Checksum as Place;
use ring::wire::netif::chain::{Checksum, Offload};
use ring::wire::netif::extra::{Gso, GsoProtocol};

use super::packets::Shape;
use super::scene::{Guest, PATIENCE, Scene, Setting, eventually};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 2);

/// Bytes that go each way.
const BYTES: usize = 24 << 20;

/// A thread in a network namespace of its own, which does as it is told.
struct Namespace {
    tell: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Namespace {
    /// `None` where there are none to be had, said loudly.
    fn new(test: &str) -> Option<Self> {
        if !testbed::skip::unless_root(test) {
            return None;
        }
        if !std::path::Path::new("/dev/net/tun").exists() {
            testbed::skip::because(test, "there is no /dev/net/tun; load the module tun");
            return None;
        }
        let (tell, told) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (made, is_made) = mpsc::channel();
        std::thread::spawn(move || {
            made.send(unshare(CloneFlags::CLONE_NEWNET)).unwrap();
            told.into_iter().for_each(|what| what());
        });
        if let Err(errno) = is_made.recv().unwrap() {
            testbed::skip::because(test, &format!("no network namespace is to be had: {errno}"));
            return None;
        }
        Some(Self { tell })
    }

    /// Does something there, and waits for it.
    fn within<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, is_done) = mpsc::channel();
        let what = move || drop(done.send(what()));
        self.tell.send(Box::new(what)).unwrap();
        is_done.recv_timeout(PATIENCE).expect("what was to be done in a namespace failed")
    }
}

/// Gives an interface an address in a network of 256.
fn set_address(name: &str, address: Ipv4Addr) {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    for (request, [a, b, c, d]) in [(0x8916, address.octets()), (0x891C, [255, 255, 255, 0])] {
        let mut bytes = [0_u8; 40];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[16..18].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        bytes[20..24].copy_from_slice(&[a, b, c, d]);
        // SAFETY: SIOCSIFADDR and SIOCSIFNETMASK read a `struct ifreq`, which has 40 bytes.
        let set = unsafe { libc::ioctl(socket.as_raw_fd(), request, bytes.as_mut_ptr()) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Removes an interface, as `ip link delete` does.
fn remove(name: &str) {
    let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
    let protocol = Some(SockProtocol::NetlinkRoute);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    let mut name = [name.as_bytes(), &[0]].concat();
    let attribute = u16::try_from(4 + name.len()).unwrap();
    name.resize(name.len().next_multiple_of(4), 0);
    // NLM_F_REQUEST and NLM_F_ACK; `struct ifinfomsg` says nothing; IFLA_IFNAME says which.
    let mut message = u32::try_from(36 + name.len()).unwrap().to_ne_bytes().to_vec();
    message.extend([libc::RTM_DELLINK, 5].map(u16::to_ne_bytes).as_flattened());
    message.extend([0; 8 + 16]);
    message.extend([attribute, libc::IFLA_IFNAME].map(u16::to_ne_bytes).as_flattened());
    message.extend(name);
    send(socket.as_raw_fd(), &message, MsgFlags::empty()).unwrap();
    let mut answer = [0; 256];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    assert_eq!(answer[16..20], [0; 4], "the kernel's error in {:?}", &answer[..len]);
}

fn tap(namespace: &Namespace, name: &'static str, address: Ipv4Addr, features: Features) -> Tap {
    namespace.within(move || {
        let tap = Tap::open(Name::new(name).unwrap(), 1).unwrap();
        tap.set_up(Some(1500)).unwrap();
        tap.serve(&Offloads::from(&features)).unwrap();
        set_address(name, address);
        tap
    })
}

/// What a guest says of a packet that its network left something of to others.
fn said(header: &vnet::Header) -> Offload {
    let checksum = match header.flags {
        vnet::flags::NEEDS_CSUM => Checksum::Blank,
        vnet::flags::DATA_VALID => Checksum::Validated,
        _ => Checksum::Unchecked,
    };
    let gso = match header.gso_type {
        vnet::gso::TCPV4 => Some(GsoProtocol::TcpV4),
        vnet::gso::TCPV6 => Some(GsoProtocol::TcpV6),
        _ => None,
    };
    let gso = gso.map(|protocol| Gso::new(protocol, header.gso_size));
    Offload { checksum, gso, hash: None }
}

/// What a guest's network is told of a packet that it receives.
fn told(packet: &[u8], offload: &Offload) -> vnet::Header {
    let mut header = vnet::Header::default();
    if offload.checksum == Checksum::Blank {
        let place = Place::find(packet).unwrap();
        header.flags = vnet::flags::NEEDS_CSUM;
        (header.csum_start, header.csum_offset) = (place.start as u16, place.offset as u16);
    }
    if let Some(gso) = offload.gso {
        header.gso_type = vnet::gso::TCPV4;
        (header.gso_size, header.hdr_len) = (gso.size, header.csum_start + 20);
    }
    header
}

/// Carries packets between a guest's rings and its network, until told to stop.
fn pump(guest: &mut Guest, port: &mut impl Port, stop: &AtomicBool) {
    let (mut pool, mut came) = (Pool::new(256), VecDeque::<Buffer>::new());
    while !stop.load(Ordering::Acquire) {
        let most = 32_usize.saturating_sub(came.len());
        let mut worked = port.turn(&mut pool, most, &mut came).unwrap().sent > 0;
        while let Some(buffer) = came.front() {
            if !guest.push(buffer.packet(), said(&buffer.header()), &[]) {
                break;
            }
            pool.put(came.pop_front().unwrap());
            worked = true;
        }
        guest.send_raw(&[]);
        guest.answers.clear();
        guest.post(256);
        while port.room() > 0
            && let Some((packet, offload)) = guest.receive_now()
        {
            let mut buffer = pool.take().unwrap();
            buffer.fill(&told(&packet, &offload), &packet);
            port.send(buffer);
            worked = true;
        }
        if !worked {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn bytes(seed: u8) -> Vec<u8> {
    (0..BYTES)
        .map(|n| (n as u8).wrapping_mul(31) ^ (n >> 8) as u8 ^ (n >> 16) as u8 ^ seed)
        .collect()
}

/// Sends all it has and gives what it is sent.
fn talk(mut stream: TcpStream, seed: u8) -> Vec<u8> {
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        writer.write_all(&bytes(seed)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    received
}

/// Has both ends talk over a queue for a guest with these features, and gives what the queue counted.
fn converse(test: &str, features: Features) -> Option<netback::stats::Snapshot> {
    let (host, inside) = (Namespace::new(test)?, Namespace::new(test)?);
    // Those of a TAP that takes all, as Linux's frontend does.
    let full = Setting::default().features;
    let outer = tap(&host, "vif1.0", HOST, features);
    let inner = tap(&inside, "eth0", GUEST, full);
    let scene = Scene::new();
    let (_, far) = pair(1).unwrap();
    let setting = Setting { features, ..Setting::default() };
    let (mut guest, served) = scene.serve_at(9, setting, far, outer.queue(0).unwrap());
    let stop = AtomicBool::new(false);
    let (accepted, answer) = (mpsc::channel(), mpsc::channel());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut port = inner.queue(0).unwrap()().unwrap();
            pump(&mut guest, &mut port, &stop);
        });
        let listener = inside.within(|| TcpListener::bind((GUEST, 7)).unwrap());
        let from_host = accepted.0.clone();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            from_host.send(talk(stream, 1)).unwrap();
        });
        let from_guest = answer.0.clone();
        host.within(move || {
            let to = SocketAddrV4::new(GUEST, 7).into();
            let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
            std::thread::spawn(move || from_guest.send(talk(stream, 2)).unwrap());
        });
        // Stopped whatever comes of it, so that a failure is one and not a hang.
        let received = (accepted.1.recv_timeout(PATIENCE), answer.1.recv_timeout(PATIENCE));
        stop.store(true, Ordering::Release);
        let (at_guest, at_host) = (received.0.expect("from host"), received.1.expect("from guest"));
        assert!(at_guest == bytes(2) && at_host == bytes(1), "other bytes than were sent");
    });
    let stats = served.stats();
    drop(served);
    Some(stats)
}

#[test]
fn linux_talks_through_a_queue_in_packets_of_many_segments() {
    let test = "linux_talks_through_a_queue_in_packets_of_many_segments";
    let Some(stats) = converse(test, Setting::default().features) else { return };
    assert!(stats.tx_gso > 0 && stats.rx_gso > 0, "{stats:?}");
    // Far larger than a page, on the whole.
    assert!(stats.tx_bytes / stats.tx_packets > 4096, "{stats:?}");
    assert_eq!((stats.rx_cut, stats.rx_summed), (0, 0));
}

#[test]
fn linux_talks_to_a_guest_that_does_nothing_itself() {
    let test = "linux_talks_to_a_guest_that_does_nothing_itself";
    let features = Features::new(Default::default(), Sums { v4: false, v6: false });
    let Some(stats) = converse(test, features) else { return };
    // The kernel does it in our stead.
    assert_eq!((stats.rx_gso, stats.rx_cut, stats.rx_summed), (0, 0, 0), "{stats:?}");
}

/// Sends a packet at one port and gives what comes of it at the other.
fn carry(
    (from, to): (&mut impl Port, &mut impl Port),
    pool: &mut Pool,
    (header, packet): (vnet::Header, &[u8]),
) -> (vnet::Header, Vec<u8>) {
    let (mut came, mut buffer) = (VecDeque::new(), pool.take().unwrap());
    buffer.fill(&header, packet);
    from.send(buffer);
    let turned = from.turn(pool, 0, &mut came).unwrap();
    assert_eq!((turned.sent, turned.lost), (1, 0));
    let mut found = None;
    eventually("a packet at the other port", || {
        to.turn(pool, 8, &mut came).unwrap();
        for buffer in came.drain(..) {
            // What the kernel itself has to say on a new interface is not ours.
            if buffer.packet().starts_with(&packet[..12]) {
                found = Some((buffer.header(), buffer.packet().to_vec()));
            }
            pool.put(buffer);
        }
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_packet_socket_has_what_its_interface_receives() {
    let test = "a_packet_socket_has_what_its_interface_receives";
    let Some(host) = Namespace::new(test) else { return };
    let full = Setting::default().features;
    let outer = tap(&host, "vif1.0", HOST, full);
    host.within(move || {
        let mut wire = outer.queue(0).unwrap()().unwrap();
        let mut socket = packet::open(&Name::new("vif1.0").unwrap()).unwrap();
        let mut pool = Pool::new(300);
        let shape = Shape { v6: false, tcp: true, payload: 20_000, seed: 9 };
        let mut packet = shape.bytes();
        let mut header = vnet::Header::default();
        Place::find(&packet).unwrap().leave_blank(&mut packet);
        header.flags = vnet::flags::NEEDS_CSUM;
        (header.csum_start, header.csum_offset) = (34, 16);
        // Its flags have CWR, which is not to be in every segment.
        header.gso_type = vnet::gso::TCPV4 | vnet::gso::ECN;
        (header.gso_size, header.hdr_len) = (1448, 54);
        let (said, came) = carry((&mut wire, &mut socket), &mut pool, (header, &packet));
        assert!(came == packet, "another packet than was received");
        assert_eq!((said.gso_type, said.gso_size), (header.gso_type, 1448));
        assert_eq!((said.flags, said.csum_start, said.csum_offset), (1, 34, 16));
        // The other way, whole: the TAP was told that we take it so, if not with CWR.
        packet[47] &= 0x7F;
        Place::find(&packet).unwrap().leave_blank(&mut packet);
        header.gso_type = vnet::gso::TCPV4;
        let (said, came) = carry((&mut socket, &mut wire), &mut pool, (header, &packet));
        assert!(came == packet, "another packet than was sent");
        assert_eq!((said.gso_type, said.gso_size, said.flags), (vnet::gso::TCPV4, 1448, 1));
        // Nothing is left of what was lent but what the kernel is to fill next.
        assert!(pool.available() >= 300 - 4, "{}", pool.available());
    });
}

#[test]
fn a_packet_socket_has_nothing_of_other_networks() {
    let test = "a_packet_socket_has_nothing_of_other_networks";
    let Some(host) = Namespace::new(test) else { return };
    let outer = tap(&host, "vif1.0", HOST, Setting::default().features);
    host.within(move || {
        let mut wire = outer.queue(0).unwrap()().unwrap();
        let mut socket = packet::open(&Name::new("vif1.0").unwrap()).unwrap();
        let (mut pool, mut came) = (Pool::new(300), VecDeque::new());
        let shape = Shape { v6: false, tcp: false, payload: 100, seed: 9 };
        let plain = shape.bytes();
        let mut tagged = Shape { payload: 200, ..shape }.bytes();
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        for packet in [&tagged, &plain] {
            let mut buffer = pool.take().unwrap();
            buffer.fill(&vnet::Header::default(), packet);
            wire.send(buffer);
        }
        assert_eq!(wire.turn(&mut pool, 0, &mut came).unwrap().sent, 2);
        let mut first = None;
        eventually("a packet at the socket", || {
            socket.turn(&mut pool, 8, &mut came).unwrap();
            let ours = |buffer: &Buffer| buffer.packet().starts_with(&plain[..12]);
            first = came.iter().find(|buffer| ours(buffer)).map(|buffer| buffer.packet().to_vec());
            first.is_some()
        });
        assert_eq!(first.unwrap(), plain);
    });
}

#[test]
fn an_interface_that_is_gone_ends_the_queue() {
    let test = "an_interface_that_is_gone_ends_the_queue";
    let Some(host) = Namespace::new(test) else { return };
    let outer = tap(&host, "vif1.0", HOST, Setting::default().features);
    let (scene, (_, far)) = (Scene::new(), pair(1).unwrap());
    let (_guest, served) = scene.serve_at(0, Setting::default(), far, outer.queue(0).unwrap());
    served.until("it sleeps", |stats| stats.sleeps > 0);
    let refused = host.within(move || {
        // More queues of it, and what its guest does not do, said to all of them at once.
        let more = Tap::open(Name::new("vif1.0").unwrap(), 3).unwrap();
        more.serve(&Offloads::default()).unwrap();
        more.set_carrier(false).unwrap();
        assert!(more.queue(2).is_some() && more.queue(3).is_none());
        outer.join(&Name::new("no-bridge").unwrap())
    });
    assert_eq!(refused.map_err(|error| error.errno), Err(libc::ENODEV));
    host.within(|| remove("vif1.0"));
    assert!(matches!(served.ended(), netback::queue::Ended::Failed(_)));
}
