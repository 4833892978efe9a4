//! Guests with interfaces that a `netback` on a bridge serves, and what crosses: what stock programs send.

use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::lan::Lan;
use testbed::network::{Namespace, unless_here, v4, v6};
use testbed::packages::{self, BUSYBOX};
use testbed::scene::{to_its_end, until};
use testbed::skip;

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
fn two_guests_and_the_host_reach_each_other_over_a_bridge() {
    if !unless_here("two_guests_and_the_host_reach_each_other_over_a_bridge") {
        return;
    }
    let mut lan = Lan::new("lan").unwrap();
    lan.guest(&[], &[]).unwrap();
    lan.guest(&[], &[]).unwrap();
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
    lan.end().unwrap();
}

#[test]
fn large_frames_and_many_queues() {
    if !unless_here("large_frames_and_many_queues") {
        return;
    }
    let mut lan = Lan::new("jumbo").unwrap();
    lan.guest(&["--mtu", "9000", "--queues", "3"], &["--queues", "3"]).unwrap();
    lan.guest(&["--mtu", "9000"], &[]).unwrap();
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
    let counters = lan.ctl(&["counters", "--domain", "guest2"]).unwrap();
    assert_eq!(counters["queues"].as_array().unwrap().len(), 3, "{counters}");
    // Large pieces cross in one.
    let total = &counters["total"];
    assert!(total["tx_gso"].as_u64() > Some(0) && total["rx_gso"].as_u64() > Some(0), "{total}");
    assert!(total["lost"].as_object().unwrap().is_empty(), "{total}");
    lan.end().unwrap();
}

#[test]
fn rates_are_held_each_way_and_changed_meanwhile() {
    if !unless_here("rates_are_held_each_way_and_changed_meanwhile") {
        return;
    }
    let mut lan = Lan::new("rate").unwrap();
    lan.guest(&["--rate", "20Mb/s", "--rate-rx", "40Mb/s"], &[]).unwrap();
    let server = lan.host.iperf3_server(&lan.scene).unwrap();
    let guest = &lan.guests[0].namespace;
    guest.until_answered(&v4(1), 56).unwrap();
    let limits = lan.ctl(&["limits"]).unwrap();
    assert_eq!((&limits["tx"], &limits["rx"]), (&2_500_000.into(), &5_000_000.into()));
    for (way, rate, counter) in [(&[][..], 20e6, "tx_held"), (&["-R"], 40e6, "rx_held")] {
        let report = guest.iperf3(&v4(1), &[&["-n", "4M"], way].concat()).unwrap();
        // However slow the machine is, it is never faster; a burst may be had at once.
        let speed = report["sum_received"]["bits_per_second"].as_f64().unwrap();
        assert!(speed < rate * 1.5, "{report}");
        assert!(lan.counted("guest2", counter).unwrap() > 0, "{counter}");
    }
    let limits = lan.ctl(&["limits", "--tx", "0", "--rx", "0"]).unwrap();
    assert!(limits["tx"].is_null() && limits["rx"].is_null(), "{limits}");
    let held = || ["tx_held", "rx_held"].map(|held| lan.counted("guest2", held).unwrap());
    let before = held();
    for way in [&[][..], &["-R"]] {
        guest.iperf3(&v4(1), &[&["-n", "8M"], way].concat()).unwrap();
    }
    assert_eq!(held(), before, "nothing is held without a limit");
    for wrong in ["fast", "10", "10Mb/s@0ms"] {
        let refused = lan.ctl(&["limits", "--tx", wrong]).unwrap_err().to_string();
        assert!(refused.contains("give a speed"), "{refused}");
    }
    drop(server);
    lan.end().unwrap();
}

#[test]
fn who_sends_as_somebody_else_is_not_heard_but_counted() {
    if !unless_here("who_sends_as_somebody_else_is_not_heard_but_counted") {
        return;
    }
    let mut lan = Lan::new("spoof").unwrap();
    lan.guest(&["--allow-ip", &v4(2), "--allow-ip", &v6(2)], &[]).unwrap();
    lan.guest(&["--allow-mac", "any"], &[]).unwrap();
    let [held, free] = &lan.guests[..] else { panic!() };
    let lost = |guest: &str| lan.counted(guest, "lost/source").unwrap();
    for guest in [held, free] {
        guest.namespace.until_answered(&v4(1), 56).unwrap();
        guest.namespace.until_answered(&v6(1), 56).unwrap();
    }
    // Its own link-local address is none of those it may use.
    let before = lost("guest3");
    assert_eq!(before, 0);
    let set = |namespace: &Namespace, what: &[&str]| {
        namespace.ip(what.iter().copied()).unwrap();
    };
    // Another IP address.
    let before = lost("guest2");
    set(&held.namespace, &["addr", "add", "10.77.0.66/32", "dev", "eth0"]);
    set(&held.namespace, &["route", "add", "10.77.0.1", "dev", "eth0", "src", "10.77.0.66"]);
    until("what it sends from there is counted", || {
        assert!(!held.namespace.ping(&v4(1), 56)?);
        Ok(lan.counted("guest2", "lost/source")? > before)
    })
    .unwrap();
    set(&held.namespace, &["route", "del", "10.77.0.1"]);
    held.namespace.until_answered(&v4(1), 56).unwrap();
    // Another Ethernet address: for one this is forbidden, and the other may.
    for guest in [held, free] {
        let mac = format!("02:00:00:00:00:{:02x}", guest.number);
        set(&guest.namespace, &["link", "set", "eth0", "address", &mac]);
    }
    // Who asks the host anew is known to it by the new one.
    for namespace in [&lan.host, &held.namespace, &free.namespace] {
        set(namespace, &["neigh", "flush", "all"]);
    }
    let before = lost("guest2");
    until("what it sends as that is counted", || {
        assert!(!held.namespace.ping(&v4(1), 56)?);
        Ok(lan.counted("guest2", "lost/source")? > before)
    })
    .unwrap();
    free.namespace.until_answered(&v4(1), 56).unwrap();
    assert_eq!(lost("guest3"), 0);
    lan.end().unwrap();
}

#[test]
fn what_passes_is_written_down() {
    if !unless_here("what_passes_is_written_down") {
        return;
    }
    let mut lan = Lan::new("pcap").unwrap();
    let file = lan.scene.folder().join("guest.pcap");
    let path = file.display().to_string();
    lan.guest(&["--pcap", &path, "--queues", "4"], &["--queues", "4"]).unwrap();
    let guest = &lan.guests[0].namespace;
    guest.until_answered(&v4(1), 600).unwrap();
    assert_eq!(lan.ctl(&["list"]).unwrap()[0]["queues"], 1);
    // Both the question and its answer have this payload.
    let payload: Vec<u8> = (0x10..0x60).collect();
    until("it is written", || {
        let written = fs::read(&file)?;
        assert_eq!(written[..4], [0x4D, 0x3C, 0xB2, 0xA1]);
        Ok(written.windows(payload.len()).filter(|window| *window == payload).count() >= 2)
    })
    .unwrap();
    lan.end().unwrap();
}

#[test]
fn a_guest_behind_an_interface_that_is_there_already() {
    if !unless_here("a_guest_behind_an_interface_that_is_there_already") {
        return;
    }
    let lan = Lan::new("packet").unwrap();
    // The other end of eth1 is a host of its own.
    let other = Namespace::new().unwrap();
    let add = ["link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns"];
    lan.host.ip(add.into_iter().chain([other.name()])).unwrap();
    lan.host.ip(["link", "set", "eth1", "up"]).unwrap();
    other.ip(["link", "set", "eth0", "up"]).unwrap();
    other.address("eth0", 9).unwrap();
    let netback = lan.netback(&["--interface", "eth1"]).unwrap();
    let namespace = Namespace::new().unwrap();
    let netfront = lan.netfront("guest", 2, &namespace, &[]).unwrap();
    for address in [v4(9), v6(9)] {
        namespace.until_answered(&address, 1400).unwrap();
    }
    let server = other.iperf3_server(&lan.scene).unwrap();
    let report = namespace.iperf3(&v4(9), &["-n", "8M"]).unwrap();
    assert!(bytes(&report, "sum_sent") >= 8 << 20, "{report}");
    drop(server);
    netfront.end().unwrap();
    netback.end().unwrap();
    lan.end().unwrap();
}

#[test]
fn nothing_is_lost_on_the_way_and_back() {
    if !unless_here("nothing_is_lost_on_the_way_and_back") {
        return;
    }
    // The last: a frame of 65,535 bytes with its header, the most that a length on the ring can say.
    for mtu in ["1500", "9000", "65521"] {
        let mut lan = Lan::new("loss").unwrap();
        for _ in 0..2 {
            lan.guest(&["--mtu", mtu], &[]).unwrap();
        }
        lan.host.ip(["link", "set", "br0", "mtu", mtu]).unwrap();
        let [one, two] = &lan.guests[..] else { panic!() };
        let mtu: usize = mtu.parse().unwrap();
        for (address, header) in [(v4(1), 28), (v6(1), 48), (two.v4(), 28), (two.v6(), 48)] {
            one.namespace.until_answered(&address, 56).unwrap();
            for bytes in [56, mtu - header] {
                let (answered, times) = one.namespace.pings(&address, 200, bytes).unwrap();
                println!("{address}, MTU {mtu}, {bytes} bytes: {times}");
                assert_eq!(answered, 200, "{address}, {bytes} bytes");
            }
        }
        let of = |guest: &str| {
            lan.ctl(&["counters", "--domain", guest]).unwrap()["ever"]["lost"].clone()
        };
        for guest in ["guest2", "guest3"] {
            assert!(of(guest).as_object().unwrap().is_empty(), "{guest}: {}", of(guest));
        }
        lan.end().unwrap();
    }
}

/// A guest serves a file of 1 GiB, and another guest downloads it.
#[test]
fn a_web_download_is_the_file_that_is_served() {
    let test = "a_web_download_is_the_file_that_is_served";
    if !unless_here(test) || !skip::unless_installed(test, &[BUSYBOX]) {
        return;
    }
    let mut lan = Lan::new("web").unwrap();
    lan.guest(&[], &[]).unwrap();
    lan.guest(&[], &[]).unwrap();
    let [one, two] = &lan.guests[..] else { panic!() };
    let web = lan.scene.folder().join("web");
    fs::create_dir(&web).unwrap();
    let file = web.join("file");
    let mut written = fs::File::create(&file).unwrap();
    let (mut state, mut block) = (0x9E37_79B9_7F4A_7C15_u64, vec![0_u8; 1 << 20]);
    for _ in 0..1024 {
        for word in block.as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        written.write_all(&block).unwrap();
    }
    drop(written);
    let sum = |command: Command| {
        let output = to_its_end(command, Duration::from_secs(900)).unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        said.split_whitespace().next().unwrap().to_owned()
    };
    let busybox = packages::find(BUSYBOX).unwrap();
    let mut httpd = Command::new(&busybox);
    httpd.args(["httpd", "-f", "-p", "80", "-h"]).arg(&web);
    let httpd = two.namespace.inside(&httpd).unwrap();
    let httpd = lan.scene.start_command("httpd", httpd).unwrap();
    let url = format!("http://{}/file", two.v4());
    one.namespace.until_answered(&two.v4(), 56).unwrap();
    until("the server listens", || {
        let mut wget = Command::new(&busybox);
        wget.args(["wget", "-q", "--spider", &url]);
        Ok(one.namespace.run(&wget)?.status.success())
    })
    .unwrap();
    let mut fetch = Command::new("sh");
    let shown = busybox.display();
    fetch.args(["-c", &format!("{shown} wget -q -O - {url} | md5sum")]);
    let began = Instant::now();
    let fetched = sum(one.namespace.inside(&fetch).unwrap());
    println!("1 GiB from guest to guest, with its sum, in {:.1} s", began.elapsed().as_secs_f64());
    let mut md5 = Command::new("md5sum");
    md5.arg(&file);
    assert_eq!(fetched, sum(md5), "another file than was served");
    assert!(lan.counted("guest2", "rx_bytes").unwrap() > 1 << 30);
    assert!(lan.counted("guest3", "tx_bytes").unwrap() > 1 << 30);
    drop(httpd);
    lan.end().unwrap();
}
