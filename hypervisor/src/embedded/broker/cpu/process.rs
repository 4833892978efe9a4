//! A process as `/proc` shows it, for where no cgroup can be had (proc(5), `/proc/PID/stat`).
//!
//! A number alone does not name a process for long: it is reused. Together with the time at which
//! the process started it does, and that is compared before anything is done to it.

use std::cell::Cell;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

/// Nanoseconds in one of the ticks that `/proc` counts in (`USER_HZ`, 100 a second on every
/// architecture that domkit runs on).
const TICK_NS: u64 = 10_000_000;

/// One process, living or dead.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pid: i32,
    started: u64,
    /// CPU time when it was last seen alive.
    seen_ns: Cell<u64>,
}

impl PartialEq for Process {
    fn eq(&self, other: &Self) -> bool {
        self.pid == other.pid && self.started == other.started
    }
}

/// What one line of `/proc/PID/stat` says.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    stopped: bool,
    cpu_ns: u64,
    started: u64,
}

impl Process {
    /// The living process of that number.
    pub(super) fn find(pid: i32) -> Option<Self> {
        // Zero, and what is negative, would name whole groups of processes to `kill`.
        let stat = if pid > 0 { stat_of(pid) } else { None }?;
        Some(Self { pid, started: stat.started, seen_ns: Cell::new(stat.cpu_ns) })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it is the one we are running in.
    pub(super) fn is_us(&self) -> bool {
        self.pid == getpid().as_raw()
    }

    pub(super) fn is_alive(&self) -> bool {
        stat_of(self.pid).is_some_and(|stat| stat.started == self.started)
    }

    /// CPU time it has used, of its children that were waited for too; of a dead one, what was
    /// last seen.
    pub(super) fn cpu_ns(&self) -> u64 {
        if let Some(stat) = stat_of(self.pid).filter(|stat| stat.started == self.started) {
            self.seen_ns.set(stat.cpu_ns.max(self.seen_ns.get()));
        }
        self.seen_ns.get()
    }

    pub(super) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub(super) fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub(super) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        if self.is_us() || !self.is_alive() {
            return;
        }
        if let Err(errno) = kill(Pid::from_raw(self.pid), signal) {
            tracing::warn!("cannot send {signal} to process {}: {errno}", self.pid);
        }
    }
}

/// The time in which processes' beginnings are counted, now.
pub(super) fn now() -> u64 {
    // Seconds since boot, to the hundredth (proc(5)), which is one tick.
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let (seconds, hundredths) = text.split(' ').next().and_then(|up| up.split_once('.')).unzip();
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    number(seconds).saturating_mul(100).saturating_add(number(hundredths))
}

/// `roots` and every process that one of them started, directly or not, at or after the time named
/// with it.
pub(super) fn with_descendants(roots: &[(Process, u64)]) -> Vec<Process> {
    let mut found: Vec<Process> = roots.iter().map(|(root, _)| root.clone()).collect();
    let since = |parent: i32| {
        roots.iter().find(|(root, _)| root.pid == parent).map_or(0, |(_, since)| *since)
    };
    if found.is_empty() {
        return found;
    }
    let Ok(entries) = fs::read_dir("/proc") else {
        return found;
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let mut others: Vec<(i32, Stat)> =
        pids.filter_map(|pid| stat_of(pid).map(|s| (pid, s))).collect();
    loop {
        let before = found.len();
        others.retain(|(pid, stat)| {
            if found.iter().any(|process| process.pid == *pid) {
                return false;
            }
            let child = found.iter().any(|process| process.pid == stat.parent)
                && stat.started >= since(stat.parent);
            if child {
                let seen_ns = Cell::new(stat.cpu_ns);
                found.push(Process { pid: *pid, started: stat.started, seen_ns });
            }
            !child
        });
        if found.len() == before {
            return found;
        }
    }
}

/// Kills `roots` and every process that one of them started since the time named with it.
///
/// They are stopped first, and looked for again until no more turn up: a process that was just
/// forking when its parent was killed would be nobody's child, and be missed.
pub(super) fn kill_all(roots: &[(Process, u64)]) {
    let mut known = 0;
    let mut found = with_descendants(roots);
    // A fork bomb could keep this up; what it then has more is cut off from its first process.
    for _ in 0..16 {
        for process in &found {
            process.stop();
        }
        wait_for_stop(&found);
        let again = with_descendants(roots);
        let settled = found.len() == known && again.len() == known;
        known = found.len();
        found = again;
        if settled {
            break;
        }
    }
    for process in &found {
        process.kill();
    }
}

/// Waits, for a tenth of a second at most, until all of them have stopped: the signal is on its
/// way when `kill` returns, and a fork that has begun still ends.
fn wait_for_stop(found: &[Process]) {
    for _ in 0..100 {
        let stopped = |process: &Process| stat_of(process.pid).is_none_or(|stat| stat.stopped);
        if found.iter().all(|process| process.is_us() || stopped(process)) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// What `/proc` says of a process that is not dead.
fn stat_of(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The fields behind the program's name, which may itself hold spaces and brackets.
fn parse(line: &str) -> Option<Stat> {
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // `fields[0]` is the third of proc(5)'s list.
    let state = *fields.first()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = (11..15).try_fold(0_u64, |sum, at| sum.checked_add(number(at)?))?;
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        stopped: matches!(state, "T" | "t"),
        cpu_ns: ticks.saturating_mul(TICK_NS),
        started: number(19)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let line = "9 (a) b (c)) S 7 9 9 0 -1 4194304 97 0 0 0 1 2 3 4 20 0 1 0 1119 3133440 411";
        let stat = parse(line).unwrap();
        assert_eq!(stat, Stat { parent: 7, stopped: false, cpu_ns: 10 * TICK_NS, started: 1119 });
    }

    #[test]
    fn nonsense_is_nothing() {
        for line in ["", "1 (x)", "1 (x) S", "1 (x) Z 1 1 1 0 -1 0 0 0 0 0 1 1 1 1 20 0 1 0 5 5"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn another_process_of_the_same_number_is_not_the_same() {
        let us = Process::find(getpid().as_raw()).unwrap();
        assert!(us.is_us() && us.is_alive());
        let other = Process { started: us.started.wrapping_add(1), ..us.clone() };
        assert!(!other.is_alive());
        assert!(us != other);
        assert!(Process::find(0).is_none());
        assert!(Process::find(-1).is_none());
    }

    #[test]
    fn children_of_children_are_found() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sh -c 'sleep 600; :'; :"])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let root = Process::find(i32::try_from(shell.id()).unwrap()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let all = loop {
            let all = with_descendants(&[(root.clone(), 0)]);
            if all.len() >= 3 {
                break all;
            }
            assert!(std::time::Instant::now() < deadline, "only {all:?} were found");
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        // What began before it entered is not its domain's.
        let later = now() + 1000;
        assert_eq!(with_descendants(&[(root.clone(), later)]), std::slice::from_ref(&root));
        kill_all(&[(root.clone(), 0)]);
        shell.wait().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while all.iter().any(Process::is_alive) {
            assert!(std::time::Instant::now() < deadline, "some of {all:?} are still alive");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
