//! What the kernel lets a medium do with pages that are mapped, or granted.
//!
//! `DOMKIT_SCRATCH` names a file or block device that may be overwritten and takes O_DIRECT.
#![expect(unsafe_code, reason = "hands the memory's address to the kernel")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use hypervisor::PAGE_SIZE;
use hypervisor::memory::{Access, Memory, Using as _};
use io_uring::{IoUring, opcode, types};

use crate::{domain, granted, page};

fn scratch(direct: bool) -> File {
    let path = std::env::var("DOMKIT_SCRATCH").unwrap_or_else(|_| "/work/scratch".to_owned());
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.custom_flags(if direct { libc::O_DIRECT } else { 0 });
    let file = options.open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    file.write_all_at(&vec![0; page(4)], 0).ok();
    file
}

/// What came of a call that moves two pages.
fn said(moved: isize) -> Result<(), i32> {
    match moved {
        moved if moved == page(2) as isize => Ok(()),
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
        other => panic!("{other} bytes"),
    }
}

fn write(file: &File, from: &impl Memory) -> Result<(), i32> {
    let base = from.base().cast();
    // SAFETY: the memory has two pages.
    said(unsafe { libc::pwrite(file.as_raw_fd(), base, page(2), 0) })
}

fn read(file: &File, into: &impl Memory) -> Result<(), i32> {
    let base = into.base().cast();
    // SAFETY: the memory has two pages.
    said(unsafe { libc::pread(file.as_raw_fd(), base, page(2), 0) })
}

/// Registers the memory and reads into it as a fixed buffer.
fn fixed(file: &File, into: &impl Memory) -> Result<(), i32> {
    let mut ring = IoUring::new(4).unwrap();
    let part = libc::iovec { iov_base: into.base().cast(), iov_len: page(2) };
    // SAFETY: the memory outlives the ring.
    unsafe { ring.submitter().register_buffers(&[part]) }
        .map_err(|error| error.raw_os_error().unwrap())?;
    let read = opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), into.base(), page(2) as u32, 0);
    // SAFETY: as above.
    unsafe { ring.submission().push(&read.build()) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    let result = ring.completion().next().unwrap().result();
    if result < 0 { Err(-result) } else { said(result as isize) }
}

/// Reads into the memory through io_uring, not registered.
fn plain(file: &File, into: &impl Memory) -> Result<(), i32> {
    let mut ring = IoUring::new(4).unwrap();
    let read = opcode::Read::new(types::Fd(file.as_raw_fd()), into.base(), page(2) as u32);
    // SAFETY: the memory outlives the ring.
    unsafe { ring.submission().push(&read.build()) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    let result = ring.completion().next().unwrap().result();
    if result < 0 { Err(-result) } else { said(result as isize) }
}

fn word(result: &Result<(), i32>) -> String {
    match result {
        Ok(()) => "works".to_owned(),
        Err(errno) => std::io::Error::from_raw_os_error(*errno).to_string(),
    }
}

#[test]
#[ignore = "needs Xen: cargo testbed run hypervisor"]
fn what_works_with_which_memory() {
    let domain = domain();
    let (memory, grefs) = granted(&domain, 2, Access::ReadWrite);
    let mapped = domain.map(domain.id(), &grefs, Access::ReadWrite).unwrap();
    let read_only = domain.map(domain.id(), &grefs, Access::ReadOnly).unwrap();
    for direct in [false, true] {
        let file = scratch(direct);
        let how = if direct { "direct" } else { "buffered" };
        for (name, memory) in [("mapped", &mapped as &dyn Bytes), ("granted", &memory)] {
            memory.set(7);
            let wrote = memory.write(&file);
            memory.set(0);
            let results = [("read", memory.read(&file)), ("uring read", memory.plain(&file))];
            for (what, result) in &results {
                println!("{how} {what} into {name}: {}", word(result));
            }
            println!("{how} write from {name}: {}", word(&wrote));
            println!("{how} fixed read into {name}: {}", word(&memory.fixed(&file)));
            if wrote.is_ok() && results[0].1.is_ok() {
                assert!(memory.all(7), "{how} {name}: what was read is not what was written");
            }
            // Whatever else, the page cache copies to and from any memory.
            if !direct {
                assert_eq!((wrote, results[0].1), (Ok(()), Ok(())), "{name}");
            }
        }
        println!("{how} write from mapped read-only: {}", word(&write(&file, &read_only)));
        let refused = read(&file, &read_only).unwrap_err();
        assert_eq!(refused, libc::EFAULT, "reading into what may only be read");
    }
}

/// Memory of either kind.
trait Bytes {
    fn set(&self, byte: u8);
    fn all(&self, byte: u8) -> bool;
    fn write(&self, file: &File) -> Result<(), i32>;
    fn read(&self, file: &File) -> Result<(), i32>;
    fn plain(&self, file: &File) -> Result<(), i32>;
    fn fixed(&self, file: &File) -> Result<(), i32>;
}

impl<M: Memory> Bytes for M {
    fn set(&self, byte: u8) {
        self.fill(0, page(2), byte).unwrap();
    }

    fn all(&self, byte: u8) -> bool {
        let mut bytes = [0; 2 * PAGE_SIZE];
        self.read_at(0, &mut bytes).unwrap();
        bytes.iter().all(|seen| *seen == byte)
    }

    fn write(&self, file: &File) -> Result<(), i32> {
        write(file, self)
    }

    fn read(&self, file: &File) -> Result<(), i32> {
        read(file, self)
    }

    fn plain(&self, file: &File) -> Result<(), i32> {
        plain(file, self)
    }

    fn fixed(&self, file: &File) -> Result<(), i32> {
        fixed(file, self)
    }
}
