//! The death of a backend's whole domain: another domain is given the device, and to the guest it is a pause.
//!
//! Nothing of the dead domain is left to go on with: its directories are gone from the store, its event channels are
//! closed, and a journal says nothing of rings that another domain was granted. So the frontend makes rings for
//! the successor, and issues anew what was not answered. Which domain that is says the frontend's directory
//! (`backend`, `backend-id`), and who writes that is either the successor itself, where it is told whom to serve
//! (`--domain`), or a toolstack.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;

use hypervisor::DomId;
use hypervisor::xenbus::State;
use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::fio;
use testbed::lan::{BRIDGE, Lan};
use testbed::libxl::{DiskSpec, Libxl};
use testbed::network::{unless_here, v4};
use testbed::scene::{Process, Scene, until};
use testbed::streams::Streams;

/// Backends that each guest loses.
const DEATHS: usize = 5;
/// Where the disk and the interface of a guest are in its home.
const DISK: &str = "device/vbd/51712";
const VIF: &str = "device/vif/0";

/// Who serves the device of domain `guest` that is at `device`.
fn backend(libxl: &Libxl, guest: DomId, device: &str) -> DomId {
    let front = format!("/local/domain/{guest}/{device}");
    let id: DomId = {
        let id = libxl.get(&format!("{front}/backend-id")).unwrap().expect("it has a backend");
        DomId::new(id.parse().unwrap()).unwrap()
    };
    let path = libxl.get(&format!("{front}/backend")).unwrap().unwrap();
    assert!(path.starts_with(&format!("/local/domain/{id}/backend/")), "{id} at {path}");
    id
}

/// Destroys `domain`, of which `process` is one.
fn destroy(scene: &Scene, libxl: &Libxl, domain: DomId, process: &mut Process) {
    assert!(process.runs(), "it ended by itself:\n{}", process.written());
    let number = domain.to_string();
    scene.succeed("hypervisor", "hypervisor", ["destroy", &number]).unwrap();
    let status = process.ended().unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{}", process.written());
    until("its home is gone", || Ok(libxl.get(&format!("/local/domain/{domain}"))?.is_none()))
        .unwrap();
}

/// A guest that verifies what it reads, and whoever serves its disk.
struct Disk {
    scene: Scene,
    _hypervisor: Process,
    libxl: Libxl,
    image: String,
    guest: Process,
}

impl Disk {
    /// `bounce` says whether the guest's buffers are its own (1), or granted to the backend for good (0).
    fn new(name: &str, bounce: &str) -> Self {
        let scene = Scene::new(name).unwrap();
        let hypervisor = scene.hypervisor().unwrap();
        let libxl = Libxl::new(scene.place().join("xenstored.sock")).unwrap();
        let image = scene.folder().join("disk.img");
        File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let image = image.display().to_string();
        let jobs = "[verify]\nrw=randrw\nbsrange=512-128k\nblockalign=512\niodepth=16\n\
                    verify=crc32c\nfsync=64\nsize=8M\nloops=20\n";
        let mut command = fio::command(&scene, name, jobs).unwrap();
        command.env("DOMKIT_FIO_BOUNCE", bounce).env("DOMKIT_FIO_QUEUES", "2");
        let guest = scene.start_command("fio", command).unwrap();
        Self { scene, _hypervisor: hypervisor, libxl, image, guest }
    }

    /// So slow that the guest cannot be done before its last backend has died.
    fn start(&self, arguments: &[&str]) -> Process {
        let arguments = [arguments, &["--queues", "2", "--limit-iops", "300"]].concat();
        let mut blkback = self.scene.start("blkback", "blkback", arguments).unwrap();
        blkback.line_with("ready").unwrap();
        blkback
    }

    /// One that makes the disk itself, for the guest.
    fn of_our_own(&self) -> Process {
        self.start(&["--image", &self.image, "--domain", "guest", "--vdev", "xvda"])
    }

    fn guest(&self) -> DomId {
        self.libxl.domain("guest").unwrap()
    }

    /// Waits until `domain` serves, and has answered something.
    fn served_by(&self, domain: DomId) {
        until("the successor serves", || {
            let said = self.scene.run("blkback", "blkback", ["ctl", "list", "--json"])?;
            let listed: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
            let said = self.scene.run("blkback", "blkback", ["ctl", "counters", "--json"])?;
            let counters: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
            let count = |name: &str| counters["total"][name].as_u64().unwrap_or(0);
            let serves = listed[0]["domain"] == u64::from(domain.get());
            Ok(serves && count("reads") + count("writes") > 20)
        })
        .unwrap();
        assert_eq!(backend(&self.libxl, self.guest(), DISK), domain);
    }

    /// Lets the guest end, which must have noticed nothing, and then `last`, who serves it.
    fn end(mut self, last: Process) {
        self.scene.succeed("blkback", "blkback", ["ctl", "limits", "--iops", "0"]).unwrap();
        let status = self.guest.ended().unwrap();
        assert!(status.success(), "{status}\n{}", self.guest.written());
        let (name, written) = ("death", self.guest.written());
        let jobs = fio::jobs(&self.scene, name).unwrap();
        assert!(jobs[0].read.total_ios > 0 && jobs[0].write.total_ios > 0, "{jobs:?}");
        assert!(!written.contains("gone"), "{written}");
        last.end().unwrap();
    }
}

#[test]
fn a_disk_goes_to_a_successor_that_makes_it_anew() {
    if !fio::unless_here("a_disk_goes_to_a_successor_that_makes_it_anew") {
        return;
    }
    for bounce in ["1", "0"] {
        let mut disk = Disk::new("death", bounce);
        let mut blkback = disk.of_our_own();
        let mut seen = Vec::new();
        for _ in 0..DEATHS {
            let domain = backend_once_there(&disk);
            disk.served_by(domain);
            assert!(!seen.contains(&domain), "{domain} of {seen:?}");
            seen.push(domain);
            // While it lives, nobody else is given what it serves.
            if seen.len() == 1 {
                let other = disk.scene.folder().join("other.img").display().to_string();
                let arguments = ["--image", &other, "--size", "8M", "--domain", "guest"];
                let output = disk.scene.run("blkback", "blkback", arguments).unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(!output.status.success() && said.contains("serves a disk"), "{said}");
            }
            destroy(&disk.scene, &disk.libxl, domain, &mut blkback);
            assert!(disk.guest.runs(), "{}", disk.guest.written());
            blkback = disk.of_our_own();
        }
        let last = backend_once_there(&disk);
        disk.served_by(last);
        disk.end(blkback);
    }
}

/// Who serves the guest's disk, waited for.
fn backend_once_there(disk: &Disk) -> DomId {
    let domain = disk.libxl.domain("blkback").unwrap();
    let id = format!("/local/domain/{}/{DISK}/backend-id", disk.guest());
    until("the disk is its", || Ok(disk.libxl.get(&id)? == Some(domain.to_string()))).unwrap();
    domain
}

#[test]
fn a_toolstacks_disk_goes_where_the_toolstack_says_or_to_who_takes_it() {
    if !fio::unless_here("a_toolstacks_disk_goes_where_the_toolstack_says_or_to_who_takes_it") {
        return;
    }
    let mut disk = Disk::new("death", "1");
    let guest = disk.guest();
    let mut spec = DiskSpec::new(&disk.image);
    spec.kind = "vbd3";
    for death in 0..DEATHS {
        // The watcher's domain, its disks' processes included.
        let mut watch = disk.start(&["--watch"]);
        let domain = disk.libxl.domain("blkback").unwrap();
        let device = disk.libxl.attach(domain, guest, &spec).unwrap();
        disk.served_by(domain);
        for end in [&device.back, &device.front] {
            assert_eq!(disk.libxl.state(end).unwrap(), State::Connected, "{end}, death {death}");
        }
        destroy(&disk.scene, &disk.libxl, domain, &mut watch);
        assert_eq!(disk.libxl.state(&device.front).unwrap(), State::Connected);
        assert!(disk.guest.runs(), "{}", disk.guest.written());
    }
    // No toolstack does anything about it now.
    let blkback = disk.of_our_own();
    let domain = backend_once_there(&disk);
    disk.served_by(domain);
    assert!(disk.guest.runs(), "{}", disk.guest.written());
    disk.end(blkback);
}

#[test]
fn an_interface_goes_to_a_successor_and_tcp_goes_on() {
    if !unless_here("an_interface_goes_to_a_successor_and_tcp_goes_on") {
        return;
    }
    let mut lan = Lan::new("netdeath").unwrap();
    let libxl = Libxl::new(lan.scene.place().join("xenstored.sock")).unwrap();
    lan.guest(&[], &[]).unwrap();
    let id = libxl.domain("guest2").unwrap();
    lan.guests[0].namespace.until_answered(&v4(1), 56).unwrap();
    let streams = Streams::begin(&lan.host, &lan.guests[0].namespace).unwrap();
    let mut seen = Vec::new();
    for _ in 0..DEATHS {
        streams.flow("bytes flow both ways").unwrap();
        let domain = backend(&libxl, id, VIF);
        assert!(!seen.contains(&domain), "{domain} of {seen:?}");
        seen.push(domain);
        destroy(&lan.scene, &libxl, domain, &mut lan.guests[0].netback);
        lan.guests[0].netback = lan.netback(&["--bridge", BRIDGE, "--domain", "guest2"]).unwrap();
    }
    streams.flow("bytes flow after the last").unwrap();
    assert!(!seen.contains(&backend(&libxl, id, VIF)));
    let bytes = streams.end().unwrap();
    println!(
        "{DEATHS} domains of netback's died; {bytes:?} bytes went to the host and to the guest, as they were"
    );
    assert!(lan.guests[0].netfront.runs(), "{}", lan.guests[0].netfront.written());
    lan.end().unwrap();
}
