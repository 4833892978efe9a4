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
