//! fio's structures, as far as this engine touches them.
//!
//! fio has no stable interface for engines: they are compiled against its headers. These offsets are
//! those of fio 3.33 on x86_64 (Debian 12), found in its debugging information; the engine's
//! version number (`FIO_IOOPS_VERSION` 31) and the place of our own operations in `thread_data`
//! tell whether the fio that loaded us is laid out so.
#![expect(unsafe_code, reason = "fio's structures are reached by offset")]

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::sync::atomic::AtomicUsize;

/// `FIO_IOOPS_VERSION` of fio 3.33.
pub(crate) const VERSION: c_int = 31;

/// `enum fio_ioengine_flags`: there is no file behind this; do not make it larger; no utilisation
/// of a kernel disk can be shown for it.
pub(crate) const FLAG_DISKLESS: c_int = 1 << 2;
pub(crate) const FLAG_NO_EXTEND: c_int = 1 << 3;
pub(crate) const FLAG_NO_UTILISATION: c_int = 1 << 4;

/// `enum fio_q_status`.
pub(crate) const Q_COMPLETED: c_int = 0;
pub(crate) const Q_QUEUED: c_int = 1;
pub(crate) const Q_BUSY: c_int = 2;

/// `struct ioengine_ops`.
#[repr(C)]
pub(crate) struct Operations {
    /// fio writes this, and `dlhandle`: atomics, so that we do not claim that they stay the same.
    pub(crate) list: [AtomicUsize; 2],
    pub(crate) name: *const c_char,
    pub(crate) version: c_int,
    pub(crate) flags: c_int,
    pub(crate) dlhandle: AtomicUsize,
    pub(crate) setup: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    pub(crate) init: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    pub(crate) post_init: usize,
    pub(crate) prep: usize,
    pub(crate) queue: Option<unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int>,
    pub(crate) commit: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    pub(crate) getevents:
        Option<unsafe extern "C" fn(*mut c_void, c_uint, c_uint, *const libc::timespec) -> c_int>,
    pub(crate) event: Option<unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void>,
    pub(crate) errdetails: usize,
    pub(crate) cancel: usize,
    pub(crate) cleanup: Option<unsafe extern "C" fn(*mut c_void)>,
    pub(crate) open_file: Option<unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int>,
    pub(crate) close_file: Option<unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int>,
    pub(crate) invalidate: Option<unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int>,
    pub(crate) unlink_file: usize,
    pub(crate) get_file_size: usize,
    pub(crate) prepopulate_file: usize,
    pub(crate) terminate: usize,
    pub(crate) iomem_alloc: Option<unsafe extern "C" fn(*mut c_void, usize) -> c_int>,
    pub(crate) iomem_free: Option<unsafe extern "C" fn(*mut c_void)>,
    pub(crate) rest: [usize; 8],
}

// SAFETY: fio reads and links the structure from one thread, while it loads the engine; we only ever
// take its address.
unsafe impl Sync for Operations {}

const _: () = {
    assert!(size_of::<Operations>() == 264);
    assert!(core::mem::offset_of!(Operations, setup) == 40);
    assert!(core::mem::offset_of!(Operations, event) == 96);
    assert!(core::mem::offset_of!(Operations, cleanup) == 120);
    assert!(core::mem::offset_of!(Operations, iomem_alloc) == 184);
};

/// What an I/O unit asks for (`enum fio_ddir`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Read,
    Write,
    Trim,
    Sync,
    Other(c_int),
}

/// `struct thread_data`: one job.
#[derive(Clone, Copy)]
pub(crate) struct Thread(*mut u8);

impl Thread {
    const IODEPTH: usize = 208;
    const NR_FILES: usize = 496;
    const FILES: usize = 188_832;
    const ORIG_BUFFER: usize = 189_056;
    const IO_OPS: usize = 189_952;
    const IO_OPS_DATA: usize = 189_968;

    /// # Safety
    ///
    /// `pointer` is fio's `struct thread_data`, laid out as this module says, and nobody else uses
    /// it while the result is in use.
    pub(crate) unsafe fn new(pointer: *mut c_void) -> Self {
        Self(pointer.cast())
    }

    fn at<T>(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset).cast()
    }

    /// The operations with which the job runs.
    pub(crate) fn operations(self) -> *const Operations {
        // SAFETY: as `new` was promised, this is the structure's pointer `io_ops`.
        unsafe { self.at::<*const Operations>(Self::IO_OPS).read() }
    }

    pub(crate) fn depth(self) -> u32 {
        // SAFETY: as above, its unsigned `o.iodepth`.
        unsafe { self.at::<u32>(Self::IODEPTH).read() }
    }

    /// The job's files.
    pub(crate) fn files(self) -> Vec<File> {
        // SAFETY: as above, its unsigned `o.nr_files`.
        let count = unsafe { self.at::<u32>(Self::NR_FILES).read() };
        // SAFETY: as above, its array `files` of so many pointers, or none before there are files.
        let files = unsafe { self.at::<*mut *mut u8>(Self::FILES).read() };
        if files.is_null() {
            return Vec::new();
        }
        (0..count as usize)
            // SAFETY: the array has `count` elements.
            .map(|index| File(unsafe { files.wrapping_add(index).read() }))
            .filter(|file| !file.0.is_null())
            .collect()
    }

    /// What the engine keeps for the job.
    pub(crate) fn data(self) -> *mut c_void {
        // SAFETY: as above, its pointer `io_ops_data`, which is the engine's own.
        unsafe { self.at::<*mut c_void>(Self::IO_OPS_DATA).read() }
    }

    pub(crate) fn set_data(self, data: *mut c_void) {
        // SAFETY: as above.
        unsafe { self.at::<*mut c_void>(Self::IO_OPS_DATA).write(data) };
    }

    /// Where the job's buffers are.
    pub(crate) fn set_buffer(self, buffer: *mut u8) {
        // SAFETY: as above, its pointer `orig_buffer`, which `iomem_alloc` is to set.
        unsafe { self.at::<*mut u8>(Self::ORIG_BUFFER).write(buffer) };
    }
}

/// `struct fio_file`.
#[derive(Clone, Copy)]
pub(crate) struct File(*mut u8);

impl File {
    const NAME: usize = 40;
    const REAL_SIZE: usize = 48;
    const FLAGS: usize = 364;
    /// `FIO_FILE_size_known`.
    const SIZE_KNOWN: u32 = 1 << 4;

    pub(crate) fn name(self) -> String {
        // SAFETY: `Thread::files` gave a file of fio's, whose name is a C string for as long as the
        // job lives.
        let name = unsafe { self.0.wrapping_add(Self::NAME).cast::<*const c_char>().read() };
        if name.is_null() {
            return String::new();
        }
        // SAFETY: as above.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }

    pub(crate) fn set_size(self, size: u64) {
        // SAFETY: as above, the file's `real_file_size`.
        unsafe { self.0.wrapping_add(Self::REAL_SIZE).cast::<u64>().write(size) };
        let flags = self.0.wrapping_add(Self::FLAGS).cast::<u32>();
        // SAFETY: as above, its `flags`.
        let old = unsafe { flags.read() };
        // SAFETY: as above.
        unsafe { flags.write(old | Self::SIZE_KNOWN) };
    }
}

/// `struct io_u`: one request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unit(*mut u8);

impl Unit {
    const DIRECTION: usize = 44;
    const OFFSET: usize = 72;
    const BUFFER: usize = 104;
    const LEN: usize = 112;
    const RESIDUE: usize = 136;
    const ERROR: usize = 144;

    /// # Safety
    ///
    /// `pointer` is one of fio's I/O units, which stays where it is while the job lives; and the
    /// memory it names is nobody else's while it is queued.
    pub(crate) unsafe fn new(pointer: *mut c_void) -> Self {
        Self(pointer.cast())
    }

    /// The unit that [`address`](Self::address) was asked of.
    ///
    /// # Safety
    ///
    /// As for [`new`](Self::new).
    pub(crate) unsafe fn from_address(address: u64) -> Self {
        Self(core::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0)))
    }

    pub(crate) fn address(self) -> u64 {
        self.0.expose_provenance() as u64
    }

    pub(crate) fn pointer(self) -> *mut c_void {
        self.0.cast()
    }

    fn get<T: Copy>(self, offset: usize) -> T {
        // SAFETY: as `new` was promised; the callers name the field's offset and type.
        unsafe { self.0.wrapping_add(offset).cast::<T>().read() }
    }

    pub(crate) fn direction(self) -> Direction {
        match self.get::<c_int>(Self::DIRECTION) {
            0 => Direction::Read,
            1 => Direction::Write,
            2 => Direction::Trim,
            3..=5 => Direction::Sync,
            other => Direction::Other(other),
        }
    }

    pub(crate) fn offset(self) -> u64 {
        self.get(Self::OFFSET)
    }

    pub(crate) fn buffer(self) -> *mut u8 {
        self.get(Self::BUFFER)
    }

    pub(crate) fn len(self) -> usize {
        self.get::<u64>(Self::LEN).try_into().unwrap_or(0)
    }

    /// A copy of the unit's memory.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let (buffer, len) = (self.buffer(), self.len());
        if buffer.is_null() {
            return vec![0; len];
        }
        // SAFETY: as `new` was promised: `len` bytes that are nobody else's while it is queued.
        unsafe { core::slice::from_raw_parts(buffer, len) }.to_vec()
    }

    /// Puts what was read into the unit's memory.
    pub(crate) fn fill(self, bytes: &[u8]) {
        let (buffer, len) = (self.buffer(), self.len().min(bytes.len()));
        if !buffer.is_null() {
            // SAFETY: as above, the other way round; `bytes` is ours, so the two do not overlap.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer, len) };
        }
    }

    /// How it ended: an error number, or 0.
    pub(crate) fn finish(self, error: u32) {
        let left = if error == 0 { 0 } else { self.len() as u64 };
        // SAFETY: as above, its `resid`.
        unsafe { self.0.wrapping_add(Self::RESIDUE).cast::<u64>().write(left) };
        // SAFETY: as above, its `error`.
        unsafe { self.0.wrapping_add(Self::ERROR).cast::<u32>().write(error) };
    }
}
