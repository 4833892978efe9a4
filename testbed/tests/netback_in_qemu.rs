//! netback over vhost-user: a stock kernel's virtio driver in QEMU, on a bridge in a network namespace.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;
use testbed::network::{self, Namespace, v4, v6};
use testbed::packages::{self, BUSYBOX, IPERF3, QEMU};
use testbed::scene::{Process, Scene};
use testbed::{skip, vm};

/// The host's bridge, and the machine's address.
const BRIDGE: &str = "br0";
const MAC: &str = "52:54:00:00:00:02";
/// How long a machine may take for anything: it is emulated.
const PATIENCE: Duration = Duration::from_secs(300);

/// A host with a bridge, and the netback of one machine on it.
struct Host {
    scene: Scene,
    network: Namespace,
    options: Vec<String>,
    netback: Option<Process>,
}

impl Host {
    fn new(name: &str, options: &[&str]) -> Self {
        let (scene, network) = (Scene::new(name).unwrap(), Namespace::new().unwrap());
        network.bridge(BRIDGE).unwrap();
        network.address(BRIDGE, 1).unwrap();
        let options = options.iter().copied().map(str::to_owned).collect();
        let mut host = Self { scene, network, options, netback: None };
        host.start();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.folder().join(name)
    }

    fn start(&mut self) {
        let (socket, control) = (self.path("net.sock"), self.path("ctl.sock"));
        let mut arguments: Vec<String> =
            ["--bridge", BRIDGE, "--mac", MAC, "--queues", "2"].map(str::to_owned).to_vec();
        for (option, path) in [("--vhost-user", socket), ("--control", control)] {
            arguments.extend([option.to_owned(), path.display().to_string()]);
        }
        arguments.extend(self.options.iter().cloned());
        let mut netback = self.network.start(&self.scene, "netback", arguments).unwrap();
        netback.line_with("ready").unwrap();
        self.netback = Some(netback);
    }

    fn kill(&mut self) {
        self.netback.take().unwrap().kill().unwrap();
    }

    fn ctl(&self, what: &[&str]) -> Value {
        let control = self.path("ctl.sock").display().to_string();
        let arguments = [&["ctl", "--json", "--control", &control], what].concat();
        let said = self.scene.succeed("netback", "netback", arguments).unwrap();
        serde_json::from_str(&said).unwrap()
    }

    fn counted(&self, pointer: &str) -> u64 {
        self.ctl(&["counters"])
            .pointer(&format!("/ever/{pointer}"))
            .and_then(Value::as_u64)
            .unwrap_or(0)
    }

    /// A machine on the bridge that runs `script`, with further options for its device.
    fn machine(&self, script: &str, device: &str) -> vm::Machine {
        let (two, six) = (v4(2), v6(2));
        let set_up = format!(
            "export PATH=$PATH:/usr/bin\n\
             say() {{ echo \"$*\"; echo \"$*\" >/dev/ttyS1; }}\n\
             echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad\n\
             ip addr add {two}/24 dev eth0\n\
             ip -6 addr add {six}/64 dev eth0\n\
             ip link set eth0 up\n"
        );
        let mut machine = vm::Machine::new(set_up + script);
        machine.modules = ["virtio_pci", "virtio_net"].map(str::to_owned).to_vec();
        let iperf3 = packages::find(IPERF3).unwrap();
        machine.files = vm::with_libraries(&iperf3).unwrap();
        machine.share_memory();
        let socket = self.path("net.sock").display().to_string();
        let line = self.path("line").display().to_string();
        for (option, value) in [
            ("-serial", format!("file:{line}")),
            ("-chardev", format!("socket,id=net,path={socket},reconnect=1")),
            ("-netdev", "vhost-user,id=net,chardev=net,queues=2".to_owned()),
            // QEMU (7.2) dies of message interrupts with this kind of device where it emulates the processor.
            ("-device", format!("virtio-net-pci,netdev=net,mac={MAC},mq=on,vectors=0{device}")),
        ] {
            machine.arguments.extend([option.to_owned(), value]);
        }
        machine
    }

    /// Has a machine run.
    fn run(&self, machine: vm::Machine) -> Running {
        let thread = Some(thread::spawn(move || machine.run()));
        Running { line: self.path("line"), thread }
    }
}

/// A machine that runs.
struct Running {
    line: PathBuf,
    thread: Option<JoinHandle<Result<String>>>,
}

impl Running {
    /// Waits until it has said that.
    fn until_said(&mut self, what: &str) {
        let begun = Instant::now();
        loop {
            let said = fs::read_to_string(&self.line).unwrap_or_default();
            if said.lines().any(|said| said.trim() == what) {
                return;
            }
            let over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if over || begun.elapsed() > PATIENCE {
                let ended = over.then(|| self.thread.take().map(JoinHandle::join));
                panic!("never said: {what}; said: {said}; {ended:?}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What it printed, once it is over.
    fn printed(mut self) -> String {
        self.thread.take().unwrap().join().unwrap().unwrap()
    }
}

fn possible(test: &str) -> bool {
    skip::unless_installed(test, &[QEMU, BUSYBOX]) && network::unless_here(test)
}

#[test]
fn a_stock_kernel_speaks_with_the_bridge() {
    if !possible("a virtio interface in QEMU") {
        return;
    }
    let host = Host::new("qemu", &["--mtu", "9000"]);
    let _server = host.network.iperf3_server(&host.scene).unwrap();
    let script = r#"
cd /sys/class/net/eth0
echo "mtu: $(cat mtu)"
echo "queues: $(ls queues | tr '\n' ' ')"
cd /
ping -c 3 -s 8000 10.77.0.1 >/dev/null && echo "v4 answers"
ping -6 -c 3 fd77::1 >/dev/null && echo "v6 answers"
say ready
for how in "" "-R" "-P 4" "-6" "-6 -R" "-u -b 50M -l 1400" "-u -b 50M -R"; do
    host=10.77.0.1
    case "$how" in *-6*) host=fd77::1;; esac
    iperf3 -c $host -t 1 $how >/tmp/report 2>&1 && echo "iperf3 $how: well" || cat /tmp/report
done
"#;
    let machine = host.machine(script, ",host_mtu=9000");
    let mut running = host.run(machine);
    running.until_said("ready");
    // Both pairs are used, and the largest packets pass in one piece.
    assert_eq!(host.ctl(&["list"])[0]["queues"], 2);
    host.network.until_answered(&v4(2), 8972).unwrap();
    let printed = running.printed();
    for line in [
        "mtu: 9000",
        "queues: rx-0 rx-1 tx-0 tx-1 ",
        "v4 answers",
        "v6 answers",
        "iperf3 : well",
        "iperf3 -R: well",
        "iperf3 -P 4: well",
        "iperf3 -6: well",
        "iperf3 -6 -R: well",
        "iperf3 -u -b 50M -l 1400: well",
        "iperf3 -u -b 50M -R: well",
    ] {
        assert!(printed.lines().any(|said| said == line), "no '{line}': {printed}");
    }
    // TCP goes in pieces that are much larger than a packet, both ways.
    for counter in ["tx_gso", "rx_gso", "tx_packets", "rx_packets"] {
        assert!(host.counted(counter) > 0, "{counter}: {}", host.ctl(&["counters"]));
    }
    for loss in ["segments", "checksum_place", "port", "source", "port_header"] {
        assert_eq!(host.counted(&format!("lost/{loss}")), 0, "{loss}");
    }
    let mean = host.counted("tx_bytes") / host.counted("tx_packets");
    assert!(mean > 1500, "{mean} bytes in a packet that was sent");
}

#[test]
fn a_machine_sees_its_link_and_may_be_nobody_else() {
    if !possible("the link of a machine in QEMU") {
        return;
    }
    let host = Host::new("link", &[]);
    let script = r#"
until ping -c 1 -W 2 10.77.0.1 >/dev/null; do sleep 1; done
say ready
until [ "$(cat /sys/class/net/eth0/carrier)" = 0 ]; do sleep 1; done
say down
until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 1; done
until ping -c 1 -W 2 10.77.0.1 >/dev/null; do sleep 1; done
say up
ip link set eth0 down
ip link set eth0 address 52:54:00:00:00:99
ip link set eth0 up
ping -c 3 -W 1 10.77.0.1 >/dev/null && echo "somebody else answers" || echo "nobody answers a forger"
"#;
    let machine = host.machine(script, "");
    let mut running = host.run(machine);
    running.until_said("ready");
    assert_eq!(host.ctl(&["link", "down"]), Value::Bool(false));
    running.until_said("down");
    assert_eq!(host.ctl(&["link", "up"]), Value::Bool(true));
    running.until_said("up");
    let printed = running.printed();
    assert!(printed.contains("nobody answers a forger"), "{printed}");
    assert!(host.counted("lost/source") > 0, "{}", host.ctl(&["counters"]));
}

/// Bytes that the machine is sent, and that it sends.
const THERE: usize = 64 << 20;
const BACK: usize = 16 << 20;

#[test]
fn a_machine_goes_on_while_its_backend_is_killed() {
    if !possible("a network backend that is killed under QEMU") {
        return;
    }
    let mut host = Host::new("kill", &[]);
    let listener = host.network.enter(|| Ok(TcpListener::bind("10.77.0.1:7000")?)).unwrap();
    let script = format!(
        "yes domkit | head -c {BACK} >/tmp/noise\n\
         until ping -c 1 -W 2 10.77.0.1 >/dev/null; do sleep 1; done\n\
         say ready\n\
         nc 10.77.0.1 7000 </tmp/noise | sha256sum\n"
    );
    let machine = host.machine(&script, "");
    let mut running = host.run(machine);
    running.until_said("ready");
    let (mut stream, _) = listener.accept().unwrap();
    let mut reading = stream.try_clone().unwrap();
    let back = thread::spawn(move || {
        let mut bytes = vec![0; BACK];
        reading.read_exact(&mut bytes).map(|()| bytes)
    });
    let chunk: Vec<u8> =
        (0..1_u32 << 18).flat_map(|n| n.wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
    let mut sum =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut into = sum.stdin.take().unwrap();
    for n in 0..THERE / chunk.len() {
        into.write_all(&chunk).unwrap();
        stream.write_all(&chunk).unwrap();
        // Whatever is in buffers is on its way.
        if n % 12 == 6 {
            host.kill();
            thread::sleep(Duration::from_millis(200));
            host.start();
        }
    }
    drop(into);
    // Its program may end as soon as nothing more comes.
    let bytes = back.join().unwrap().unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let printed = running.printed();
    let wanted = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    let wanted = wanted.split_whitespace().next().unwrap();
    assert!(printed.contains(wanted), "not {wanted}: {printed}");
    assert!(
        bytes.chunks(7).all(|word| b"domkit\n".starts_with(word)),
        "the machine's bytes differ"
    );
    let connections = host.ctl(&["list"])[0]["connections"].as_u64();
    assert!(connections > Some(0), "{}", host.ctl(&["list"]));
}
