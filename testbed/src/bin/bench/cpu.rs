//! CPU time of processes.

use std::time::Duration;

use anyhow::Result;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use testbed::scene::Process;

/// CPU time that a process and its past threads have used, those of its that the kernel has made for it
/// included (clock_getcpuclockid(3)).
pub(crate) fn cpu_time(process: &Process) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(process.pid())?))?;
    Ok(clock_gettime(clock)?.into())
}

/// The same in seconds.
pub(crate) fn cpu_seconds(process: &Process) -> Result<f64> {
    Ok(cpu_time(process)?.as_secs_f64())
}
