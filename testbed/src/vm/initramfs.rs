//! A memory file system for a kernel to start from: a cpio archive in the `newc` format (the Linux
//! kernel's Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};

use anyhow::{Context, Result};

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTERS: u32 = 0o020_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

struct Entry<'a> {
    path: &'a str,
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl Archive {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder, and those above it.
    pub fn folder(&mut self, path: &str) {
        let mut above = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !above.is_empty() {
                above.push('/');
            }
            above.push_str(part);
            if self.folders.insert(above.clone()) {
                let path = above.clone();
                self.entry(&Entry {
                    path: &path,
                    mode: FOLDER | 0o755,
                    device: (0, 0),
                    content: &[],
                });
            }
        }
    }

    /// Adds a file, and the folders above it.
    ///
    /// # Errors
    ///
    /// The file has 4 GiB or more, which the format cannot hold.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        u32::try_from(content.len()).with_context(|| format!("{path} is too long"))?;
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.entry(&Entry { path, mode: FILE | mode, device: (0, 0), content });
        Ok(())
    }

    /// Adds a symbolic link that says `target`.
    pub fn link(&mut self, path: &str, target: &str) {
        let content = target.as_bytes();
        self.entry(&Entry { path, mode: LINK | 0o777, device: (0, 0), content });
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.entry(&Entry { path, mode: CHARACTERS | mode, device: (major, minor), content: &[] });
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        self.entries = self.entries.saturating_add(1);
        let name = entry.path.len().saturating_add(1);
        // Magic, inode, mode, uid, gid, links, mtime, size, device, device of the node, name, check.
        let fields = [
            self.entries,
            entry.mode,
            0,
            0,
            1,
            0,
            u32::try_from(entry.content.len()).unwrap_or(u32::MAX),
            0,
            0,
            entry.device.0,
            entry.device.1,
            u32::try_from(name).unwrap_or(u32::MAX),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(entry.path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(entry.content);
        self.align();
    }

    fn align(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    /// Ends the archive and writes it.
    ///
    /// # Errors
    ///
    /// Writing fails.
    pub fn write(mut self, into: impl Write) -> Result<()> {
        self.entry(&Entry { path: "TRAILER!!!", mode: 0, device: (0, 0), content: &[] });
        let mut into = BufWriter::new(into);
        into.write_all(&self.bytes)?;
        into.flush()?;
        Ok(())
    }
}
