//! A root file system on a disk, for a machine to boot from.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{FOLDERS, Machine, init, succeed};
use crate::packages::{self, MKE2FS};

impl Machine {
    /// Makes `image` of `size` (as `96M`), whose ext4 file system holds what this machine runs. It is for
    /// [`root`](Self::root).
    ///
    /// # Errors
    ///
    /// Something to make it of is missing.
    pub fn make_root(&self, image: &Path, size: &str) -> Result<()> {
        packages::ensure(&[MKE2FS])?;
        let folder = tempfile::Builder::new().prefix("domkit-root-").tempdir()?;
        for name in FOLDERS {
            fs::create_dir(folder.path().join(name))?;
        }
        let mut content = self.content()?;
        content.push(("init".to_owned(), init("", None).into_bytes()));
        for (path, bytes) in content {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
            let shown = path.display();
            fs::write(&path, bytes).with_context(|| format!("write {shown}"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        let mut mke2fs = Command::new(packages::find(MKE2FS).context("mke2fs is installed")?);
        mke2fs.args(["-q", "-F", "-t", "ext4", "-d", "."]).arg(image).arg(size);
        succeed(&mut mke2fs, folder.path()).map(drop)
    }
}
