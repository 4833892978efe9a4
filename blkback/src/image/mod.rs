//! The medium behind a device: a raw image file or a block device.
//!
//! [`open`](Image::open) turns what the configuration says into an [`Image`]: created where that was
//! asked for ([`create`]), held against a second writer ([`lock`]), sized and checked
//! ([`geometry`]), with the way its bytes are moved chosen ([`direct`]). What the queues' threads
//! share of it is its [`Media`].
//!
//! Nobody here is a peer: paths and sizes come from whoever configures the daemon, and every wrong
//! one is a [`ConfigError`] that says what to do. Units: bytes. Sources: open(2), flock(2),
//! fallocate(2), statx(2), `linux/fs.h`.

pub mod block;
pub mod create;
pub mod direct;
pub mod geometry;
pub mod lock;
pub mod media;
pub mod present;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hypervisor::{ConfigError, Error, HostError};

pub use direct::{Direct, Transfers};
pub use geometry::{DiscardLimits, Geometry, Hints};
pub use media::Media;
pub use present::Present;

/// What is to be opened, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The file or block device.
    pub path: PathBuf,
    /// Create a sparse image of that many bytes where there is none.
    pub size: Option<u64>,
    /// Open for reading only; others may read at the same time.
    pub read_only: bool,
    /// Bytes in a sector, 512 or 4096. Without one, a block device's own, and 512 for a file.
    pub sector_size: Option<u32>,
    /// Whether to go past the page cache.
    pub direct: Direct,
    /// How long to wait for another blkback to let go of it.
    pub patience: Duration,
    /// Queues that there may be at once; each gets an open file description of its own.
    pub queues: u16,
}

impl Options {
    /// An existing medium at `path`, read and written through one queue.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            size: None,
            read_only: false,
            sector_size: None,
            direct: Direct::Auto,
            patience: Duration::ZERO,
            queues: 1,
        }
    }
}

/// What kind of medium it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A block device.
    Block,
}

/// An open medium, and our claim on it for as long as this lives.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    /// Holds the lock (and a block device's claim); no transfer goes through it.
    claim: File,
    media: Arc<Media>,
}

impl Image {
    /// Opens, and where asked creates, a medium.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] where the path, its size, its permissions or another user of it is the
    /// reason; [`HostError`] where the machine fails.
    pub fn open(options: &Options) -> Result<Self, Error> {
        let path = options.path.as_path();
        geometry::check_sector_size(options.sector_size)?;
        let kind = kind(options)?;
        let claim = claim(options, kind)?;
        lock::lock(&claim, path, kind, options)?;
        if kind == Kind::File
            && let Some(size) = options.size
        {
            create::size(&claim, path, size, options.sector_size.unwrap_or(512), &create::Disk)?;
        }
        let mut geometry = geometry::measure(&claim, path, kind, options)?;
        let (transfers, why_buffered) =
            direct::choose(&claim, path, kind, options.direct, geometry.sector_size)?;
        geometry.direct = matches!(transfers, Transfers::Direct { .. });
        let mut files = Vec::new();
        for _ in 0..options.queues.max(1) {
            files.push(reopen(&claim, options.read_only, geometry.direct)?);
        }
        if !options.read_only {
            lock::last_transfers(&claim, &files, path, options)?;
        }
        let media = Arc::new(Media::new(kind, geometry, transfers, why_buffered, files));
        Ok(Self { path: options.path.clone(), claim, media })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the queues share of it.
    #[must_use]
    pub const fn media(&self) -> &Arc<Media> {
        &self.media
    }

    /// Takes on the size that the medium has now, after a file is grown to `grow_to` bytes where
    /// that is given. Answers the size in bytes from now on.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] where a size is given that is smaller than what there is, is no multiple of
    /// the sector size, or is for a block device, whose size is not ours to change;
    /// [`HostError`] where there is no such space.
    pub fn resize(&self, grow_to: Option<u64>) -> Result<u64, Error> {
        let (path, sector_size) = (self.path.as_path(), self.media.geometry().sector_size);
        let kind = self.media.kind();
        if let Some(new) = grow_to {
            let have = geometry::size(&self.claim, path, kind)?;
            let refuse = |problem: String| ConfigError::new("size", new, problem);
            geometry::check_multiple("size", &new, new, sector_size)?;
            if self.media.geometry().read_only {
                return Err(refuse(format!("{} is served read-only", path.display())).into());
            }
            if new < have {
                let problem = format!("{} has {have} bytes and is never shrunk", path.display());
                return Err(refuse(problem).into());
            }
            if kind == Kind::Block && new != have {
                let problem = format!(
                    "{} is a block device of {have} bytes; grow it with its own tools, then \
                     resize without a size",
                    path.display()
                );
                return Err(refuse(problem).into());
            }
            if new > have {
                create::grow(&self.claim, path, new, &create::Disk)?;
            }
        }
        let size = geometry::size(&self.claim, path, kind)?;
        geometry::check_multiple("image", &path.display(), size, sector_size)?;
        self.media.set_size(size);
        Ok(size)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // A process that is being started at this moment has a copy of every descriptor until it
        // runs its program, and closing ours alone would leave the lock with it until then.
        let _ = self.claim.unlock();
    }
}

/// What lies at the path, before it is opened: opening a pipe would wait for its other end.
fn kind(options: &Options) -> Result<Kind, Error> {
    let path = options.path.as_path();
    let problem = match std::fs::metadata(path) {
        Ok(found) if found.is_file() => return Ok(Kind::File),
        Ok(found) if found.file_type().is_block_device() => {
            if options.size.is_none() {
                return Ok(Kind::Block);
            }
            "is a block device, which has the size it has; leave --size out"
        }
        Ok(found) if found.is_dir() => "is a folder; name a file in it",
        Ok(_) => "is neither a regular file nor a block device",
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if options.size.is_some() && !options.read_only {
                return Ok(Kind::File);
            }
            "does not exist; name an existing image, or create one with --size, as in --size 10G"
        }
        Err(error) => return Err(open_failed(path, options.read_only, &error)),
    };
    Err(ConfigError::new("image", path.display(), problem).into())
}

fn claim(options: &Options, kind: Kind) -> Result<File, Error> {
    let path = options.path.as_path();
    let mut how = OpenOptions::new();
    how.read(true).write(!options.read_only).mode(0o600);
    how.create(kind == Kind::File && options.size.is_some() && !options.read_only);
    if kind == Kind::Block && !options.read_only {
        // Without O_CREAT, refuses a device that is mounted or that another such opener has.
        how.custom_flags(libc::O_EXCL);
    }
    let mut tries = lock::TRIES;
    let file = loop {
        match how.open(path) {
            Ok(file) => break file,
            // A device that was just closed, or is being looked at by udev.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries > 0 => {
                tries = tries.saturating_sub(1);
                std::thread::sleep(lock::BETWEEN);
            }
            Err(error) => return Err(open_failed(path, options.read_only, &error)),
        }
    };
    let found = file.metadata().map_err(|error| HostError::from_io("look at the image", &error))?;
    let as_expected = match kind {
        Kind::File => found.is_file(),
        Kind::Block => found.file_type().is_block_device(),
    };
    if as_expected && kind == Kind::Block && !options.read_only && block::is_read_only(&file)? {
        let problem = "is a device that takes no writes; serve it with --readonly";
        return Err(ConfigError::new("image", path.display(), problem).into());
    }
    if as_expected {
        return Ok(file);
    }
    Err(ConfigError::new("image", path.display(), "was replaced while it was opened").into())
}

fn open_failed(path: &Path, read_only: bool, error: &std::io::Error) -> Error {
    let problem = match error.raw_os_error() {
        Some(libc::ENOENT) => "its folder does not exist; create that first",
        Some(libc::ENOTDIR) => "a part of the path is no folder",
        Some(libc::EBUSY) => "is mounted or in use by another program; release it first",
        Some(libc::ETXTBSY) => "is a program that runs, or a file in use as swap",
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if read_only => {
            "may not be read; check its permissions"
        }
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            "may not be written; check its permissions, or serve it with --readonly"
        }
        Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM) => "has no device or medium behind it",
        _ => {
            return HostError::from_io(format!("open the image {}", path.display()), error).into();
        }
    };
    ConfigError::new("image", path.display(), problem).into()
}

/// A new open file description of what `claim` has open, whatever its path is by now.
fn reopen(claim: &File, read_only: bool, direct: bool) -> Result<File, HostError> {
    let mut how = OpenOptions::new();
    how.read(true).write(!read_only).custom_flags(if direct { libc::O_DIRECT } else { 0 });
    let failed = |error: &std::io::Error| HostError::from_io("open the image once more", error);
    let file =
        how.open(format!("/proc/self/fd/{}", claim.as_raw_fd())).map_err(|error| failed(&error))?;
    let (a, b) = (claim.metadata(), file.metadata());
    match (a, b) {
        (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()) => Ok(file),
        (Err(error), _) | (_, Err(error)) => Err(failed(&error)),
        // Something that is not the process file system is mounted on /proc.
        _ => Err(HostError::new("open the image once more through /proc/self/fd", libc::ESTALE)),
    }
}
