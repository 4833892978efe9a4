//! Giving an image its size, so that it is still there after a power cut.
//!
//! A new file's name lies in its folder, and `fsync` of the file does not promise that the folder
//! is written. Both are synced, the file first, before anything is served from it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use hypervisor::{ConfigError, Error, HostError};

use crate::image::geometry;

/// What is done to files and folders here.
pub(super) trait Storage {
    /// Makes the file `size` bytes long, the new ones a hole.
    fn set_len(&self, file: &File, size: u64) -> io::Result<()>;
    /// Puts the file's data and size on stable storage.
    fn sync_file(&self, file: &File) -> io::Result<()>;
    /// Puts the folder's names on stable storage.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// The machine's own file systems.
pub(super) struct Disk;

impl Storage for Disk {
    fn set_len(&self, file: &File, size: u64) -> io::Result<()> {
        file.set_len(size)
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}

/// Gives a file without any bytes, which is what a new one is, `size` bytes; refuses one that has
/// another size. (A file of no bytes may also be what an interrupted creation left.)
pub(super) fn size(
    file: &File,
    path: &Path,
    size: u64,
    sector_size: u32,
    storage: &impl Storage,
) -> Result<(), Error> {
    let have = geometry::size(file, path, super::Kind::File)?;
    if have == size && size > 0 {
        return Ok(());
    }
    if have > 0 {
        let problem = format!(
            "{} exists and has {have} bytes; leave --size out, or grow it with blkback ctl resize",
            path.display()
        );
        return Err(ConfigError::new("size", size, problem).into());
    }
    let made = geometry::check_multiple("size", &size, size, sector_size)
        .map_err(Error::from)
        .and_then(|()| grow(file, path, size, storage))
        .and_then(|()| {
            storage.sync_folder(&folder(path)).map_err(|error| {
                let doing = format!("put the new image {} on stable storage", path.display());
                HostError::from_io(doing, &error).into()
            })
        });
    if made.is_err() {
        // Nothing was in it, and what cannot be used is not left lying about.
        let _ = std::fs::remove_file(path);
    }
    made
}

/// Makes a file larger; what is new reads as zeroes and takes no space.
pub(super) fn grow(
    file: &File,
    path: &Path,
    size: u64,
    storage: &impl Storage,
) -> Result<(), Error> {
    let grown = storage.set_len(file, size).and_then(|()| storage.sync_file(file));
    grown.map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput => {
            let problem = format!("more than the file system of {} can hold", path.display());
            ConfigError::new("size", size, problem).into()
        }
        _ => HostError::from_io(format!("give {} its size", path.display()), &error).into(),
    })
}

/// The folder that a file's name lies in, with symbolic links followed.
fn folder(path: &Path) -> PathBuf {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    match real.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Does what the disk does, notes it, and fails at the step that is named.
    #[derive(Default)]
    struct Noted {
        steps: RefCell<Vec<String>>,
        fails: &'static str,
    }

    impl Noted {
        fn note(&self, step: String) -> io::Result<()> {
            let fails = !self.fails.is_empty() && step.starts_with(self.fails);
            self.steps.borrow_mut().push(step);
            if fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
        }
    }

    impl Storage for Noted {
        fn set_len(&self, file: &File, size: u64) -> io::Result<()> {
            self.note(format!("size {size}"))?;
            Disk.set_len(file, size)
        }

        fn sync_file(&self, file: &File) -> io::Result<()> {
            self.note("file".into())?;
            Disk.sync_file(file)
        }

        fn sync_folder(&self, folder: &Path) -> io::Result<()> {
            self.note(format!("folder {}", folder.display()))?;
            Disk.sync_folder(folder)
        }
    }

    #[test]
    fn a_new_image_is_sized_then_synced_then_its_folder_is() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("new.img");
        let file = File::create(&path).unwrap();
        let noted = Noted::default();
        size(&file, &path, 8192, 512, &noted).unwrap();
        let folder = home.path().canonicalize().unwrap();
        let want = ["size 8192".to_owned(), "file".into(), format!("folder {}", folder.display())];
        assert_eq!(*noted.steps.borrow(), want);
        assert_eq!(file.metadata().unwrap().len(), 8192);
        // The second time there is nothing to be done.
        size(&file, &path, 8192, 512, &noted).unwrap();
        assert_eq!(noted.steps.borrow().len(), 3);
        // And through a link, the folder that holds the file is the one that counts.
        let link = home.path().join("link");
        std::fs::create_dir(home.path().join("there")).unwrap();
        std::os::unix::fs::symlink(home.path().join("there/real.img"), &link).unwrap();
        let file = File::create(&link).unwrap();
        size(&file, &link, 512, 512, &noted).unwrap();
        let want = format!("folder {}", folder.join("there").display());
        assert_eq!(noted.steps.borrow().last(), Some(&want));
    }

    #[test]
    fn a_creation_that_fails_leaves_nothing_behind() {
        for fails in ["size", "file", "folder"] {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("new.img");
            let file = File::create(&path).unwrap();
            let noted = Noted { fails, ..Noted::default() };
            let error = size(&file, &path, 8192, 512, &noted).unwrap_err();
            assert!(error.to_string().contains("new.img"), "{error}");
            assert!(!path.exists(), "after the failure of {fails}");
        }
    }
}
