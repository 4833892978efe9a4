//! A real file system through the whole path: image, blkback, a shared ring, blkfront, NBD, and stock
//! tools at the other end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use testbed::packages::{self, MKE2FS, NBDCOPY, Program, QEMU_IMG};
use testbed::scene::{Scene, to_its_end};
use testbed::skip;

const SIZE_MIB: u64 = 96;

/// A tree of folders, links, empty, tiny, odd and large files, told apart by `seed`.
fn plant(tree: &Path, seed: u64) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for number in 0..120_u32 {
        let folder = tree.join(format!("d{}/e{}", number % 7, number % 3));
        fs::create_dir_all(&folder).unwrap();
        let most = [0, 1, 511, 4096, 4097, 70_000, 600_000][number as usize % 7];
        let bytes: Vec<u8> = (0..most).map(|_| random() as u8).collect();
        fs::write(folder.join(format!("file-{number}")), bytes).unwrap();
    }
    std::os::unix::fs::symlink("d0/e0/file-0", tree.join("link")).unwrap();
}

/// Every file below `folder` with its bytes, and every link with where it points.
fn harvest(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let name = path.strip_prefix(folder).unwrap().to_owned();
            if name == Path::new("lost+found") {
                continue;
            }
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_symlink() {
                all.insert(
                    name,
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                );
            } else {
                all.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    all
}

fn tool(program: Program) -> Command {
    Command::new(packages::find(program).unwrap())
}

fn succeed(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = to_its_end(command, Duration::from_secs(300)).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrote = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{shown}: {}\n{text}{wrote}", output.status);
    text + &wrote
}

fn make_ext4(image: &Path, tree: &Path) {
    fs::File::create(image).unwrap().set_len(SIZE_MIB << 20).unwrap();
    let mut mke2fs = tool(MKE2FS);
    mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(tree).arg(image);
    succeed(mke2fs);
}

/// The files of the ext4 file system in `image`, which must be clean.
fn files_of(image: &Path, into: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut check = Command::new(packages::find(MKE2FS).unwrap().with_file_name("e2fsck"));
    check.args(["-f", "-n"]).arg(image);
    succeed(check);
    fs::create_dir(into).unwrap();
    let mut dump = Command::new(packages::find(MKE2FS).unwrap().with_file_name("debugfs"));
    dump.arg("-R").arg(format!("rdump / {}", into.display())).arg(image);
    succeed(dump);
    harvest(into)
}

/// Checks that the export at `uri` holds the bytes of `image`, all of them and no others. Not by
/// `-s`, which also wants them to have the same holes: an export has none.
fn identical(image: &Path, uri: &str) {
    let mut compare = tool(QEMU_IMG);
    compare.args(["compare", "-f", "raw", "-F", "raw"]).arg(image).arg(uri);
    let said = succeed(compare);
    assert!(said.contains("identical") && !said.contains("size mismatch"), "{said}");
}

#[test]
fn a_file_system_crosses_unharmed_in_both_directions() {
    if !skip::unless_installed("a file system through NBD", &[MKE2FS, QEMU_IMG, NBDCOPY]) {
        return;
    }
    let scene = Scene::new("image").unwrap();
    let at = |name: &str| scene.folder().join(name);
    for (name, seed) in [("first", 1), ("second", 2)] {
        plant(&at(name), seed);
        make_ext4(&at(&format!("{name}.img")), &at(name));
    }
    // What is compared with is a copy: the image itself is blkback's alone from here on.
    fs::copy(at("first.img"), at("before.img")).unwrap();

    let mut hypervisor = scene.hypervisor().unwrap();
    let image = at("first.img");
    let mut blkback =
        scene.start("blkback", "blkback", ["--image".as_ref(), image.as_os_str()]).unwrap();
    blkback.line_with("ready").unwrap();
    let socket = at("nbd.sock");
    let mut nbd = scene
        .start("blkfront", "blkfront", ["nbd".as_ref(), "--unix".as_ref(), socket.as_os_str()])
        .unwrap();
    nbd.line_with("ready").unwrap();
    let uri = format!("nbd+unix:///?socket={}", socket.display());

    // Out: what the guest reads is the image, bit by bit.
    identical(&at("before.img"), &uri);
    assert!(
        fs::read(at("first.img")).unwrap() == fs::read(at("before.img")).unwrap(),
        "reading changed the image"
    );

    // In: what the guest writes is in the image once it was flushed, while all still runs.
    let mut copy = tool(NBDCOPY);
    copy.args(["--flush"]).arg(at("second.img")).arg(&uri);
    succeed(copy);
    identical(&at("second.img"), &uri);

    nbd.end().unwrap();
    blkback.end().unwrap();
    assert!(hypervisor.runs(), "{}", hypervisor.written());
    hypervisor.end().unwrap();

    let (want, got) = (harvest(&at("second")), files_of(&at("first.img"), &at("dumped")));
    assert!(want.len() > 100, "{}", want.len());
    assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
    assert!(want == got, "files differ");
}
