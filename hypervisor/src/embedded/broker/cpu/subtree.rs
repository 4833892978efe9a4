//! The hypervisor's part of the cgroup v2 tree: one group for each domain.
//!
//! ```text
//!   <base>                       where we may make groups (see below)
//!   +-- domkit-hypervisor-<pid>  the broker itself, where it has to make room
//!   +-- domkit-<pid>-<n>         this machine: cpu and memory handed on
//!       +-- dom1                 cpu.weight cpu.max memory.max cgroup.freeze cgroup.procs
//!       +-- dom2
//! ```
//!
//! A group that hands controllers on may hold no process itself (*no internal processes*, kernel
//! documentation, Control Group v2), the root excepted. So the base is: the root of the tree where
//! we are in it; else our own group where nobody but us is in it, after moving ourselves one
//! further down; else, for who may write there, the root. A group of one's own is what systemd
//! gives with `Delegate=yes`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::HostError;

/// The period over which a cap is enforced, in microseconds.
const PERIOD_US: u64 = 100_000;

/// Our part of the tree.
#[derive(Debug)]
pub(super) struct Subtree {
    mount: PathBuf,
    at: PathBuf,
    cpu: bool,
    memory: bool,
    missing: Vec<String>,
}

/// One domain's group.
#[derive(Debug)]
pub(super) struct Group {
    at: PathBuf,
    cpu: bool,
    memory: bool,
}

impl Subtree {
    /// Makes it, wherever this process may.
    ///
    /// # Errors
    ///
    /// A phrase that says why there can be none and what would help.
    pub(super) fn make() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (mount, root) = mount_of(&mounts).ok_or("cgroup v2 is not mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own_group(&own).ok_or("/proc/self/cgroup names no cgroup v2 group")?;
        let own = own.strip_prefix(&root).unwrap_or(own);
        Self::make_in(&mount, &below(&mount, own))
    }

    /// Makes it in the tree mounted at `mount`, by a process whose group is `own`.
    pub(super) fn make_in(mount: &Path, own: &Path) -> Result<Self, String> {
        let base = base_of(mount, own)?;
        clear_stale(&base);
        let at = make_ours(&base).map_err(|error| {
            format!(
                "cannot make groups in {}: {error}; start the hypervisor as root, or in a group \
                 of its own: systemd-run --user --scope -p Delegate=yes hypervisor run",
                base.display()
            )
        })?;
        let mut tree =
            Self { mount: mount.to_owned(), at, cpu: false, memory: false, missing: Vec::new() };
        tree.cpu = tree.hand_on(&base, "cpu", "CPU weight and cap");
        tree.memory = tree.hand_on(&base, "memory", "memory limits");
        Ok(tree)
    }

    /// Passes a controller down from the base to the domains' groups.
    fn hand_on(&mut self, base: &Path, controller: &str, what: &str) -> bool {
        let offered = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
        if !offered.split_whitespace().any(|name| name == controller) {
            let there = if offered.trim().is_empty() { "none" } else { offered.trim() };
            let base = base.display();
            self.missing.push(format!(
                "{what}: the {controller} controller is not available in {base} (there: {there})"
            ));
            return false;
        }
        for group in [base, &self.at] {
            let file = group.join("cgroup.subtree_control");
            if let Err(error) = fs::write(&file, format!("+{controller}")) {
                let file = file.display();
                self.missing.push(format!("{what}: cannot write +{controller} to {file}: {error}"));
                return false;
            }
        }
        true
    }

    /// What cannot be enforced in it, and why.
    pub(super) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// A new group in it.
    pub(super) fn add(&self, name: &str) -> Result<Group, HostError> {
        let at = self.at.join(name);
        fs::create_dir(&at)
            .map_err(|error| HostError::from_io(format!("make {}", at.display()), &error))?;
        Ok(Group { at, cpu: self.cpu, memory: self.memory })
    }

    /// The group that a process is in now.
    pub(super) fn group_of(&self, pid: i32) -> Option<PathBuf> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = below(&self.mount, own_group(&groups)?);
        path.is_dir().then_some(path)
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        // What still is in it was named when its domain ended.
        let _ = fs::remove_dir(&self.at);
    }
}

impl Group {
    pub(super) fn path(&self) -> &Path {
        &self.at
    }

    /// Moves a process, with all its threads, into the group.
    pub(super) fn take_in(&self, pid: i32) -> Result<(), HostError> {
        move_into(&self.at, pid)
    }

    /// Sets weight, and the lower of cap and number of vCPUs.
    pub(super) fn set_cpu(&self, weight: u16, cap: u16, vcpus: u32) -> Result<(), HostError> {
        if !self.cpu {
            return Ok(());
        }
        self.write("cpu.weight", &cpu_weight(weight).to_string())?;
        self.write("cpu.max", &cpu_max(cap, vcpus))
    }

    /// Sets the most memory the group may use. When that is `lowered`, what the group uses is
    /// first pushed below it; the answer is how much it still uses where that did not do, and
    /// then the limit is as it was.
    pub(super) fn set_memory(&self, kib: u64, lowered: bool) -> Result<Option<u64>, HostError> {
        if !self.memory {
            return Ok(None);
        }
        let bytes = kib.saturating_mul(1024);
        if lowered {
            // Writing it makes the kernel reclaim, and kills nobody.
            self.write("memory.high", &bytes.to_string())?;
            let used = self.read("memory.current").and_then(|text| text.trim().parse().ok());
            self.write("memory.high", "max")?;
            if let Some(used) = used.filter(|used: &u64| *used > bytes) {
                return Ok(Some(used.div_ceil(1024)));
            }
        }
        self.write("memory.max", &bytes.to_string())?;
        Ok(None)
    }

    /// Stops all processes in the group, or lets them go on.
    pub(super) fn freeze(&self, frozen: bool) -> Result<(), HostError> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Kills all processes in the group.
    pub(super) fn kill(&self) {
        // Linux has the file since 5.14; before that, one signal each.
        if self.write("cgroup.kill", "1").is_ok() {
            return;
        }
        for line in self.read("cgroup.procs").unwrap_or_default().lines() {
            if let Some(process) = line.parse().ok().and_then(super::Process::find) {
                process.kill();
            }
        }
    }

    /// Moves all processes out of the group, those too that are just being forked.
    pub(super) fn empty_into(&self, home: &Path) {
        for _ in 0..16 {
            let inside = self.read("cgroup.procs").unwrap_or_default();
            let mut moved = false;
            for pid in inside.lines().filter_map(|line| line.parse().ok()) {
                moved |= move_home(home, pid);
            }
            if !moved {
                return;
            }
        }
    }

    /// CPU time of everything that ever was in the group.
    pub(super) fn cpu_ns(&self) -> u64 {
        let text = self.read("cpu.stat").unwrap_or_default();
        let usec = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        usec.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0).saturating_mul(1000)
    }

    /// Removes the group; whether it is gone.
    pub(super) fn remove(&self) -> bool {
        match fs::remove_dir(&self.at) {
            Ok(()) => true,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        }
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.at.join(name)).ok()
    }

    fn write(&self, name: &str, value: &str) -> Result<(), HostError> {
        let file = self.at.join(name);
        fs::write(&file, value).map_err(|error| {
            HostError::from_io(format!("write {value} to {}", file.display()), &error)
        })
    }
}

/// Moves a process into the group at `group`.
pub(super) fn move_into(group: &Path, pid: i32) -> Result<(), HostError> {
    let file = group.join("cgroup.procs");
    fs::write(&file, pid.to_string()).map_err(|error| {
        HostError::from_io(format!("move process {pid} to {}", group.display()), &error)
    })
}

/// Moves a process back to where it came from or, where that is gone by now, to what is nearest
/// above; whether that was done.
pub(super) fn move_home(home: &Path, pid: i32) -> bool {
    // Outside the tree there are no such files, so nothing there is written.
    let there = home.ancestors().filter(|group| group.join("cgroup.procs").exists());
    there.into_iter().any(|group| move_into(group, pid).is_ok())
}

/// `cpu.weight` (1 to 10000, 100 is usual) for a weight of Xen's (1 to 65535, 256 is usual): the
/// same ratios, up to a hundred times the usual.
pub(super) fn cpu_weight(weight: u16) -> u32 {
    u32::from(weight).saturating_mul(100).saturating_add(128).div_euclid(256).clamp(1, 10_000)
}

/// `cpu.max` for a cap in percent of one CPU and a number of vCPUs, each of which can be on one
/// CPU at a time.
pub(super) fn cpu_max(cap: u16, vcpus: u32) -> String {
    let all = vcpus.saturating_mul(100);
    let percent = if cap == 0 { all } else { all.min(u32::from(cap)) };
    let quota = u64::from(percent).saturating_mul(PERIOD_US).div_euclid(100);
    format!("{quota} {PERIOD_US}")
}

/// Where cgroup v2 is mounted, and which of its groups is there (proc(5), mountinfo).
pub(super) fn mount_of(mountinfo: &str) -> Option<(PathBuf, String)> {
    mountinfo.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (root, point) = (front.next()?, front.next()?);
        back.starts_with("cgroup2 ").then(|| (PathBuf::from(point), root.to_owned()))
    })
}

/// The group that `/proc/PID/cgroup` names in the v2 tree.
pub(super) fn own_group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The folder of a group.
fn below(mount: &Path, group: &str) -> PathBuf {
    match group.trim_matches('/') {
        "" => mount.to_owned(),
        group => mount.join(group),
    }
}

/// The group in which ours are to be made; see the module's documentation.
fn base_of(mount: &Path, own: &Path) -> Result<PathBuf, String> {
    // Only the true root has no type.
    let is_root = |group: &Path| !group.join("cgroup.type").exists();
    if is_root(own) {
        return Ok(own.to_owned());
    }
    let us = std::process::id().to_string();
    let inside = fs::read_to_string(own.join("cgroup.procs"))
        .map_err(|error| format!("cannot read {}/cgroup.procs: {error}", own.display()))?;
    if inside.split_whitespace().all(|pid| pid == us) {
        let room = own.join(format!("domkit-hypervisor-{us}"));
        let moved = match fs::create_dir(&room) {
            Ok(()) => fs::write(room.join("cgroup.procs"), &us),
            Err(error) => Err(error),
        };
        return match moved {
            Ok(()) => Ok(own.to_owned()),
            Err(error) => Err(format!(
                "the cgroup {} is not delegated to us ({error}); start the hypervisor as root, or \
                 with systemd-run --user --scope -p Delegate=yes hypervisor run",
                own.display()
            )),
        };
    }
    if is_root(mount) && nix::unistd::geteuid().is_root() {
        return Ok(mount.to_owned());
    }
    Err(format!(
        "other processes share the hypervisor's cgroup {}; start it in one of its own: \
         systemd-run --user --scope -p Delegate=yes hypervisor run",
        own.display()
    ))
}

/// A directory in `base` that is ours alone.
fn make_ours(base: &Path) -> std::io::Result<PathBuf> {
    // Several brokers may share a process in tests; a number keeps their subtrees apart. It also
    // passes over what a process of our number left behind.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let us = std::process::id();
    loop {
        let at = base.join(format!("domkit-{us}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        match fs::create_dir(&at) {
            Ok(()) => return Ok(at),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes what brokers that were killed have left in `base`, where it is empty.
fn clear_stale(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| {
            let rest = name.strip_prefix("domkit-")?;
            rest.strip_prefix("hypervisor-").unwrap_or(rest).split('-').next()?.parse::<u32>().ok()
        });
        let Some(pid) = pid else { continue };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        for below in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            // Files cannot be removed, nor groups that are not empty; both stay.
            let _ = fs::remove_dir(below.path());
        }
        let _ = fs::remove_dir(entry.path());
    }
}
