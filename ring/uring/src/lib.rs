//! Our ring with the kernel: owned operations over io_uring.
