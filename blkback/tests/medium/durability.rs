//! What a flush says when the medium fails.

use std::fs::File;
use std::sync::Arc;

use blkback::durability::Standing;
use blkback::engine::{Any, Choice, Medium, Operation};
use blkback::image::{Direct, Image, Options};
use nix::unistd::fdatasync;

use crate::buffers::Pages;
use crate::drive::one;
use crate::host::{Loop, Small};

/// A device that has room for less than it says, so that writing back to it fails with `EIO`.
struct Failing {
    image: Option<Image>,
    /// What a device keeps beside the image that it opened.
    standing: Standing,
    device: Loop,
    small: Small,
}

const MIB: usize = 1 << 20;

impl Failing {
    fn new() -> Option<Self> {
        let small = Small::new(2048)?;
        let backing = small.0.path().join("backing");
        File::create(&backing).unwrap().set_len(16 << 20).unwrap();
        let device = Loop::new(&backing, 512)?;
        let mut failing = Self { image: None, standing: Standing::default(), device, small };
        failing.open();
        Some(failing)
    }

    /// Opens the device for two queues, through the page cache: there, a write is taken before
    /// anybody knows whether it can be kept.
    fn open(&mut self) {
        self.image = None;
        let mut options = Options::new(&self.device.0);
        (options.direct, options.queues) = (Direct::Off, 2);
        self.image = Some(Image::open(&options).unwrap());
        self.standing = Standing::default();
    }

    fn image(&self) -> &Image {
        self.image.as_ref().unwrap()
    }

    fn engine(&self, queue: u16, choice: Choice) -> Any<Pages> {
        let media = Arc::clone(self.image().media());
        Medium::Image(media, choice).engine(queue, 8).unwrap()
    }

    /// A flush as the device answers it.
    fn flush(&self, engine: &mut Any<Pages>) -> Result<u64, i32> {
        self.standing.after_flush(flush(engine))
    }

    /// From here on, what is written can be kept.
    fn mend(&self) {
        let done = std::process::Command::new("mount")
            .args(["-o", "remount,size=65536k"])
            .arg(self.small.0.path())
            .status();
        assert!(done.unwrap().success());
    }
}

fn flush(engine: &mut Any<Pages>) -> Result<u64, i32> {
    one(engine, Operation::Flush, Pages::none()).1
}

fn write(engine: &mut Any<Pages>, offset: u64) -> Result<u64, i32> {
    one(engine, Operation::Write { offset }, Pages::new(&[MIB], &vec![7; MIB])).1
}

#[test]
fn a_write_back_that_failed_fails_every_flush_until_the_image_is_opened_anew() {
    for choice in [Choice::Uring, Choice::Blocking] {
        let Some(mut failing) = Failing::new() else { return };
        let mut writer = failing.engine(0, choice);
        let mut other = failing.engine(1, choice);
        assert_eq!(failing.flush(&mut writer), Ok(0), "{choice:?}");
        for at in 0..8 {
            assert_eq!(write(&mut writer, at * MIB as u64), Ok(MIB as u64), "{choice:?}");
        }
        assert_eq!(
            failing.flush(&mut other),
            Err(libc::EIO),
            "{choice:?}: a queue that wrote nothing"
        );
        assert_eq!(failing.standing.lost(), Some(libc::EIO));
        assert_eq!(failing.flush(&mut writer), Err(libc::EIO), "{choice:?}");
        // What was lost stays lost, however well the device does from here on.
        failing.mend();
        assert_eq!(write(&mut writer, 0), Ok(MIB as u64));
        for _ in 0..3 {
            assert_eq!(failing.flush(&mut writer), Err(libc::EIO), "{choice:?}");
            assert_eq!(failing.flush(&mut other), Err(libc::EIO), "{choice:?}");
        }
        // Nor do queues that connect again forget it.
        drop((writer, other));
        assert_eq!(failing.flush(&mut failing.engine(0, choice)), Err(libc::EIO), "{choice:?}");
        failing.open();
        let mut writer = failing.engine(0, choice);
        assert_eq!(write(&mut writer, 0), Ok(MIB as u64));
        assert_eq!(failing.flush(&mut writer), Ok(0), "{choice:?}: opened anew, all is well");
        drop(writer);
    }
}

#[test]
fn every_queue_is_told_by_the_kernel_itself() {
    let Some(failing) = Failing::new() else { return };
    let media = Arc::clone(failing.image().media());
    for at in 0..8 {
        assert!(write(&mut failing.engine(0, Choice::Blocking), at * MIB as u64).is_ok());
    }
    // Past the engines: each description has its own report to give.
    let told = |queue| fdatasync(media.file(queue).unwrap());
    assert_eq!(told(0), Err(nix::errno::Errno::EIO));
    assert_eq!(told(1), Err(nix::errno::Errno::EIO));
    assert!(media.file(2).is_none());
}

#[test]
fn a_full_file_system_fails_the_write_and_not_the_flush() {
    for choice in [Choice::Auto, Choice::Blocking] {
        let Some(small) = Small::new(1024) else { return };
        let mut options = Options::new(small.0.path().join("disk.img"));
        options.size = Some(64 << 20);
        let image = Image::open(&options).unwrap();
        let medium = Medium::Image(Arc::clone(image.media()), choice);
        let mut engine = medium.engine::<Pages>(0, 8).unwrap();
        let results: Vec<_> = (0..4).map(|at| write(&mut engine, at * MIB as u64)).collect();
        assert_eq!(results.last(), Some(&Err(libc::ENOSPC)), "{choice:?}");
        assert_eq!(flush(&mut engine), Ok(0), "{choice:?}");
        // Room that is made can be used.
        let discard = Operation::Discard { offset: 0, len: 64 << 20, secure: false };
        assert_eq!(one(&mut engine, discard, Pages::none()).1, Ok(0), "{choice:?}");
        let held = Pages::new(&[4096], &[1; 4096]);
        assert_eq!(one(&mut engine, Operation::Write { offset: 0 }, held).1, Ok(4096));
    }
}

#[test]
fn a_file_promises_no_secure_discard_and_an_image_cut_short_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    for choice in [Choice::Auto, Choice::Blocking] {
        let path = home.path().join(format!("{choice:?}.img"));
        let mut options = Options::new(&path);
        options.size = Some(1 << 20);
        let image = Image::open(&options).unwrap();
        let medium = Medium::Image(Arc::clone(image.media()), choice);
        assert!(medium.geometry().discard.is_some_and(|limits| !limits.secure));
        let mut engine = medium.engine::<Pages>(0, 8).unwrap();
        let erase = Operation::Discard { offset: 0, len: 4096, secure: true };
        assert_eq!(one(&mut engine, erase, Pages::none()).1, Err(libc::EOPNOTSUPP));
        // Somebody truncates what we serve.
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let read = Operation::Read { offset: 0 };
        let (_, result) = one(&mut engine, read, Pages::new(&[8192], &[]));
        assert_eq!(result, Err(libc::EIO), "{choice:?}");
        assert_eq!(one(&mut engine, read, Pages::new(&[4096], &[])).1, Ok(4096));
    }
}

/// Has the kernel refuse io_uring to this thread from here on.
fn refuse_io_uring(errno: i32) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        // The system call's number comes first in what a filter sees.
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the call takes plain numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program lives until the call returns; the kernel copies it.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) }, 0);
}

#[test]
fn without_io_uring_plain_calls_do_it() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        // A filter holds for the thread that installs it.
        let refused = std::thread::spawn(move || {
            refuse_io_uring(errno);
            let home = tempfile::tempdir().unwrap();
            let mut options = Options::new(home.path().join("disk.img"));
            options.size = Some(1 << 20);
            let image = Image::open(&options).unwrap();
            let medium = |choice| Medium::Image(Arc::clone(image.media()), choice);
            let mut engine = medium(Choice::Auto).engine::<Pages>(0, 4).unwrap();
            assert_eq!(engine.name(), "blocking");
            let held = Pages::new(&[512, 512], &[5; 1024]);
            assert_eq!(one(&mut engine, Operation::Write { offset: 512 }, held).1, Ok(1024));
            assert_eq!(flush(&mut engine), Ok(0));
            let error = medium(Choice::Uring).engine::<Pages>(0, 4).err().unwrap();
            assert_eq!(error.errno, errno);
            assert!(error.to_string().contains("use io_uring"), "{error}");
        });
        refused.join().unwrap();
    }
}
