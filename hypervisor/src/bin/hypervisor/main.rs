//! The tool `hypervisor`.
fn main() {}
