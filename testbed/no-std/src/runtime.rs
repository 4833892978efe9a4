//! What std would bring: a start, an end, an allocator, a panic handler and four memory functions.
#![expect(unsafe_code, reason = "a program without a runtime starts and ends itself")]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, naked_asm};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

/// `write` and `exit_group` of Linux on x86_64.
const WRITE: usize = 1;
const EXIT_GROUP: usize = 231;

/// Where the kernel begins: the stack is aligned as functions expect it.
#[unsafe(no_mangle)]
#[unsafe(naked)]
extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "and rsp, -16", "call {begin}", "ud2", begin = sym begin)
}

extern "C" fn begin() -> ! {
    exit(crate::run())
}

fn call(number: usize, a: usize, b: usize, c: usize) -> usize {
    let result;
    // SAFETY: the two calls that are made read `c` bytes at `b`, which `say` got as a slice, or do
    // not return; rcx and r11 are what the instruction itself overwrites.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Writes a line to standard error.
pub(crate) fn say(text: &str) {
    for part in [text, "\n"] {
        call(WRITE, 2, part.as_ptr() as usize, part.len());
    }
}

fn exit(status: i32) -> ! {
    loop {
        call(EXIT_GROUP, status as usize, 0, 0);
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    say("panicked");
    exit(2)
}

/// Core was built to unwind, so it names this; nothing ever calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    exit(3)
}

const HEAP: usize = 1 << 20;

#[repr(C, align(4096))]
struct Heap(core::cell::UnsafeCell<[u8; HEAP]>);

// SAFETY: only the allocator reaches it, and hands every byte out once.
unsafe impl Sync for Heap {}

static MEMORY: Heap = Heap(core::cell::UnsafeCell::new([0; HEAP]));
static USED: AtomicUsize = AtomicUsize::new(0);

/// Hands memory out and never takes it back: the program is short.
struct Bump;

// SAFETY: every block lies inside the heap, is aligned as asked, and overlaps no other, since the
// counter only grows.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut start = 0;
        let grown = USED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            start = used.checked_next_multiple_of(layout.align())?;
            start.checked_add(layout.size()).filter(|end| *end <= HEAP)
        });
        match grown {
            Ok(_) => MEMORY.0.get().cast::<u8>().wrapping_add(start),
            Err(_) => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Bump = Bump;

/// Copies forward.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for `len` bytes at both, not overlapping; the flag is clear.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// Copies in the direction that overlapping bytes survive.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: nothing of the source is overwritten before it was read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: backwards from the last byte; the flag is cleared again, as everybody expects it.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// Fills.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for `len` bytes.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// Compares byte by byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let mut at = 0;
    while at < len {
        // SAFETY: the caller vouches for `len` bytes at both. Volatile, so that no compiler makes
        // this loop a call of itself.
        let (x, y) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if x != y {
            return i32::from(x).wrapping_sub(i32::from(y));
        }
        at = at.wrapping_add(1);
    }
    0
}

/// As `memcmp`; only zero or not is told.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller vouches for the same.
    unsafe { memcmp(a, b, len) }
}

/// Counts the bytes before the zero.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0_usize;
    // SAFETY: the caller vouches for a zero at the end. Volatile as in `memcmp`.
    while unsafe { text.wrapping_add(len).read_volatile() } != 0 {
        len = len.wrapping_add(1);
    }
    len
}
