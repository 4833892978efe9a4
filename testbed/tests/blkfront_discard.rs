//! `blkfront discard` against the real backend.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use testbed::scene::Scene;

const MIB: usize = 1 << 20;

#[test]
fn what_is_discarded_is_freed_and_all_else_stays() {
    let scene = Scene::new("discard").unwrap();
    let hypervisor = scene.hypervisor().unwrap();
    let image = scene.folder().join("disk.img");
    let bytes: Vec<u8> = (0..8 * MIB).map(|at| (at % 251) as u8 | 1).collect();
    fs::write(&image, &bytes).unwrap();
    let path = image.display().to_string();
    let mut blkback = scene.start("blkback", "blkback", ["--image", &path]).unwrap();
    blkback.line_with("ready").unwrap();
    let blocks = || fs::metadata(&image).unwrap().blocks() * 512;
    let before = blocks();

    scene.succeed("blkfront", "blkfront", ["discard", "--offset", "2M", "--length", "4M"]).unwrap();
    assert!(blocks() + 4 * MIB as u64 <= before, "{} of {before} bytes are left", blocks());
    let after = fs::read(&image).unwrap();
    assert_eq!(after.len(), bytes.len());
    assert!(after[..2 * MIB] == bytes[..2 * MIB] && after[6 * MIB..] == bytes[6 * MIB..]);
    assert!(after[2 * MIB..6 * MIB].iter().all(|byte| *byte == 0));

    for (wrong, words) in [
        (["--offset", "7M", "--length", "2M"], "past the end"),
        (["--offset", "100", "--length", "512"], "no multiple"),
    ] {
        let output =
            scene.run("blkfront", "blkfront", [&["discard"], &wrong[..]].concat()).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{said}");
    }
    blkback.end().unwrap();
    hypervisor.end().unwrap();
}
