//! Guests with interfaces that a `netback` on a bridge serves, and what crosses: what stock programs send.

use serde_json::Value;
use testbed::network::{Namespace, unless_here, v4, v6};
use testbed::scene::{Process, Scene};

/// A host with a bridge, and guests on it.
struct Lan {
    scene: Scene,
    hypervisor: Process,
    host: Namespace,
    guests: Vec<Guest>,
}

/// A guest, and who serves it.
struct Guest {
    netback: Process,
    netfront: Process,
    namespace: Namespace,
    number: u8,
}

impl Lan {
    fn new(name: &str) -> Self {
        let scene = Scene::new(name).unwrap();
        let hypervisor = scene.hypervisor().unwrap();
        let host = Namespace::new().unwrap();
        host.bridge("br0").unwrap();
        host.address("br0", 1).unwrap();
        Self { scene, hypervisor, host, guests: Vec::new() }
    }

    /// One more guest, with further options for its netback and its netfront.
    fn guest(&mut self, back: &[&str], front: &[&str]) {
        let number = u8::try_from(self.guests.len()).unwrap() + 2;
        let name = format!("guest{number}");
        let arguments = [&["--bridge", "br0", "--domain", &name], back].concat();
        let mut netback = self.host.start(&self.scene, "netback", arguments).unwrap();
        netback.line_with("ready:").unwrap();
        let namespace = Namespace::new().unwrap();
        let arguments = ["--domain-name", &name, "tap", "--netns", namespace.name()];
        let arguments = [&arguments[..], front].concat();
        let mut netfront = self.scene.start("netfront", "netfront", arguments).unwrap();
        netfront.line_with("is eth0").unwrap();
        namespace.until_up("eth0").unwrap();
        namespace.address("eth0", number).unwrap();
        self.guests.push(Guest { netback, netfront, namespace, number });
    }

    fn end(self) {
        for guest in self.guests {
            guest.netfront.end().unwrap();
            guest.netback.end().unwrap();
        }
        self.hypervisor.end().unwrap();
    }
}

impl Guest {
    fn v4(&self) -> String {
        v4(self.number)
    }

    fn v6(&self) -> String {
        v6(self.number)
    }
}

/// Bytes of one end of a report.
fn bytes(report: &Value, end: &str) -> u64 {
    report[end]["bytes"].as_u64().unwrap_or_else(|| panic!("{report}"))
}

/// Sends each way by TCP and UDP, in pieces of `piece` bytes for UDP.
fn exchange(from: &Namespace, address: &str, piece: &str) {
    for way in [&[][..], &["-R"]] {
        let tcp = from.iperf3(address, &[&["-n", "24M"], way].concat()).unwrap();
        // The receiver counts until the sender is done, which may be ahead by what is on its way.
        let (sent, received) = (bytes(&tcp, "sum_sent"), bytes(&tcp, "sum_received"));
        assert!(sent >= 24 << 20 && received > sent / 2, "{tcp}");
        let udp = ["-u", "-b", "100M", "-n", "2M", "-l", piece];
        let udp = from.iperf3(address, &[&udp, way].concat()).unwrap();
        let of = |key: &str| udp["sum"][key].as_u64().unwrap_or_else(|| panic!("{udp}"));
        assert!(of("packets") > of("lost_packets"), "{udp}");
    }
}

#[test]
fn large_frames_and_many_queues() {
    if !unless_here("large_frames_and_many_queues") {
        return;
    }
    let mut lan = Lan::new("jumbo");
    lan.guest(&["--mtu", "9000", "--queues", "3"], &["--queues", "3"]);
    lan.guest(&["--mtu", "9000"], &[]);
    lan.host.ip(["link", "set", "br0", "mtu", "9000"]).unwrap();
    let [one, two] = &lan.guests[..] else { panic!() };
    assert_eq!(one.namespace.link("eth0").unwrap()["mtu"], 9000);
    for address in [v4(1), v6(1), two.v4(), two.v6()] {
        one.namespace.until_answered(&address, 8900).unwrap();
    }
    let server = lan.host.iperf3_server(&lan.scene).unwrap();
    exchange(&one.namespace, &v4(1), "8900");
    let many = one.namespace.iperf3(&v6(1), &["-n", "24M", "-P", "6"]).unwrap();
    assert!(bytes(&many, "sum_received") > 0, "{many}");
    drop(server);
    let said = lan.scene.succeed(
        "netback",
        "netback",
        ["ctl", "counters", "--json", "--domain", "guest2"],
    );
    let counters: Value = serde_json::from_str(&said.unwrap()).unwrap();
    let queues = counters["queues"].as_array().unwrap();
    assert_eq!(queues.len(), 3, "{counters}");
    // Large pieces cross in one: far fewer packets than segments.
    let total = &counters["total"];
    assert!(total["tx_gso"].as_u64() > Some(0) && total["rx_gso"].as_u64() > Some(0), "{total}");
    assert!(total["lost"].as_object().unwrap().is_empty(), "{total}");
    lan.end();
}

#[test]
fn two_guests_and_the_host_reach_each_other_over_a_bridge() {
    if !unless_here("two_guests_and_the_host_reach_each_other_over_a_bridge") {
        return;
    }
    let mut lan = Lan::new("lan");
    lan.guest(&[], &[]);
    lan.guest(&[], &[]);
    let [one, two] = &lan.guests[..] else { panic!() };
    for address in [v4(1), v6(1), two.v4(), two.v6()] {
        for bytes in [0, 56, 1400] {
            one.namespace.until_answered(&address, bytes).unwrap();
        }
    }
    lan.host.until_answered(&two.v4(), 1472).unwrap();
    assert!(!lan.host.ping(&two.v4(), 1473).unwrap(), "more than the MTU in one piece");
    let servers = [&lan.host, &two.namespace].map(|at| at.iperf3_server(&lan.scene).unwrap());
    exchange(&one.namespace, &v4(1), "1400");
    exchange(&one.namespace, &two.v6(), "1400");
    drop(servers);
    lan.end();
}
