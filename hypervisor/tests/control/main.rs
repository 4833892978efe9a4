//! The tool `hypervisor` and domain control, with real processes.

mod acting;
mod domains;
mod groups;
mod running;
mod stage;
mod wrong;
