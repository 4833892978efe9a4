//! Network backends and guests that come, go, are killed and come back, and what is asked of a
//! `netback` meanwhile.

use serde_json::Value;
use testbed::lan::{BRIDGE, Lan};
use testbed::network::{Namespace, unless_here, v4};
use testbed::scene::{Scene, until};

/// Whether an interface is on the host's bridge.
fn on_bridge(lan: &Lan, interface: &str) -> bool {
    lan.host.link(interface).is_some_and(|link| link["master"] == BRIDGE)
}

/// The host's interface of the one daemon there is.
fn interface(lan: &Lan) -> String {
    lan.ctl(&["list"]).unwrap()[0]["interface"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn an_interface_in_use_is_listed_counted_and_taken_away() {
    if !unless_here("an_interface_in_use_is_listed_counted_and_taken_away") {
        return;
    }
    let mut lan = Lan::new("vifctl").unwrap();
    lan.guest(&["--mac", "00:16:3e:01:02:03", "--mtu", "1400"], &[]).unwrap();
    lan.guests[0].namespace.until_answered(&v4(1), 56).unwrap();
    let device = lan.ctl(&["list"]).unwrap()[0].clone();
    let vif = interface(&lan);
    assert_eq!(vif, format!("vif{}.0", device["guest_id"]));
    for (key, value) in [
        ("bridge", Value::from(BRIDGE)),
        ("mac", "00:16:3e:01:02:03".into()),
        ("mtu", 1400.into()),
        ("guest", "guest2".into()),
        ("state", "connected".into()),
        ("guest_state", "connected".into()),
        ("link", true.into()),
        ("stalled", false.into()),
        ("queues", 1.into()),
        ("connections", 1.into()),
        ("fault", Value::Null),
    ] {
        assert_eq!(device[key], value, "{key} of {device}");
    }
    let link = lan.host.link(&vif).unwrap();
    assert_eq!((&link["address"], &link["mtu"]), (&"fe:ff:ff:ff:ff:ff".into(), &1400.into()));
    assert!(on_bridge(&lan, &vif));
    assert_eq!(lan.guests[0].namespace.link("eth0").unwrap()["address"], "00:16:3e:01:02:03");

    let rings = lan.ctl(&["rings"]).unwrap();
    assert_eq!((&rings[0]["ring"], &rings[1]["ring"]), (&"tx".into(), &"rx".into()));
    assert!(rings[0]["answered"].as_u64() > Some(0), "{rings}");
    let people = |what| lan.scene.succeed("netback", "netback", ["ctl", what]).unwrap();
    assert!(people("list").contains("guest2 (") && people("list").contains(&vif));
    assert!(people("rings").contains("UNDER WAY") && people("counters").contains("tx_packets"));
    assert!(people("limits").contains("no limit") && people("link").contains("up"));

    // As when the cable is pulled, and put in again.
    let up = || {
        let link = lan.guests[0].namespace.link("eth0").unwrap();
        link["flags"].as_array().unwrap().contains(&"LOWER_UP".into())
    };
    assert_eq!(lan.ctl(&["link", "down"]).unwrap(), false);
    until("the guest sees it", || Ok(!up())).unwrap();
    assert_eq!(lan.ctl(&["link", "up"]).unwrap(), true);
    until("the guest sees it", || Ok(up())).unwrap();
    lan.guests[0].namespace.until_answered(&v4(1), 56).unwrap();

    assert!(people("detach").contains("detached"));
    let mut guest = lan.guests.pop().unwrap();
    assert!(guest.netback.ended().unwrap().success(), "{}", guest.netback.written());
    assert!(!guest.netfront.ended().unwrap().success(), "{}", guest.netfront.written());
    assert!(lan.host.link(&vif).is_none(), "{vif} goes with its device");
    lan.end().unwrap();
}

#[test]
fn by_force_also_from_a_guest_that_does_not_answer() {
    if !unless_here("by_force_also_from_a_guest_that_does_not_answer") {
        return;
    }
    let mut lan = Lan::new("vifforce").unwrap();
    lan.guest(&[], &[]).unwrap();
    lan.guests[0].netfront.stop().unwrap();
    lan.ctl(&["detach", "--force"]).unwrap();
    let mut guest = lan.guests.pop().unwrap();
    assert!(guest.netback.ended().unwrap().success(), "{}", guest.netback.written());
    drop(guest);
    lan.end().unwrap();
}

#[test]
fn guests_come_and_go_and_each_has_an_interface_of_its_own() {
    if !unless_here("guests_come_and_go_and_each_has_an_interface_of_its_own") {
        return;
    }
    let lan = Lan::new("vifgo").unwrap();
    let netback = lan.netback(&["--bridge", BRIDGE]).unwrap();
    let mut samples = Vec::new();
    for round in 0..6 {
        let namespace = Namespace::new().unwrap();
        let netfront = lan.netfront("guest", 2, &namespace, &[]).unwrap();
        let vif = interface(&lan);
        assert!(on_bridge(&lan, &vif), "{vif}");
        namespace.until_answered(&v4(1), 56).unwrap();
        if round % 2 == 0 { netfront.end().map(drop) } else { netfront.kill() }.unwrap();
        until("its interface goes with it", || Ok(lan.host.link(&vif).is_none())).unwrap();
        until("the guest is gone", || Ok(lan.ctl(&["list"])?[0]["guest_id"].is_null())).unwrap();
        samples.push(netback.descriptors().unwrap());
    }
    let (early, late) = samples.split_at(3);
    assert!(late.iter().min() <= early.iter().min(), "{samples:?}");
    assert_eq!(lan.ctl(&["list"]).unwrap()[0]["connections"], 6);
    netback.end().unwrap();
    lan.end().unwrap();
}

#[test]
fn a_netback_that_is_killed_and_started_again_is_a_pause() {
    if !unless_here("a_netback_that_is_killed_and_started_again_is_a_pause") {
        return;
    }
    let mut lan = Lan::new("vifkill").unwrap();
    lan.guest(&[], &[]).unwrap();
    for _ in 0..3 {
        lan.guests[0].namespace.until_answered(&v4(1), 56).unwrap();
        let again = ["--bridge", BRIDGE, "--domain", "guest2"];
        let mut guest = lan.guests.pop().unwrap();
        guest.netback.kill().unwrap();
        guest.netback = lan.netback(&again).unwrap();
        lan.guests.push(guest);
    }
    lan.guests[0].namespace.until_answered(&v4(1), 1400).unwrap();
    assert!(lan.guests[0].netfront.runs());
    lan.end().unwrap();
}

#[test]
fn what_cannot_be_is_explained() {
    let scene = Scene::new("vifwrong").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    for (arguments, words) in [
        (&["--bridge", "nobridge0"][..], "--bridge 'nobridge0': there is no such interface"),
        (&["--interface", "nowhere0"], "--interface 'nowhere0': there is no such interface"),
        (&["--bridge", "a/b"], "1 to 15 printable characters"),
        (&["--interface", "lo", "--bridge", "br0"], "cannot be used with"),
        (&["--mac", "01:00:5e:00:00:01"], "its first byte must be even"),
        (&["--mac", "1:2"], "must be six bytes"),
        (&["--rate", "fast"], "give a speed"),
        (&["--mtu", "20"], "20 is not in 68..=65521"),
        (&["--queues", "0"], "0 is not in 1..=64"),
        (&["--allow-ip", "10.0.0.0/8"], "invalid IP address"),
        (&["--domain", "99"], "there is no such domain"),
        (&["--watch", "--domain", "guest"], "cannot be used with"),
        (&["--device", "nowhere"], "must be a backend's directory"),
        (&["--device", "/local/domain/0/backend/vif/7/0"], "belongs to a backend in domain 0"),
        (&["ctl", "rings"], "no netback runs here"),
        (&["ctl", "rings", "--domain", "guest"], "no netback here serves that"),
    ] {
        let output = scene.run("netback", "netback", arguments).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    for (arguments, words) in [
        (&["--help"][..], "netback --bridge br0"),
        (&["man"], ".TH netback"),
        (&["completions", "bash"], "_netback"),
    ] {
        let said = scene.succeed("netback", "netback", arguments).unwrap();
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    hypervisor.end().unwrap();
}

#[test]
fn stats_tell_each_second_what_passed_in_it() {
    if !unless_here("stats_tell_each_second_what_passed_in_it") {
        return;
    }
    let mut lan = Lan::new("vifstats").unwrap();
    lan.guest(&["--stats", "--json"], &[]).unwrap();
    let guest = &lan.guests[0];
    let busy = |key: &str| {
        let written = guest.netback.written();
        let lines = written.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|line| line["stats"][key].as_f64()).any(|rate| rate > 0.0)
    };
    until("packets are told", || {
        guest.namespace.ping(&v4(1), 56)?;
        Ok(["tx_packets", "rx_packets", "tx_mbit", "rx_mbit"].into_iter().all(&busy))
    })
    .unwrap();
    lan.end().unwrap();
}
