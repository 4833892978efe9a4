//! Whether an image that refuses requests is still there, and what lies in its place if not.
//!
//! A file that was deleted or replaced, and a device that was taken out, stay open here, and some of them go on as
//! ever: a guest is then served what it wrote, whatever its path names by now. Only what is dead is given up, for
//! what lies at the path: another process opens that anew. Whether it is the same disk nobody can tell from a file;
//! that it is no smaller, and a medium of the same kind, is the least. Units: bytes.

use std::fs::{File, metadata};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};

use hypervisor::ConfigError;

use super::{Image, Kind, geometry};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Present {
    /// What is open, as far as can be told, or something else while what is open works.
    Served,
    /// What is open is dead, and this can be opened in its place.
    Replaced,
}

impl Image {
    /// Looks at what is open, and at what its path names.
    ///
    /// # Errors
    ///
    /// What is open is dead, and what its path names cannot take its place; the error says why.
    pub fn present(&self) -> Result<Present, ConfigError> {
        let (kind, size) = (self.media.kind(), self.media.geometry().size);
        let (path, shown) = (self.path.as_path(), self.path.display());
        let refuse = |problem: String| Err(ConfigError::new("image", &shown, problem));
        let there = metadata(path);
        let same = match (&there, self.claim.metadata()) {
            (Ok(there), Ok(open)) => {
                (there.dev(), there.ino(), there.rdev()) == (open.dev(), open.ino(), open.rdev())
            }
            _ => false,
        };
        let dead = match geometry::size(&self.claim, path, kind) {
            Ok(now) => now < size || self.claim.read_at(&mut [0; 512], 0).is_err(),
            Err(_) => true,
        };
        match (same, dead) {
            (true, false) => return Ok(Present::Served),
            (true, true) => {
                return refuse(format!(
                    "is not whole any more (the guest's disk has {size} bytes); put it right"
                ));
            }
            (false, false) => {
                tracing::warn!(
                    "{shown} is something else by now; what was opened still works and is served on"
                );
                return Ok(Present::Served);
            }
            (false, true) => {}
        }
        let there = match there {
            Ok(there) if there.is_file() && kind == Kind::File => there,
            Ok(there) if there.file_type().is_block_device() && kind == Kind::Block => there,
            Ok(_) => return refuse(format!("was a {} and is something else now", name(kind))),
            Err(error) => return refuse(format!("is gone ({error}); bring it back")),
        };
        let found = match kind {
            Kind::File => Ok(there.len()),
            Kind::Block => {
                let open = File::open(path);
                open.map_err(|error| error.to_string()).and_then(|device| {
                    geometry::size(&device, path, kind).map_err(|error| error.to_string())
                })
            }
        };
        match found {
            Ok(found) if found >= size => Ok(Present::Replaced),
            Ok(found) => refuse(format!(
                "is another one now, of {found} bytes where the guest's disk has {size}; bring the right one back"
            )),
            Err(why) => refuse(format!("is another one now, and cannot be opened: {why}")),
        }
    }
}

const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Block => "block device",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::image::Options;

    const SIZE: u64 = 1 << 20;

    fn make(path: &Path, size: u64) -> File {
        let file = File::create(path).unwrap();
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn a_dead_image_is_given_up_for_one_that_can_take_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let old = make(&path, SIZE);
        let image = Image::open(&Options::new(&path)).unwrap();
        assert_eq!(image.present(), Ok(Present::Served));
        let words = |what: &str| {
            let why = image.present().unwrap_err().to_string();
            assert!(why.contains(what) && why.contains("disk.img"), "{why}");
        };
        old.set_len(4096).unwrap();
        words("not whole any more");
        old.set_len(SIZE).unwrap();
        assert_eq!(image.present(), Ok(Present::Served));

        // Moved away or deleted, it works as before, whatever lies there.
        fs::rename(&path, folder.path().join("moved.img")).unwrap();
        assert_eq!(image.present(), Ok(Present::Served));
        drop(make(&path, SIZE));
        assert_eq!(image.present(), Ok(Present::Served));
        old.set_len(0).unwrap();
        assert_eq!(image.present(), Ok(Present::Replaced));
        drop(make(&path, SIZE - 512));
        words("of 1048064 bytes where the guest's disk has 1048576");
        fs::remove_file(&path).unwrap();
        words("is gone");
        fs::create_dir(&path).unwrap();
        words("was a file and is something else");
    }
}
