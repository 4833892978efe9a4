//! Files that have packets.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::rc::Rc;

use uring::Operation;

use super::{Held, add, collect, one, ring};

/// Two ends between which packets go.
fn packets() -> (File, File) {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: there is room for two descriptors.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }, 0);
    // SAFETY: both were opened just now and belong to nobody else.
    let [one, other] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    (one.into(), other.into())
}

#[test]
fn packets_come_whole_in_order_and_at_once_or_not_at_all() {
    let Some(mut ring) = ring(16) else { return };
    let alive = Rc::new(());
    let (ours, mut theirs) = packets();
    let file = add(&mut ring, &ours);
    for packet in [&b"one"[..], b"second", b"3"] {
        theirs.write_all(packet).unwrap();
    }
    for tag in 0..5 {
        let held = Held::new(&[2, 30], 1, &[], tag, &alive);
        assert!(ring.begin(Operation::Receive { file }, held).is_ok());
    }
    ring.kick().unwrap();
    let done = collect(&mut ring, 5);
    let results: Vec<_> = done.iter().map(|done| (done.held.tag, done.result)).collect();
    assert_eq!(
        results,
        [(0, Ok(3)), (1, Ok(6)), (2, Ok(1)), (3, Err(libc::EAGAIN)), (4, Err(libc::EAGAIN))]
    );
    assert_eq!(done[1].held.bytes()[..6], *b"second");
    for packet in [&b"there"[..], b"and", b"back"] {
        let held = Held::new(&[2, packet.len() - 2], 1, packet, 0, &alive);
        assert!(ring.begin(Operation::Send { file }, held).is_ok());
    }
    assert!(collect(&mut ring, 3).iter().all(|done| done.result.is_ok()));
    for packet in [&b"there"[..], b"and", b"back"] {
        let mut into = [0; 40];
        let len = theirs.read(&mut into).unwrap();
        assert_eq!(into[..len], *packet);
    }
}

/// A terminal and what is behind it: each line is a packet, and no ring has one "at once or not at all".
fn terminal() -> (File, File) {
    // SAFETY: takes no memory.
    let behind = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY) };
    assert!(behind >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: it was opened just now and belongs to nobody else.
    let behind = unsafe { OwnedFd::from_raw_fd(behind) };
    let mut name = [0; 64];
    let fd = behind.as_raw_fd();
    // SAFETY: the name has the room that is told.
    assert_eq!(unsafe { libc::ptsname_r(fd, name.as_mut_ptr(), name.len()) }, 0);
    // SAFETY: takes no memory.
    assert_eq!(unsafe { libc::unlockpt(fd) }, 0);
    // SAFETY: the name has an end.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().unwrap();
    (File::options().read(true).write(true).open(name).unwrap(), behind.into())
}

/// Whether the kernel moves something of `file` at once or not at all, where asked to.
fn at_once(file: &File) -> bool {
    let mut byte = 0_u8;
    let run = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: there is one run, of a byte that is ours.
    let moved = unsafe { libc::preadv2(file.as_raw_fd(), &raw const run, 1, -1, libc::RWF_NOWAIT) };
    moved >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EOPNOTSUPP)
}

#[test]
fn packets_come_so_also_where_the_kernel_cannot_have_them_by_a_ring() {
    let Some(mut ring) = ring(16) else { return };
    let alive = Rc::new(());
    let (ours, mut theirs) = terminal();
    assert!(!at_once(&ours), "this kernel can, and this shows nothing");
    let file = ring.add_packets(ours.as_fd()).unwrap();
    for round in 0..3 {
        for line in [&b"one\n"[..], b"second\n", b"3\n"] {
            theirs.write_all(line).unwrap();
        }
        for tag in 0..5 {
            let held = Held::new(&[2, 30], 1, &[], tag, &alive);
            assert!(ring.begin(Operation::Receive { file }, held).is_ok());
        }
        let done = collect(&mut ring, 5);
        let results: Vec<_> = done.iter().map(|done| (done.held.tag, done.result)).collect();
        let none = Err(libc::EAGAIN);
        assert_eq!(results, [(0, Ok(4)), (1, Ok(7)), (2, Ok(2)), (3, none), (4, none)], "{round}");
        assert_eq!(done[1].held.bytes()[..7], *b"second\n");
        // What it echoes is not looked at.
        assert!(theirs.read(&mut [0; 64]).unwrap() > 0);
        let held = Held::new(&[2, 4], 1, b"back", 0, &alive);
        assert_eq!(one(&mut ring, Operation::Send { file }, held).1, Ok(6));
        let mut into = [0; 64];
        let len = theirs.read(&mut into).unwrap();
        assert_eq!(into[..len], *b"back\0\0");
    }
    // With nothing for the kernel, a wait does not wait, and nobody else is kept from it.
    let held = Held::new(&[8], 0, &[], 0, &alive);
    assert!(ring.begin(Operation::Receive { file }, held).is_ok());
    ring.wait(None).unwrap();
    assert!(ring.has_completions());
    drop(ring);
    assert_eq!(Rc::strong_count(&alive), 1, "everything held was freed");
}
