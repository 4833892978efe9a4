//! An external fio I/O engine that drives a disk through blkfront.
//!
//! `ioengine=external:/path/to/libdomkit_fio.so` with `thread=1`; `filename` names the disk, `xvda`
//! for instance. fio becomes a domain of the hypervisor that runs on this machine (or that is
//! started now), called `guest`, and each of its jobs takes a queue of the disk. fio's buffers are
//! granted to the backend themselves, so nothing is copied; a measurement trusts its backend.
//!
//! | environment variable  | meaning                                           | else      |
//! |-----------------------|---------------------------------------------------|-----------|
//! | `DOMKIT_FIO_DOMAIN`   | what to be called as a domain                     | `guest`   |
//! | `DOMKIT_FIO_MEMORY`   | memory to take as a domain, in MiB                | 256       |
//! | `DOMKIT_FIO_QUEUES`   | the most queues, and so jobs at a time            | 4         |
//! | `DOMKIT_FIO_BOUNCE`   | 1: copy through the queue's own pages instead     | 0         |
//! | `DOMKIT_FIO_POLL`     | how long to look before sleeping, in microseconds | adaptive  |
//! | `DOMKIT_FIO_TIMEOUT`  | how long to wait for the disk, in seconds         | 30        |
//!
//! The files: `layout` knows fio's structures, `disk` is the one disk of this process, `job` is one
//! job's queue; this one is what fio calls.
#![expect(unsafe_code, reason = "fio calls C functions with pointers to its structures")]

mod disk;
mod job;
mod layout;

use core::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::job::Job;
use crate::layout::{Operations, Thread, Unit};

/// What fio looks for in a loaded engine.
#[unsafe(no_mangle)]
static ioengine: Operations = Operations {
    list: [const { AtomicUsize::new(0) }; 2],
    name: c"domkit".as_ptr(),
    version: layout::VERSION,
    flags: layout::FLAG_DISKLESS | layout::FLAG_NO_EXTEND | layout::FLAG_NO_UTILISATION,
    dlhandle: AtomicUsize::new(0),
    setup: Some(setup),
    init: Some(init),
    post_init: 0,
    prep: 0,
    queue: Some(queue),
    commit: Some(commit),
    getevents: Some(getevents),
    event: Some(event),
    errdetails: 0,
    cancel: 0,
    cleanup: Some(cleanup),
    open_file: Some(nothing),
    close_file: Some(nothing),
    invalidate: Some(nothing),
    unlink_file: 0,
    get_file_size: 0,
    prepopulate_file: 0,
    terminate: 0,
    iomem_alloc: Some(iomem_alloc),
    iomem_free: Some(iomem_free),
    rest: [0; 8],
};

/// Whether the structures of the fio that calls us are those we know.
fn known(thread: Thread) -> bool {
    std::ptr::eq(thread.operations(), &raw const ioengine)
}

fn complain(error: &dyn std::fmt::Display) -> c_int {
    eprintln!("domkit: {error}");
    1
}

/// The job that was made for `thread` by [`init`].
fn job<'a>(thread: Thread) -> Option<&'a mut Job> {
    // SAFETY: `init` put a `Job` there and `cleanup` takes it away; fio calls the functions of one
    // job from that job's thread only, one at a time.
    unsafe { thread.data().cast::<Job>().as_mut() }
}

/// The unit that was queued with its address as its request's tag.
pub(crate) fn queued(tag: u64) -> Unit {
    // SAFETY: only a `Job` calls this, with the tag of one of its completions, and it gave that
    // request the address of the unit; fio keeps its units while the job lives.
    unsafe { Unit::from_address(tag) }
}

/// Says how large the files are: called once for each job, before any runs.
unsafe extern "C" fn setup(thread: *mut c_void) -> c_int {
    // SAFETY: fio calls this with its `thread_data`.
    let thread = unsafe { Thread::new(thread) };
    if !known(thread) {
        return complain(&"this fio is not 3.33 as Debian 12 has it: its structures differ");
    }
    let files = thread.files();
    let [file] = files.as_slice() else {
        return complain(&"each job needs one file: the disk's name, as filename=xvda");
    };
    match disk::announce(&file.name()) {
        Ok(size) => {
            file.set_size(size);
            0
        }
        Err(error) => complain(&error),
    }
}

/// Gives a job its queue: called in the job's thread.
unsafe extern "C" fn init(thread: *mut c_void) -> c_int {
    // SAFETY: fio calls this with its `thread_data`.
    let thread = unsafe { Thread::new(thread) };
    if !known(thread) {
        return complain(&"this fio is not 3.33 as Debian 12 has it: its structures differ");
    }
    match Job::new(thread.depth()) {
        Ok(job) => {
            thread.set_data(Box::into_raw(Box::new(job)).cast());
            0
        }
        Err(error) => complain(&error),
    }
}

unsafe extern "C" fn cleanup(thread: *mut c_void) {
    // SAFETY: fio calls this with its `thread_data`.
    let thread = unsafe { Thread::new(thread) };
    let data = thread.data().cast::<Job>();
    thread.set_data(std::ptr::null_mut());
    if !data.is_null() {
        // SAFETY: `init` made it with `Box::into_raw`, and it was there until now.
        drop(unsafe { Box::from_raw(data) });
    }
    disk::leave();
}

unsafe extern "C" fn queue(thread: *mut c_void, unit: *mut c_void) -> c_int {
    // SAFETY: fio calls this with its `thread_data`...
    let thread = unsafe { Thread::new(thread) };
    // SAFETY: ... and a unit of it.
    let unit = unsafe { Unit::new(unit) };
    match job(thread) {
        Some(job) => job.queue(unit),
        None => layout::Q_BUSY,
    }
}

unsafe extern "C" fn commit(thread: *mut c_void) -> c_int {
    // SAFETY: fio calls this with its `thread_data`.
    if let Some(job) = job(unsafe { Thread::new(thread) }) {
        job.commit();
    }
    0
}

unsafe extern "C" fn getevents(
    thread: *mut c_void,
    least: c_uint,
    _most: c_uint,
    patience: *const libc::timespec,
) -> c_int {
    // SAFETY: fio calls this with its `thread_data`.
    let thread = unsafe { Thread::new(thread) };
    // SAFETY: fio gives a time that it owns, or none.
    let patience = unsafe { patience.as_ref() }.map(|time| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
        Duration::new(seconds, nanoseconds)
    });
    let Some(job) = job(thread) else { return -libc::EINVAL };
    match job.wait(least as usize, patience) {
        Ok(count) => c_int::try_from(count).unwrap_or(c_int::MAX),
        Err(error) => {
            complain(&error);
            -libc::EIO
        }
    }
}

unsafe extern "C" fn event(thread: *mut c_void, number: c_int) -> *mut c_void {
    // SAFETY: fio calls this with its `thread_data`.
    let job = job(unsafe { Thread::new(thread) });
    let unit = job.zip(usize::try_from(number).ok()).and_then(|(job, number)| job.event(number));
    unit.map_or(std::ptr::null_mut(), Unit::pointer)
}

unsafe extern "C" fn nothing(_thread: *mut c_void, _file: *mut c_void) -> c_int {
    0
}

unsafe extern "C" fn iomem_alloc(thread: *mut c_void, len: usize) -> c_int {
    // SAFETY: fio calls this with its `thread_data`.
    let thread = unsafe { Thread::new(thread) };
    let Some(job) = job(thread) else { return 1 };
    match job.allocate(len) {
        Ok(buffer) => {
            thread.set_buffer(buffer);
            0
        }
        Err(error) => complain(&error),
    }
}

unsafe extern "C" fn iomem_free(thread: *mut c_void) {
    // SAFETY: fio calls this with its `thread_data`.
    let thread = unsafe { Thread::new(thread) };
    thread.set_buffer(std::ptr::null_mut());
    if let Some(job) = job(thread) {
        job.free();
    }
}
