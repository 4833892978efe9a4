//! Opening and creating images: what is accepted, what is refused, and in which words.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt, PermissionsExt};
use std::path::Path;

use blkback::image::{Direct, Image, Options, Transfers};
use hypervisor::Error;

use crate::host::{Holder, Loop, Small, run, skipped};

fn options(path: impl AsRef<Path>) -> Options {
    Options::new(path.as_ref())
}

fn sized(path: impl AsRef<Path>, size: u64) -> Options {
    let mut options = options(path);
    options.size = Some(size);
    options
}

/// The words of a refusal, which must be the configuration's fault.
fn refused(options: &Options) -> String {
    match Image::open(options) {
        Err(Error::Config(error)) => error.to_string(),
        Err(error) => panic!("not put down to the configuration: {error}"),
        Ok(_) => panic!("opened"),
    }
}

#[test]
fn a_new_image_is_sparse_private_and_of_the_size_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("disk.img");
    let image = Image::open(&sized(&path, 10 << 30)).unwrap();
    let found = path.metadata().unwrap();
    assert_eq!(found.len(), 10 << 30);
    assert!(found.blocks() < 1024, "{} blocks are taken", found.blocks());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    let geometry = image.media().geometry();
    assert_eq!((geometry.size, geometry.sector_size), (10 << 30, 512));
    assert!(!geometry.read_only);
    assert!(geometry.physical_sector_size >= 512);
    drop(image);
    // Asked for again, it is as it was.
    Image::open(&sized(&path, 10 << 30)).unwrap();
    let problem = refused(&sized(&path, 20 << 30));
    assert!(problem.contains("10737418240 bytes") && problem.contains("resize"), "{problem}");
}

#[test]
fn what_cannot_be_served_is_refused_in_clear_words() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    std::fs::write(at("odd"), vec![0; 1000]).unwrap();
    std::fs::write(at("512"), vec![0; 512 * 9]).unwrap();
    std::fs::write(at("empty"), []).unwrap();
    let has = |options: &Options, words: &[&str]| {
        let problem = refused(options);
        for word in words {
            assert!(problem.contains(word), "no '{word}' in: {problem}");
        }
    };
    has(&options(at("none")), &["none", "does not exist", "--size"]);
    has(&options(home.path()), &["is a folder"]);
    has(&options("/dev/null"), &["neither a regular file nor a block device"]);
    has(&options(at("odd")), &["odd", "1000 bytes", "512-byte sector", "1024"]);
    has(&options(at("empty")), &["empty", "--size"]);
    has(&sized(at("new"), 1000), &["1000 bytes", "512-byte sector", "1024"]);
    has(&sized(at("new"), 0), &["size '0'"]);
    has(&sized(at("no/such/folder"), 512), &["folder does not exist"]);
    has(&sized(at("odd").join("below"), 512), &["no folder"]);
    let mut wide = options(at("512"));
    wide.sector_size = Some(4096);
    has(&wide, &["4608 bytes", "4096-byte sector", "--sector-size 512", "8192"]);
    wide.sector_size = Some(1024);
    has(&wide, &["1024", "512 or 4096"]);
    let mut read_only = sized(at("new"), 512);
    read_only.read_only = true;
    has(&read_only, &["does not exist"]);
    assert!(!at("new").exists(), "what was refused leaves no file");
    // A pipe is not opened, which would wait for its other end.
    let status = std::process::Command::new("mkfifo").arg(at("pipe")).status();
    if status.is_ok_and(|status| status.success()) {
        has(&options(at("pipe")), &["neither a regular file"]);
    }
}

#[test]
fn a_file_that_may_not_be_written_can_be_served_read_only() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("disk.img");
    drop(Image::open(&sized(&path, 8192)).unwrap());
    std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
    // Root may write everything, so where we are root this thread opens files as nobody.
    let opened = std::thread::spawn(move || {
        if nix::unistd::geteuid().is_root() {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
        }
        let problem = refused(&options(&path));
        assert!(problem.contains("may not be written") && problem.contains("--readonly"));
        let mut read_only = options(&path);
        read_only.read_only = true;
        let image = Image::open(&read_only).unwrap();
        assert!(image.media().geometry().read_only);
        assert_eq!(image.media().geometry().discard, None);
        assert!(image.resize(Some(16384)).is_err());
    });
    opened.join().unwrap();
}

#[test]
fn one_writer_or_many_readers() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("disk.img");
    let writer = Image::open(&sized(&path, 8192)).unwrap();
    let own = format!("(pid {})", std::process::id());
    let problem = refused(&options(&path));
    assert!(problem.contains("in use by") && problem.contains(&own), "{problem}");
    let mut reader = options(&path);
    reader.read_only = true;
    assert!(refused(&reader).contains("in use by"));
    drop(writer);
    let first = Image::open(&reader).unwrap();
    let second = Image::open(&reader).unwrap();
    assert!(refused(&options(&path)).contains("--readonly"));
    drop(first);
    // Descriptors of the same file that come and go do not take the lock along.
    drop(File::open(&path).unwrap());
    assert!(refused(&options(&path)).contains("in use by"));
    drop(second);
    Image::open(&options(&path)).unwrap();
}

#[test]
fn a_former_writers_last_transfers_are_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("disk.img");
    let mut wanted = sized(&path, 8192);
    (wanted.queues, wanted.direct) = (3, Direct::Off);
    let image = Image::open(&wanted).unwrap();
    // As the kernel holds what a transfer goes through, whoever began it.
    let mut under_way = image.media().file(2).unwrap().try_clone().unwrap();
    drop(image);
    let error = Image::open(&wanted).unwrap_err().to_string();
    assert!(error.contains("wait for the last transfers of"), "{error}");
    wanted.patience = std::time::Duration::from_secs(60);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| Image::open(&wanted).unwrap());
        under_way.write_all(b"late").unwrap();
        drop(under_way);
        let next = next.join().unwrap();
        let mut late = [0; 4];
        next.media().file(0).unwrap().read_exact_at(&mut late, 0).unwrap();
        assert_eq!(&late, b"late");
    });
    // Readers disturb nobody.
    let mut reader = options(&path);
    reader.read_only = true;
    let _first = Image::open(&reader).unwrap();
    Image::open(&reader).unwrap();
}

#[test]
fn another_process_is_named_and_its_end_frees_the_image() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("disk.img");
    drop(Image::open(&sized(&path, 8192)).unwrap());
    for (name, shared) in [("blkback", false), ("blkback", true), ("other", false)] {
        let Some(holder) = Holder::new(&path, name, shared) else { return };
        let problem = refused(&options(&path));
        let article = if name == "blkback" { "another " } else { "" };
        let want = format!("in use by {article}{name} (pid {})", holder.0.id());
        assert!(problem.contains(&want), "no '{want}' in: {problem}");
        drop(holder);
        Image::open(&options(&path)).unwrap();
    }
}

#[test]
fn an_image_grows_while_it_is_open_and_never_shrinks() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("disk.img");
    let mut with = sized(&path, 1 << 20);
    with.sector_size = Some(4096);
    let image = Image::open(&with).unwrap();
    let words = |grow_to| match image.resize(Some(grow_to)) {
        Err(Error::Config(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(words(4096).contains("never shrunk"));
    assert!(words((2 << 20) + 512).contains("4096-byte sector"));
    assert!(words(0).contains("size '0'"));
    assert!(words(!4095).contains("more than the file system"));
    assert_eq!(image.media().geometry().size, 1 << 20);
    assert_eq!(image.resize(Some(2 << 20)), Ok(2 << 20));
    assert_eq!(image.resize(Some(2 << 20)), Ok(2 << 20));
    assert_eq!(image.media().geometry().size, 2 << 20);
    // Grown by somebody else, the new size is taken on when asked for.
    File::options().write(true).open(&path).unwrap().set_len(3 << 20).unwrap();
    assert_eq!(image.media().geometry().size, 2 << 20);
    assert_eq!(image.resize(None), Ok(3 << 20));
    assert_eq!(image.media().geometry().size, 3 << 20);
    assert_eq!(path.metadata().unwrap().len(), 3 << 20);
}

#[test]
fn the_page_cache_is_passed_where_that_works() {
    let disk = tempfile::tempdir().unwrap();
    let open = |folder: &Path, direct| {
        let mut with = sized(folder.join(format!("{direct}.img")), 1 << 20);
        with.direct = direct;
        Image::open(&with)
    };
    let image = open(disk.path(), Direct::Off).unwrap();
    assert!(!matches!(image.media().transfers(), Transfers::Direct { .. }));
    let image = open(disk.path(), Direct::Auto).unwrap();
    match image.media().transfers() {
        Transfers::Direct { memory, offset } => {
            assert!(memory > 0 && 512_u32.is_multiple_of(offset), "{memory} {offset}");
            assert!(image.media().geometry().direct);
            assert!(matches!(
                open(disk.path(), Direct::On).unwrap().media().transfers(),
                Transfers::Direct { .. }
            ));
        }
        other => {
            let why = image.media().why_buffered();
            skipped(&format!("direct transfers: {other:?}, {why:?}"));
        }
    }
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else {
        skipped("images in memory: no /dev/shm");
        return;
    };
    let image = open(memory.path(), Direct::Auto).unwrap();
    assert_eq!(image.media().transfers(), Transfers::Resident);
    assert_eq!(image.media().why_buffered(), None);
}

#[test]
fn where_it_does_not_work_the_page_cache_is_used_and_the_reason_told() {
    // A disk of 4096-byte sectors cannot serve 512-byte ones past the page cache.
    let home = tempfile::tempdir().unwrap();
    let (backing, mounted) = (home.path().join("backing"), home.path().join("mounted"));
    File::create(&backing).unwrap().set_len(64 << 20).unwrap();
    std::fs::create_dir(&mounted).unwrap();
    let Some(device) = Loop::new(&backing, 4096) else { return };
    let run = |program: &str, arguments: &[&str]| {
        let done = std::process::Command::new(program).args(arguments).output();
        done.is_ok_and(|done| done.status.success())
    };
    let (from, at) = (device.0.to_str().unwrap(), mounted.to_str().unwrap());
    if !run("mkfs.ext4", &["-q", from]) || !run("mount", &[from, at]) {
        skipped("needs mkfs.ext4 and mount");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let mut with = sized(mounted.join("disk.img"), 1 << 20);
        let image = Image::open(&with).unwrap();
        assert_eq!(image.media().transfers(), Transfers::Buffered);
        let why = image.media().why_buffered().unwrap();
        assert!(why.contains("4096 bytes") && why.contains("--sector-size 4096"), "{why}");
        drop(image);
        with.direct = Direct::On;
        let problem = refused(&with);
        assert!(problem.contains("direct 'on'") && problem.contains("--direct auto"), "{problem}");
        with.sector_size = Some(4096);
        let image = Image::open(&with).unwrap();
        assert!(matches!(image.media().transfers(), Transfers::Direct { offset: 4096, .. }));
        // And what is mounted is nobody's to write to.
        let problem = refused(&options(&device.0));
        assert!(problem.contains("mounted or in use"), "{problem}");
    });
    assert!(run("umount", &[at]));
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn block_devices_say_how_they_are_to_be_used() {
    let home = tempfile::tempdir().unwrap();
    let backing = home.path().join("backing");
    File::create(&backing).unwrap().set_len(8 << 20).unwrap();
    for sector in [512, 4096] {
        let Some(device) = Loop::new(&backing, sector) else { return };
        let with = options(&device.0);
        let image = Image::open(&with).unwrap();
        let geometry = image.media().geometry();
        assert_eq!((geometry.size, geometry.sector_size), (8 << 20, sector));
        assert!(geometry.direct);
        let discard = geometry.discard.expect("a loop device punches holes");
        assert!(discard.granularity >= sector && !discard.secure, "{discard:?}");
        assert!(refused(&with).contains("in use"));
        let problem = image.resize(Some(16 << 20)).unwrap_err().to_string();
        assert!(problem.contains("block device"), "{problem}");
        drop(image);
        assert!(refused(&sized(&device.0, 8 << 20)).contains("block device"));
        let mut narrow = with.clone();
        narrow.sector_size = Some(512);
        if sector == 4096 {
            assert!(refused(&narrow).contains("sectors of 4096 bytes"));
        }
        let mut reader = with.clone();
        reader.read_only = true;
        let both = (Image::open(&reader).unwrap(), Image::open(&reader).unwrap());
        drop(both);
        let path = device.0.to_str().unwrap();
        if run("blockdev", &["--setro", path]).is_some() {
            let problem = refused(&with);
            assert!(problem.contains("--readonly"), "{problem}");
            run("blockdev", &["--setrw", path]);
        }
        let first = Image::open(&with).unwrap();
        // It grows when what is behind it does.
        let (writable, grown) = (File::options().write(true).open(&backing).unwrap(), 12 << 20);
        writable.set_len(grown).unwrap();
        let capacity = std::process::Command::new("losetup")
            .args(["--set-capacity", device.0.to_str().unwrap()])
            .status();
        if capacity.is_ok_and(|status| status.success()) {
            assert_eq!(first.resize(None), Ok(grown));
        }
        writable.set_len(8 << 20).unwrap();
    }
}

#[test]
fn a_full_file_system_cannot_take_a_size_it_must_hold() {
    let Some(small) = Small::new(64) else { return };
    // Sparse, it may be larger than the file system: that is what sparse means.
    let image = Image::open(&sized(small.0.path().join("sparse.img"), 1 << 30)).unwrap();
    assert_eq!(image.media().geometry().size, 1 << 30);
    assert_eq!(image.media().transfers(), Transfers::Resident);
    assert!(image.media().geometry().discard.is_some());
}
