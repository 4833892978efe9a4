//! The pair alone, without a network of the host's: `netback --port` and `netfront bench`.

use serde_json::Value;
use testbed::scene::Scene;

#[test]
fn the_bench_has_somebody_to_send_to() {
    let scene = Scene::new("alone").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    for (port, mode, queues) in [("echo", "rr", 1), ("sink", "tx", 2), ("source", "rx", 2)] {
        let many = queues.to_string();
        let arguments = ["--port", port, "--queues", &many];
        let mut netback = scene.start("netback", "netback", arguments).unwrap();
        netback.line_with(&format!("without a network: {port}")).unwrap();
        let bench = ["--queues", &many, "bench", "--json", "--mode", mode, "--seconds", "0.5"];
        let said = scene.succeed("netfront", "netfront", bench).unwrap();
        let report: Value = serde_json::from_str(&said).unwrap();
        assert!(report["packets"].as_u64() > Some(0), "{port}: {report}");
        assert_eq!((&report["lost"], &report["queues"]), (&0.into(), &queues.into()), "{report}");
        netback.end().unwrap();
    }
    for (wrong, says) in [
        (&["--port", "hole"][..], "there are sink, echo and source"),
        (&["--port", "sink", "--bridge", "br0"], "cannot be used with"),
    ] {
        let output = scene.run("netback", "netback", wrong).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{wrong:?}: {said}");
    }
    hypervisor.end().unwrap();
}
