//! Files that have packets.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::rc::Rc;

use uring::Operation;

use super::{Held, collect, ring};

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
fn packets_come_whole_in_order_and_when_they_are_there() {
    let Some(mut ring) = ring(16) else { return };
    let alive = Rc::new(());
    let (ours, mut theirs) = packets();
    let file = ring.add_packets(ours.as_fd()).unwrap();
    for packet in [&b"one"[..], b"second", b"3"] {
        theirs.write_all(packet).unwrap();
    }
    for tag in 0..5 {
        let held = Held::new(&[2, 30], 1, &[], tag, &alive);
        assert!(ring.begin(Operation::Receive { file }, held).is_ok());
    }
    ring.kick().unwrap();
    let done = collect(&mut ring, 3);
    let results: Vec<_> = done.iter().map(|done| (done.held.tag, done.result)).collect();
    assert_eq!(results, [(0, Ok(3)), (1, Ok(6)), (2, Ok(1))]);
    assert_eq!(done[1].held.bytes()[..6], *b"second");
    let mut none = Vec::new();
    ring.completed(&mut none).unwrap();
    assert!(none.is_empty(), "nothing more is there yet");
    theirs.write_all(b"4th").unwrap();
    theirs.write_all(b"fifth").unwrap();
    let done = collect(&mut ring, 2);
    assert_eq!([done[0].result, done[1].result], [Ok(3), Ok(5)]);
    assert_eq!(done[1].held.bytes()[..5], *b"fifth");
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
fn packets_come_and_go_so_also_where_the_kernel_knows_of_no_at_once() {
    let Some(mut ring) = ring(16) else { return };
    let alive = Rc::new(());
    let (ours, mut theirs) = terminal();
    assert!(!at_once(&ours), "this kernel can, and this shows nothing");
    let file = ring.add_packets(ours.as_fd()).unwrap();
    for round in 0..3 {
        for tag in 0..3 {
            let held = Held::new(&[2, 30], 1, &[], tag, &alive);
            assert!(ring.begin(Operation::Receive { file }, held).is_ok());
        }
        ring.kick().unwrap();
        for line in [&b"one\n"[..], b"second\n", b"3\n"] {
            theirs.write_all(line).unwrap();
        }
        let done = collect(&mut ring, 3);
        let results: Vec<_> = done.iter().map(|done| done.result).collect();
        assert_eq!(results, [Ok(4), Ok(7), Ok(2)], "{round}");
        assert_eq!(done[1].held.bytes()[..7], *b"second\n");
        for packet in [b"back", b"once"] {
            let held = Held::new(&[2, 2], 1, packet, 0, &alive);
            assert!(ring.begin(Operation::Send { file }, held).is_ok());
        }
        assert!(collect(&mut ring, 2).iter().all(|done| done.result == Ok(4)));
        // Behind what it echoes.
        let mut said = Vec::new();
        while !said.ends_with(b"backonce") {
            let mut into = [0; 64];
            let len = theirs.read(&mut into).unwrap();
            assert!(len > 0, "{said:?}");
            said.extend(&into[..len]);
        }
    }
    // Whoever goes does not wait for what may never come.
    let held = Held::new(&[8], 0, &[], 0, &alive);
    assert!(ring.begin(Operation::Receive { file }, held).is_ok());
    ring.kick().unwrap();
    drop(ring);
    assert_eq!(Rc::strong_count(&alive), 1, "everything held was freed");
}
