//! netback killed with SIGKILL under its guests, again and again: packets may be lost, and nothing else.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use hypervisor::DomId;
use hypervisor::xenbus::State;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testbed::lan::{BRIDGE, Lan};
use testbed::libxl::{Device, Libxl, VifSpec};
use testbed::network::{Namespace, unless_here, v4};
use testbed::scene::{Process, until};

/// As many kills each way where nothing else is said.
const KILLS: usize = 50;

/// Bytes that are written and compared at a time.
const PIECE: usize = 1 << 16;

/// How many times to kill: as `KILLS` in the environment has it.
fn many() -> usize {
    std::env::var("KILLS").ok().and_then(|many| many.parse().ok()).unwrap_or(KILLS)
}

/// A stream of bytes of which each eight say where in it they are, so that none can be lost, doubled or changed.
fn fill(piece: &mut [u8], at: u64) {
    for (n, chunk) in piece.chunks_mut(8).enumerate() {
        let word = (at + n as u64 * 8).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

/// Two streams, one each way, between a guest and its host.
struct Streams {
    stop: Arc<AtomicBool>,
    /// Bytes that came and were compared.
    came: [Arc<AtomicU64>; 2],
    threads: Vec<JoinHandle<u64>>,
}

impl Streams {
    fn begin(host: &Namespace, guest: &Namespace) -> Self {
        let address = v4(1);
        let listener = host.enter(|| Ok(TcpListener::bind((address.as_str(), 7000))?)).unwrap();
        let connect = || guest.enter(|| Ok(TcpStream::connect((address.as_str(), 7000))?));
        let stop = Arc::new(AtomicBool::new(false));
        let came: [Arc<AtomicU64>; 2] = Default::default();
        let mut threads = Vec::new();
        for (way, came) in came.iter().enumerate() {
            let (far, near) = (connect().unwrap(), listener.accept().unwrap().0);
            let (from, to) = if way == 0 { (far, near) } else { (near, far) };
            for end in [&from, &to] {
                // Longer than anything that is waited for here.
                end.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
                end.set_write_timeout(Some(Duration::from_secs(100))).unwrap();
            }
            let stop = Arc::clone(&stop);
            threads.push(spawn(move || send(from, &stop)));
            let came = Arc::clone(came);
            threads.push(spawn(move || receive(to, &came)));
        }
        Self { stop, came, threads }
    }

    /// Waits until more has come both ways.
    fn flow(&self, what: &str) {
        let before = self.came.each_ref().map(|came| came.load(Ordering::Relaxed));
        until(what, || {
            let now = self.came.each_ref().map(|came| came.load(Ordering::Relaxed));
            Ok(now.iter().zip(before).all(|(now, before)| *now > before + 100_000))
        })
        .unwrap();
    }

    /// Ends them, and says how many bytes went which way.
    fn end(self) -> [u64; 2] {
        self.stop.store(true, Ordering::Relaxed);
        let ended: Vec<u64> = self.threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!((ended[0], ended[2]), (ended[1], ended[3]), "what was sent and what came");
        [ended[0], ended[2]]
    }
}

fn send(mut to: TcpStream, stop: &AtomicBool) -> u64 {
    let (mut piece, mut at) = (vec![0; PIECE], 0);
    while !stop.load(Ordering::Relaxed) {
        fill(&mut piece, at);
        to.write_all(&piece).unwrap();
        at += PIECE as u64;
    }
    to.shutdown(Shutdown::Write).unwrap();
    at
}

fn receive(mut from: TcpStream, came: &AtomicU64) -> u64 {
    let (mut piece, mut expected, mut at) = (vec![0; PIECE], vec![0; PIECE], 0);
    loop {
        match from.read_exact(&mut piece) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return at,
            Err(error) => panic!("after {at} bytes: {error}"),
        }
        fill(&mut expected, at);
        assert!(piece == expected, "other bytes within {PIECE} of {at}");
        at += PIECE as u64;
        came.store(at, Ordering::Relaxed);
    }
}

/// Prints how long the pauses were, in milliseconds.
fn print(what: &str, mut pauses: Vec<u64>, bytes: [u64; 2]) {
    pauses.sort_unstable();
    let at = |percent: usize| pauses[(pauses.len() - 1) * percent / 100];
    println!(
        "{what}: {} times; nobody served for {} ms (median), {} ms (90 %), {} ms (longest); {} MB went to the host \
         and {} MB to the guest, as they were",
        pauses.len(),
        at(50),
        at(90),
        at(100),
        bytes[0] / 1_000_000,
        bytes[1] / 1_000_000
    );
}

/// A host whose watcher serves a guest.
struct Stage {
    lan: Lan,
    watch: Process,
    libxl: Libxl,
    netfront: Process,
    namespace: Namespace,
    vif: Device,
}

impl Stage {
    fn new(name: &str) -> Self {
        let lan = Lan::new(name).unwrap();
        let watch = lan.netback(&["--watch"]).unwrap();
        let libxl = Libxl::new(lan.scene.place().join("xenstored.sock")).unwrap();
        let me = libxl.domain("netback").unwrap();
        let namespace = Namespace::new().unwrap();
        let arguments = ["--timeout", "110", "tap", "--netns", namespace.name()];
        let mut netfront = lan.scene.start("netfront", "netfront", arguments).unwrap();
        let guest: DomId = libxl.domain("guest").unwrap();
        let bridge = Some(BRIDGE.to_owned());
        let vif = VifSpec { bridge, ..VifSpec::new("00:16:3e:0a:0b:0c") };
        let vif = libxl.make_vif(me, guest, &vif).unwrap();
        netfront.line_with("is eth0").unwrap();
        namespace.until_up("eth0").unwrap();
        namespace.address("eth0", 2).unwrap();
        namespace.until_answered(&v4(1), 56).unwrap();
        Self { lan, watch, libxl, netfront, namespace, vif }
    }

    fn device(&self) -> Value {
        self.lan.ctl(&["list"]).unwrap()[0].clone()
    }

    /// Kills whoever serves and waits for the next; says for how long nobody did.
    fn kill(&self) -> u64 {
        let pid = self.device()["pid"].as_i64().unwrap();
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        let mut device = Value::Null;
        until("another serves", || {
            device = self.device();
            Ok(device["pid"].is_i64() && device["pid"] != pid && device["resumed"] == 1)
        })
        .unwrap();
        device["pause_ms"].as_u64().unwrap()
    }
}

#[test]
fn tcp_comes_through_fifty_kills_as_it_was_sent() {
    if !unless_here("tcp_comes_through_fifty_kills_as_it_was_sent") {
        return;
    }
    let stage = Stage::new("netkill");
    let streams = Streams::begin(&stage.lan.host, &stage.namespace);
    let mut pauses = Vec::new();
    for round in 0..many() {
        streams.flow("bytes flow both ways");
        // Not always at the same place.
        std::thread::sleep(Duration::from_micros((round as u64 * 7919) % 20_000));
        pauses.push(stage.kill());
        for end in [&stage.vif.back, &stage.vif.front] {
            assert_eq!(stage.libxl.state(end).unwrap(), State::Connected, "{end}");
        }
    }
    streams.flow("bytes flow after the last");
    print("netback, by its watcher", pauses, streams.end());
    assert!(!stage.netfront.written().contains("gone"), "{}", stage.netfront.written());
    stage.libxl.destroy(&stage.vif).unwrap();
    drop(stage.netfront);
    stage.watch.end().unwrap();
    stage.lan.end().unwrap();
}

#[test]
fn tcp_comes_through_upgrades_as_it_was_sent() {
    if !unless_here("tcp_comes_through_upgrades_as_it_was_sent") {
        return;
    }
    let mut stage = Stage::new("netup");
    let streams = Streams::begin(&stage.lan.host, &stage.namespace);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        streams.flow("bytes flow both ways");
        let pid = stage.device()["pid"].clone();
        let next = stage.lan.netback(&["--watch", "--takeover"]).unwrap();
        let mut device = Value::Null;
        until("another serves", || {
            device = stage.device();
            Ok(device["pid"].is_i64() && device["pid"] != pid && device["resumed"] == 1)
        })
        .unwrap();
        pauses.push(device["pause_ms"].as_u64().unwrap());
        let mut old = std::mem::replace(&mut stage.watch, next);
        assert!(old.ended().unwrap().success(), "{}", old.written());
    }
    // One that leaves its interface to its watcher, and its limits with it.
    stage.lan.ctl(&["limits", "--tx", "2000Mb/s"]).unwrap();
    let limits = stage.device()["limits"].clone();
    let pid = stage.device()["pid"].clone();
    stage.lan.ctl(&["handover"]).unwrap();
    until("another serves", || Ok(stage.device()["resumed"] == 1 && stage.device()["pid"] != pid))
        .unwrap();
    assert_eq!(stage.device()["limits"], limits);
    streams.flow("bytes flow after the last");
    print("netback, upgraded", pauses, streams.end());
    stage.libxl.destroy(&stage.vif).unwrap();
    drop(stage.netfront);
    stage.watch.end().unwrap();
    stage.lan.end().unwrap();
}

#[test]
fn an_interface_of_ones_own_is_taken_over() {
    if !unless_here("an_interface_of_ones_own_is_taken_over") {
        return;
    }
    let mut lan = Lan::new("netown").unwrap();
    lan.guest(&[], &[]).unwrap();
    lan.guests[0].namespace.until_answered(&v4(1), 56).unwrap();
    let streams = Streams::begin(&lan.host, &lan.guests[0].namespace);
    let mut pauses = Vec::new();
    for _ in 0..5 {
        streams.flow("bytes flow both ways");
        let mut next =
            lan.netback(&["--bridge", BRIDGE, "--domain", "guest2", "--takeover"]).unwrap();
        until("it serves", || Ok(lan.ctl(&["list"])?[0]["resumed"] == 1)).unwrap();
        let device = lan.ctl(&["list"]).unwrap()[0].clone();
        assert_eq!(device["bridge"], BRIDGE);
        pauses.push(device["pause_ms"].as_u64().unwrap());
        std::mem::swap(&mut lan.guests[0].netback, &mut next);
        assert!(next.ended().unwrap().success(), "{}", next.written());
    }
    streams.flow("bytes flow after the last");
    print("netback of one's own, upgraded", pauses, streams.end());
    lan.end().unwrap();
}
