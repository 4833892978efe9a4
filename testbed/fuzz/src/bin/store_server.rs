//! The store's server against three clients that send anything at all.
#![no_main]

use hypervisor::xenstore::server::exercise::exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| exercise(bytes));
