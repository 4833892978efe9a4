//! What is asked of the kernel's Xen devices: the one place that knows their numbers and structs.
//!
//! Source: the kernel's `include/uapi/xen/{gntdev,gntalloc,evtchn}.h`. Their requests are numbered
//! without a direction (`_IOC_NONE`) and so by group, number and size of the argument only. Structs
//! are written as the words they consist of, in the machine's own byte order. Units: pages.
#![expect(unsafe_code, reason = "ioctl takes raw pointers")]

use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;

use crate::memory::{CopyOp, Direction, GrantStatus};
use crate::{DomId, EventPort, GrantRef, PAGE_SIZE};

/// `_IOC(_IOC_NONE, group, number, size)`, where `_IOC_NONE` is zero: on x86, Arm and RISC-V.
const fn request(group: u8, number: u8, size: u16) -> libc::Ioctl {
    ((size as libc::Ioctl) << 16) | ((group as libc::Ioctl) << 8) | number as libc::Ioctl
}

const GNTDEV_MAP_GRANT_REF: libc::Ioctl = request(b'G', 0, 24);
const GNTDEV_UNMAP_GRANT_REF: libc::Ioctl = request(b'G', 1, 16);
const GNTALLOC_ALLOC_GREF: libc::Ioctl = request(b'G', 5, 24);
const GNTALLOC_DEALLOC_GREF: libc::Ioctl = request(b'G', 6, 16);
const GNTDEV_SET_UNMAP_NOTIFY: libc::Ioctl = request(b'G', 7, 16);
const GNTDEV_GRANT_COPY: libc::Ioctl = request(b'G', 8, 16);
const EVTCHN_BIND_INTERDOMAIN: libc::Ioctl = request(b'E', 1, 8);
const EVTCHN_BIND_UNBOUND_PORT: libc::Ioctl = request(b'E', 2, 4);
const EVTCHN_NOTIFY: libc::Ioctl = request(b'E', 4, 4);

/// `GNTALLOC_FLAG_WRITABLE`.
const WRITABLE: u16 = 1;
/// `GNTCOPY_source_gref`, `GNTCOPY_dest_gref` (grant_table.h).
const SOURCE_GREF: u16 = 1;
const DEST_GREF: u16 = 2;

/// Asks, with an argument of plain words that the kernel reads and writes.
fn ask<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, words: &mut [T]) -> nix::Result<c_int> {
    // SAFETY: the descriptor is open. Every caller below gives the words that the request's struct
    // consists of, as many as the struct says there are, and they are ours alone for the call. Any
    // value of them is valid.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, words.as_mut_ptr()) })
}

/// Two 32-bit fields of a struct, one after the other.
fn pair(first: u32, second: u32) -> u64 {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// The 32-bit field that comes first of two.
fn first(pair: u64) -> u32 {
    let [a, b, c, d, ..] = pair.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// Names grants to be mapped; gives where in the device's file they are (bytes).
pub(super) fn map(gntdev: BorrowedFd<'_>, peer: DomId, grefs: &[GrantRef]) -> nix::Result<u64> {
    let count = u32::try_from(grefs.len()).map_err(|_| Errno::EINVAL)?;
    let mut words = Vec::with_capacity(grefs.len().saturating_add(2));
    words.extend([pair(count, 0), 0]);
    words.extend(grefs.iter().map(|gref| pair(peer.get().into(), gref.0)));
    ask(gntdev, GNTDEV_MAP_GRANT_REF, &mut words)?;
    words.get(1).copied().ok_or(Errno::EINVAL)
}

/// Forgets `count` grants that were named and are not mapped any more.
pub(super) fn unmap(gntdev: BorrowedFd<'_>, index: u64, count: u32) -> nix::Result<()> {
    ask(gntdev, GNTDEV_UNMAP_GRANT_REF, &mut [index, pair(count, 0)]).map(drop)
}

/// Says what to do when the page at `index` is unmapped, whoever does that: `action` is of
/// `UNMAP_NOTIFY_CLEAR_BYTE` (1) and `UNMAP_NOTIFY_SEND_EVENT` (2).
pub(super) fn on_unmap(
    gntdev: BorrowedFd<'_>,
    index: u64,
    action: u32,
    port: u32,
) -> nix::Result<()> {
    ask(gntdev, GNTDEV_SET_UNMAP_NOTIFY, &mut [index, pair(action, port)]).map(drop)
}

/// `struct gntdev_grant_copy_segment`.
#[repr(C)]
struct Segment {
    source: u64,
    dest: u64,
    len: u16,
    flags: u16,
    status: i16,
}

/// Copies, and sets every operation's status. An operation that crosses the end of a page of the
/// peer's would fail all of them (`EINVAL`), so it is not handed on.
pub(super) fn copy(gntdev: BorrowedFd<'_>, peer: DomId, ops: &mut [CopyOp<'_>]) -> nix::Result<()> {
    let mut segments: Vec<Segment> =
        ops.iter_mut().filter(|op| fits(op)).map(|op| segment(peer, op)).collect();
    if !segments.is_empty() {
        let count = u32::try_from(segments.len()).map_err(|_| Errno::EINVAL)?;
        let list = segments.as_mut_ptr().expose_provenance() as u64;
        // The addresses in the segments are those of the operations' own bytes, which are borrowed
        // for ours alone for this call; the kernel writes to nothing but them and the statuses.
        ask(gntdev, GNTDEV_GRANT_COPY, &mut [pair(count, 0), list])?;
    }
    let mut done = segments.iter();
    for op in ops {
        op.status = match fits(op) {
            true => done.next().map_or(GrantStatus::GENERAL_ERROR, |done| GrantStatus(done.status)),
            false => GrantStatus::BAD_COPY_ARG,
        };
    }
    Ok(())
}

fn fits(op: &CopyOp<'_>) -> bool {
    usize::from(op.offset).saturating_add(op.local.len()) <= PAGE_SIZE
}

fn segment(peer: DomId, op: &mut CopyOp<'_>) -> Segment {
    let [a, b] = op.offset.to_ne_bytes();
    let [c, d] = peer.get().to_ne_bytes();
    let foreign = pair(op.gref.0, u32::from_ne_bytes([a, b, c, d]));
    let local = op.local.as_mut_ptr().expose_provenance() as u64;
    let (source, dest, flags) = match op.direction {
        Direction::FromPeer => (foreign, local, SOURCE_GREF),
        Direction::ToPeer => (local, foreign, DEST_GREF),
    };
    let len = u16::try_from(op.local.len()).unwrap_or(u16::MAX);
    Segment { source, dest, len, flags, status: GrantStatus::GENERAL_ERROR.0 }
}

/// A new page that `peer` is granted; gives where in the device's file it is (bytes), and its
/// reference.
pub(super) fn allocate(
    gntalloc: BorrowedFd<'_>,
    peer: DomId,
    writable: bool,
) -> nix::Result<(u64, GrantRef)> {
    let [a, b] = peer.get().to_ne_bytes();
    let [c, d] = if writable { WRITABLE } else { 0 }.to_ne_bytes();
    let mut words = [pair(u32::from_ne_bytes([a, b, c, d]), 1), 0, 0];
    ask(gntalloc, GNTALLOC_ALLOC_GREF, &mut words)?;
    let [_, index, gref] = words;
    Ok((index, GrantRef(first(gref))))
}

/// Gives one such page up. The kernel frees it when nobody has it mapped any more.
pub(super) fn free(gntalloc: BorrowedFd<'_>, index: u64) -> nix::Result<()> {
    ask(gntalloc, GNTALLOC_DEALLOC_GREF, &mut [index, pair(1, 0)]).map(drop)
}

/// Binds to `port` of `peer`; gives our own port.
pub(super) fn bind(evtchn: BorrowedFd<'_>, peer: DomId, port: EventPort) -> nix::Result<EventPort> {
    let bound = ask(evtchn, EVTCHN_BIND_INTERDOMAIN, &mut [u32::from(peer.get()), port.0])?;
    Ok(EventPort(bound.unsigned_abs()))
}

/// A port that `peer` may bind to.
pub(super) fn allocate_port(evtchn: BorrowedFd<'_>, peer: DomId) -> nix::Result<EventPort> {
    let port = ask(evtchn, EVTCHN_BIND_UNBOUND_PORT, &mut [u32::from(peer.get())])?;
    Ok(EventPort(port.unsigned_abs()))
}

/// Notifies whoever is bound to our `port`.
pub(super) fn notify(evtchn: BorrowedFd<'_>, port: EventPort) -> nix::Result<()> {
    ask(evtchn, EVTCHN_NOTIFY, &mut [port.0]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_headers() {
        // Printed by a C program from the headers, on x86-64.
        assert_eq!(GNTDEV_MAP_GRANT_REF, 0x0018_4700);
        assert_eq!(GNTDEV_UNMAP_GRANT_REF, 0x0010_4701);
        assert_eq!(GNTALLOC_ALLOC_GREF, 0x0018_4705);
        assert_eq!(GNTALLOC_DEALLOC_GREF, 0x0010_4706);
        assert_eq!(GNTDEV_SET_UNMAP_NOTIFY, 0x0010_4707);
        assert_eq!(GNTDEV_GRANT_COPY, 0x0010_4708);
        assert_eq!(EVTCHN_BIND_INTERDOMAIN, 0x0008_4501);
        assert_eq!(EVTCHN_BIND_UNBOUND_PORT, 0x0004_4502);
        assert_eq!(EVTCHN_NOTIFY, 0x0004_4504);
    }

    #[test]
    fn a_segment_is_laid_out_as_in_the_header() {
        assert_eq!(size_of::<Segment>(), 24);
        let mut bytes = [0_u8; 7];
        let at = bytes.as_ptr().addr() as u64;
        let mut op = CopyOp {
            gref: GrantRef(0x0102_0304),
            offset: 0x0506,
            direction: Direction::ToPeer,
            local: &mut bytes,
            status: GrantStatus::OKAY,
        };
        let made = segment(DomId::new(0x0708).unwrap(), &mut op);
        assert_eq!((made.source, made.len, made.flags), (at, 7, DEST_GREF));
        let foreign = u64::from_ne_bytes(made.dest.to_ne_bytes());
        #[cfg(target_endian = "little")]
        assert_eq!(foreign, 0x0708_0506_0102_0304);
        op.direction = Direction::FromPeer;
        let made = segment(DomId::new(0x0708).unwrap(), &mut op);
        assert_eq!((made.source, made.dest, made.flags), (foreign, at, SOURCE_GREF));
    }
}
