//! The examples of virtual machines: the one for QEMU is run as its README says, the others say what they miss.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use testbed::packages::{BUSYBOX, MKE2FS, QEMU};
use testbed::programs::{Build, build, workspace};
use testbed::scene::to_its_end;
use testbed::{skip, vm};

const LIMIT: Duration = Duration::from_secs(300);

fn example(name: &str) -> PathBuf {
    workspace().join("examples/vhost-user").join(name).join("run")
}

#[test]
fn the_example_for_qemu_boots_a_machine_from_an_image() {
    let programs = [QEMU, BUSYBOX, MKE2FS];
    if !skip::unless_installed("the example for QEMU", &programs) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("root.img");
    let script = r#"
grep ' / ' /proc/mounts
echo "serial: $(cat /sys/block/vda/serial)"
echo "queues: $(ls /sys/block/vda/mq | wc -l)"
echo kept >/kept
"#;
    let mut machine = vm::Machine::new(script);
    machine.modules =
        ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"].map(str::to_owned).to_vec();
    machine.root = Some("/dev/vda".to_owned());
    machine.make_root(&image, "32M").unwrap();
    let (kernel, initramfs) = machine.boot_files(folder.path()).unwrap();
    let mut run = Command::new(example("qemu"));
    run.arg(&image).arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    run.args(["-append", "console=ttyS0 panic=-1 quiet", "-no-reboot"]);
    run.env("BLKBACK", build("blkback", "blkback", Build::Tests).unwrap()).env("MEMORY", "512");
    // What /dev/kvm is good for where tests run is not known.
    run.env("ACCEL", "tcg,thread=multi");
    let output = to_its_end(run, LIMIT).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let wrote = String::from_utf8_lossy(&output.stderr);
    for line in ["serial: domkit", "queues: 2"] {
        assert!(said.lines().any(|got| got == line), "no '{line}': {said}\n{wrote}");
    }
    assert!(said.contains("/dev/vda / ext4 rw"), "{said}\n{wrote}");
    assert!(wrote.contains("a monitor has connected"), "{wrote}");
}

#[test]
fn each_example_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    let blkback = build("blkback", "blkback", Build::Tests).unwrap();
    for (name, variable) in
        [("qemu", "QEMU"), ("cloud-hypervisor", "CLOUD_HYPERVISOR"), ("crosvm", "CROSVM")]
    {
        let said = |change: &dyn Fn(&mut Command)| {
            let mut run = Command::new(example(name));
            run.env("BLKBACK", &blkback);
            change(&mut run);
            let output = to_its_end(run, LIMIT).unwrap();
            assert!(!output.status.success());
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let usage = said(&|_| {});
        assert!(usage.contains("run IMAGE"), "{name}: {usage}");
        let no_image = said(&|run| {
            run.arg(&image);
        });
        assert!(no_image.contains("there is no image"), "{name}: {no_image}");
        std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
        let missing = said(&|run| {
            run.arg(&image).env(variable, "/no/such/program");
        });
        let words = format!("{variable}=/no/such/program is no program");
        assert!(missing.contains(&words), "{name}: {missing}");
        let no_blkback = said(&|run| {
            run.arg(&image).env("BLKBACK", "/none");
        });
        assert!(no_blkback.contains("BLKBACK=/none is no program"), "{name}: {no_blkback}");
        std::fs::remove_file(&image).unwrap();
    }
}
