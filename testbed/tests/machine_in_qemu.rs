//! The emulated machine itself: it runs a script and tells how that ended.

use testbed::packages::{BUSYBOX, QEMU};
use testbed::{skip, vm};

#[test]
fn a_script_runs_and_its_failure_is_told() {
    if !skip::unless_installed("a machine in QEMU", &[QEMU, BUSYBOX]) {
        return;
    }
    let printed = vm::Machine::new("echo \"cpus: $(nproc)\"; uname -s").run().unwrap();
    assert!(printed.contains("cpus: 2\n"), "{printed}");
    assert!(printed.contains("Linux\n"), "{printed}");
    let error = vm::Machine::new("echo so far so good; false; echo not here").run().unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("so far so good"), "{error}");
    assert!(!error.contains("not here"), "{error}");
}

#[test]
fn a_module_is_loaded_after_what_it_needs() {
    if !skip::unless_installed("kernel modules in QEMU", &[QEMU, BUSYBOX]) {
        return;
    }
    let mut machine = vm::Machine::new("cut -d' ' -f1 /proc/modules; grep ext4 /proc/filesystems");
    machine.modules = vec!["ext4".into()];
    let printed = machine.run().unwrap();
    // The kernel lists the newest first; without them ext4 does not load.
    let loaded: Vec<&str> = printed.lines().collect();
    let at = |name: &str| loaded.iter().position(|line| *line == name);
    for needed in ["mbcache", "jbd2", "crc16"] {
        assert!(at(needed) > at("ext4"), "{needed}: {printed}");
    }
    assert!(printed.contains("\text4"), "{printed}");
}
