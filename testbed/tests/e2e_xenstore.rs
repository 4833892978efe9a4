//! Stock xenstore programs against a running hypervisor: its socket is all they need to be told.

use std::process::Command;

use testbed::packages::{self, Program, XENSTORE};
use testbed::scene::{PATIENCE, Process, Scene, to_its_end, until};
use testbed::skip;

/// One of the stock programs, pointed at the scene's store.
fn stock(scene: &Scene, name: &'static str, arguments: &[&str]) -> Command {
    let program = Program { name, package: XENSTORE.package };
    let mut command = Command::new(packages::find(program).unwrap());
    command.args(arguments).env("XENSTORED_PATH", scene.place().join("xenstored.sock"));
    command
}

/// Runs it; what it wrote, if it succeeded.
fn asked(scene: &Scene, name: &'static str, arguments: &[&str]) -> Option<String> {
    let output = to_its_end(stock(scene, name, arguments), PATIENCE).unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn wait_for(process: &mut Process, line: &str) {
    until(&format!("xenstore-watch says {line}"), || {
        Ok(process.written().lines().any(|written| written == line))
    })
    .unwrap();
}

#[test]
fn stock_programs_see_domains_come_change_and_go() {
    if !skip::unless_installed("stock programs in the hypervisor's store", &[XENSTORE]) {
        return;
    }
    let scene = Scene::new("store").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    assert!(asked(&scene, "xenstore-ls", &["-f"]).unwrap().contains("/tool/xenstored"));

    let mut comings = scene
        .start_command("comings", stock(&scene, "xenstore-watch", &["@introduceDomain"]))
        .unwrap();
    wait_for(&mut comings, "@introduceDomain");
    let before = comings.written().lines().count();
    let create = ["create", "guest", "--memory", "16M", "--json"];
    let created = scene.succeed("hypervisor", "hypervisor", create).unwrap();
    let created: serde_json::Value = serde_json::from_str(&created).unwrap();
    let home = format!("/local/domain/{}", created["id"]);
    until("the watch tells of the new domain", || Ok(comings.written().lines().count() > before))
        .unwrap();

    let at = |key: &str| format!("{home}/{key}");
    assert_eq!(asked(&scene, "xenstore-read", &[&at("name")]).unwrap(), "guest\n");
    assert_eq!(asked(&scene, "xenstore-read", &[&at("memory/target")]).unwrap(), "16384\n");
    let target = at("memory/target");
    let mut changes =
        scene.start_command("changes", stock(&scene, "xenstore-watch", &[&home])).unwrap();
    wait_for(&mut changes, &home);
    scene.succeed("hypervisor", "hypervisor", ["mem-set", "guest", "8M"]).unwrap();
    wait_for(&mut changes, &target);
    assert_eq!(asked(&scene, "xenstore-read", &[&target]).unwrap(), "8192\n");

    let key = at("data/key");
    asked(&scene, "xenstore-write", &[&key, "value"]).unwrap();
    wait_for(&mut changes, &key);
    asked(&scene, "xenstore-chmod", &[&key, "n0", "r5"]).unwrap();
    let listed = asked(&scene, "xenstore-ls", &["-f", "-p", &at("data")]).unwrap();
    assert!(listed.contains("= \"value\"") && listed.contains("(n0,r5)"), "{listed}");

    scene.succeed("hypervisor", "hypervisor", ["destroy", "guest"]).unwrap();
    until("the domain's home is gone", || Ok(asked(&scene, "xenstore-exists", &[&home]).is_none()))
        .unwrap();
    assert_eq!(asked(&scene, "xenstore-read", &[&key]), None);
    for watch in [comings, changes] {
        watch.kill().unwrap();
    }
    hypervisor.end().unwrap();
}
