//! One writer, or any number of readers.
//!
//! `flock(2)` on the open file description that the image keeps as its claim, exclusive for writing
//! and shared for reading: it ends with that description however the process ends, and no other
//! descriptor of the same file that is closed takes it along. Block devices in addition are
//! opened with `O_EXCL`, which also keeps mounts away.
//!
//! A process that is killed leaves transfers behind that the kernel or the device has begun: they end when
//! they end, and one that ends late would undo what was written since. They hold the open file
//! description that they go through, and with it a lock on a byte of its own (`F_OFD_SETLK`, fcntl(2)), which
//! whoever writes the image next waits for (`last_transfers`).

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hypervisor::{ConfigError, Error, HostError};
use nix::fcntl::{FcntlArg, fcntl};

use crate::image::{Kind, Options};

/// How often a medium is tried again whose holder may be about to let go of it.
pub(super) const TRIES: u32 = 200;

/// What a holder is called that is a process as we are.
const OURS: &str = "another blkback";

/// Time between two tries.
pub(super) const BETWEEN: Duration = Duration::from_millis(5);

/// Locks what `file` has open, for as long as it is open.
pub(super) fn lock(file: &File, path: &Path, kind: Kind, options: &Options) -> Result<(), Error> {
    let read_only = options.read_only;
    let mut tries = TRIES;
    let begun = Instant::now();
    loop {
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => {
                let doing = format!("lock the image {}", path.display());
                return Err(HostError::from_io(doing, &error).into());
            }
            Err(TryLockError::WouldBlock) => {}
        }
        tries = tries.saturating_sub(1);
        let holder = holder(file);
        if begun.elapsed() < options.patience
            && holder.as_ref().is_some_and(|holder| holder.starts_with(OURS))
        {
            std::thread::sleep(BETWEEN);
            continue;
        }
        // A holder that is not found has just gone; and udev locks a block device for a moment to
        // look at it.
        if tries > 0 && (holder.is_none() || kind == Kind::Block) {
            std::thread::sleep(BETWEEN);
            continue;
        }
        let problem = format!(
            "in use by {}; stop that first{}",
            holder.unwrap_or_else(|| "another program".into()),
            if read_only { "" } else { ", or serve it from both with --readonly" },
        );
        return Err(ConfigError::new("image", path.display(), problem).into());
    }
}

/// Where the descriptions that transfers go through are locked, beyond every medium's end: a byte for each.
const TRANSFERS: i64 = 1 << 62;

/// Waits until no transfer of a former writer's is under way, with the image locked, and holds `files`, which
/// ours will go through, against the next.
pub(super) fn last_transfers(
    claim: &File,
    files: &[File],
    path: &Path,
    options: &Options,
) -> Result<(), Error> {
    let patience = options.patience.max(BETWEEN.saturating_mul(TRIES));
    let begun = Instant::now();
    let all = i64::try_from(files.len()).unwrap_or(i64::MAX >> 2).max(1 << 16);
    loop {
        let mut found = range(libc::F_WRLCK, TRANSFERS, all);
        match fcntl(claim, FcntlArg::F_OFD_GETLK(&mut found)) {
            Ok(_) if i32::from(found.l_type) == libc::F_UNLCK => break,
            Ok(_) if begun.elapsed() < patience => std::thread::sleep(BETWEEN),
            Ok(_) => {
                let doing =
                    format!("wait for the last transfers of {}'s former writer", path.display());
                return Err(HostError::new(doing, libc::EBUSY).into());
            }
            Err(errno) => {
                tracing::debug!("{}: transfers cannot be waited for: {errno}", path.display());
                return Ok(());
            }
        }
    }
    for (file, at) in files.iter().zip(TRANSFERS..) {
        let own = range(libc::F_RDLCK, at, 1);
        fcntl(file, FcntlArg::F_OFD_SETLK(&own)).map_err(|errno| {
            HostError::new(format!("lock the transfers of {}", path.display()), errno as i32)
        })?;
    }
    Ok(())
}

fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// Who holds a lock on what `file` has open, as far as the kernel tells.
fn holder(file: &File) -> Option<String> {
    let found = file.metadata().ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = holder_in(&locks, found.dev(), found.ino())?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(match name.trim() {
        "" => format!("another program (pid {pid})"),
        "blkback" => format!("{OURS} (pid {pid})"),
        name => format!("{name} (pid {pid})"),
    })
}

/// The holder's process among the lines of `/proc/locks`, such as
/// `1: FLOCK  ADVISORY  WRITE 4711 fd:01:131 0 EOF`.
fn holder_in(locks: &str, device: u64, inode: u64) -> Option<i32> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let place = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        // A line with an arrow is somebody who waits.
        if words.next()? != "FLOCK" {
            return None;
        }
        let pid = words.nth(2)?.parse().ok()?;
        (words.next()? == place).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::holder_in;

    #[test]
    fn the_holder_is_found_among_others() {
        let locks = "\
            1: POSIX  ADVISORY  WRITE 11 fd:01:131 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 12 fd:01:132 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 13 fd:01:131 0 EOF\n\
            3: FLOCK  ADVISORY  READ  14 fd:01:131 0 EOF\n\
            4: OFDLCK ADVISORY  WRITE -1 00:1f:9 0 EOF\n\
            nonsense\n";
        let device = nix::sys::stat::makedev(0xfd, 1);
        assert_eq!(holder_in(locks, device, 131), Some(14));
        assert_eq!(holder_in(locks, device, 132), Some(12));
        assert_eq!(holder_in(locks, device, 133), None);
        assert_eq!(holder_in(locks, nix::sys::stat::makedev(0, 0x1f), 9), None);
    }
}
