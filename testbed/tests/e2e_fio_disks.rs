//! fio, a stock program that checks every byte it reads, against every kind of disk that blkback
//! serves.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use serde_json::Value;
use testbed::fio;
use testbed::scene::{Process, Scene};
use testbed::skip;

const MIB: u64 = 1 << 20;

/// A hypervisor, and a blkback that serves `disk.img`.
struct Set {
    scene: Scene,
    hypervisor: Process,
    blkback: Process,
}

impl Set {
    fn new(size: u64, arguments: &[&str]) -> Self {
        let scene = Scene::new("fio").unwrap();
        let path = image(&scene);
        // Not zeros: what has not been written yet is recognised too.
        fs::write(&path, vec![0xA5; usize::try_from(size).unwrap()]).unwrap();
        Self::serve(scene, &["--image", path.to_str().unwrap()], arguments)
    }

    fn serve(scene: Scene, what: &[&str], arguments: &[&str]) -> Self {
        let hypervisor = scene.hypervisor().unwrap();
        let arguments = [what, arguments].concat();
        let mut blkback = scene.start("blkback", "blkback", arguments).unwrap();
        blkback.line_with("ready").unwrap();
        Self { scene, hypervisor, blkback }
    }

    /// Runs `jobs` with the engine's settings `with`; no job may meet an error.
    fn fio(&self, name: &str, jobs: &str, with: &[(&str, &str)]) -> Vec<fio::Job> {
        let mut command = fio::command(&self.scene, name, jobs).unwrap();
        command.envs(with.iter().copied());
        fio::run(&self.scene, name, command).unwrap()
    }

    /// Ends all of it; the guest must have broken no rule, and everything must end well.
    fn end(self) -> Scene {
        let said = self.scene.succeed("blkback", "blkback", ["ctl", "list", "--json"]).unwrap();
        let list: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(list[0]["fault"], Value::Null, "{said}");
        assert_eq!(list[0]["lost"], Value::Null, "{said}");
        self.blkback.end().unwrap();
        self.hypervisor.end().unwrap();
        self.scene
    }
}

fn image(scene: &Scene) -> PathBuf {
    scene.folder().join("disk.img")
}

/// A job that reads and writes `size` at random from byte `offset` on, in blocks of `least` to
/// 1 MiB, all of them checked, `depth` at a time.
fn verify(name: &str, offset: &str, size: &str, least: &str, depth: u32) -> String {
    format!(
        "[{name}]\nrw=randrw\nbsrange={least}-1M\nblockalign={least}\niodepth={depth}\n\
         iodepth_batch_submit=8\niodepth_batch_complete_max={depth}\nverify=crc32c\nfsync=32\n\
         offset={offset}\nsize={size}\n"
    )
}

fn both_directions(jobs: &[fio::Job]) {
    for job in jobs {
        assert!(job.read.total_ios > 0 && job.write.total_ios > 0, "{job:?}");
    }
}

#[test]
fn every_depth_and_every_block_size() {
    if !fio::unless_here("fio through blkfront") {
        return;
    }
    let set = Set::new(16 * MIB, &["--direct", "off"]);
    let jobs: Vec<String> = [1, 4, 32, 128]
        .into_iter()
        .map(|depth| verify(&format!("depth-{depth}"), "0", "8M", "512", depth) + "stonewall\n")
        .collect();
    let lent = set.fio("lent", &jobs.concat(), &[]);
    assert_eq!(lent.len(), 4);
    both_directions(&lent);
    // Through the queue's own pages, which the backend keeps mapped.
    both_directions(&set.fio("bounced", &jobs.concat(), &[("DOMKIT_FIO_BOUNCE", "1")]));
    let scene = set.end();
    assert_eq!(fs::metadata(image(&scene)).unwrap().len(), 16 * MIB);
}

#[test]
fn several_jobs_have_a_queue_each() {
    if !fio::unless_here("fio with several queues") {
        return;
    }
    let set = Set::new(12 * MIB, &["--queues", "3", "--ring-page-order", "0"]);
    // A ring of one page holds 32 requests: the others wait for room.
    let jobs = verify("a", "0", "4M", "512", 128)
        + &verify("b", "4M", "4M", "512", 32)
        + &verify("c", "8M", "4M", "4k", 4);
    let jobs = set.fio("parallel", &jobs, &[("DOMKIT_FIO_QUEUES", "3")]);
    assert_eq!(jobs.len(), 3);
    both_directions(&jobs);
    set.end();
}

#[test]
fn sectors_of_4096_bytes_past_the_page_cache() {
    if !fio::unless_here("fio with 4096-byte sectors") {
        return;
    }
    let probe = Scene::new("fio").unwrap();
    File::create(image(&probe)).unwrap();
    let direct =
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(image(&probe)).is_ok();
    if !direct {
        skip::because("fio with direct transfers", "the file system of TMPDIR has no O_DIRECT");
        return;
    }
    for size in ["512", "4096"] {
        let set = Set::new(8 * MIB, &["--direct", "on", "--sector-size", size]);
        let jobs = verify("deep", "0", "8M", size, 32) + "stonewall\n";
        let jobs = jobs + &verify("shallow", "0", "4M", size, 1) + "stonewall\n";
        both_directions(&set.fio("direct", &jobs, &[]));
        set.end();
    }
}

#[test]
fn plain_calls_and_memory_do_as_well() {
    if !fio::unless_here("fio with the other engines") {
        return;
    }
    let set = Set::new(8 * MIB, &["--engine", "blocking"]);
    both_directions(&set.fio("blocking", &verify("one", "0", "8M", "512", 32), &[]));
    set.end();
    let scene = Scene::new("fio").unwrap();
    let set = Set::serve(scene, &["--engine", "memory", "--size", "8M"], &[]);
    both_directions(&set.fio("memory", &verify("one", "0", "8M", "512", 32), &[]));
    set.end();
}

#[test]
fn what_is_trimmed_is_gone_from_the_image_and_nothing_else_is() {
    if !fio::unless_here("fio with trim") {
        return;
    }
    let set = Set::new(16 * MIB, &[]);
    let before = fs::metadata(image(&set.scene)).unwrap().blocks();
    let jobs = "[trim]\nrw=trim\nbs=64k\niodepth=16\noffset=4M\nsize=8M\nstonewall\n\
                [at-random]\nrw=randtrim\nbs=4k\niodepth=64\noffset=4M\nsize=1M\nstonewall\n";
    let jobs = set.fio("trim", jobs, &[]);
    assert_eq!(jobs[0].trim.io_bytes, 8 * MIB, "{jobs:?}");
    assert!(jobs[1].trim.total_ios > 0, "{jobs:?}");
    let mixed = "[mixed]\nrw=trimwrite\nbs=64k\niodepth=16\nfsync=8\noffset=12M\nsize=2M\n";
    let jobs = set.fio("mixed", mixed, &[]);
    assert!(jobs[0].trim.total_ios > 0 && jobs[0].write.total_ios > 0, "{jobs:?}");
    let scene = set.end();
    let bytes = fs::read(image(&scene)).unwrap();
    let holds = |range: std::ops::Range<u64>, byte: u8| {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        bytes[range].iter().all(|found| *found == byte)
    };
    assert!(holds(0..4 * MIB, 0xA5), "before what was trimmed");
    assert!(holds(4 * MIB..12 * MIB, 0), "what was trimmed");
    assert!(holds(14 * MIB..16 * MIB, 0xA5), "after what was trimmed");
    // In units of 512 bytes: the file system may keep a little for its own purposes.
    let after = fs::metadata(image(&scene)).unwrap().blocks();
    assert!(after + (6 * MIB / 512) <= before, "{before} blocks before, {after} after");
}
