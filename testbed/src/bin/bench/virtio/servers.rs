//! blkback and its peers, each serving the same.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use testbed::packages::{self, NBDKIT, QEMU_NBD, QEMU_STORAGE_DAEMON};
use testbed::scene::{Process, Scene, until};

/// What is served.
#[derive(Clone, Copy)]
pub(super) enum Medium<'a> {
    /// Nothing, of 1 GiB: what is read is zeroes, or whatever was there.
    Null,
    /// A file, past the page cache or through it.
    File { path: &'a Path, direct: bool },
}

/// A process that serves a disk at a socket.
pub(super) struct Server {
    pub(super) process: Process,
    pub(super) socket: PathBuf,
}

impl Server {
    fn start(scene: &Scene, name: &str, command: Command, socket: PathBuf) -> Result<Self> {
        let mut process = scene.start_command(name, command)?;
        until(&format!("{name} makes {}", socket.display()), || {
            anyhow::ensure!(process.runs(), "{name} has ended: {}", process.written());
            Ok(socket.exists())
        })?;
        Ok(Self { process, socket })
    }

    /// blkback with one queue.
    pub(super) fn blkback(scene: &Scene, medium: Medium<'_>) -> Result<Self> {
        let socket = place(scene, "blkback");
        let mut command = scene.program("blkback", "blkback")?;
        command.args(["--queues", "1", "--vhost-user"]).arg(&socket);
        match medium {
            Medium::Null => command.args(["--engine", "null", "--size", "1G"]),
            Medium::File { path, direct } => {
                let direct = if direct { "on" } else { "off" };
                command.args(["--direct", direct, "--image"]).arg(path)
            }
        };
        let mut process = scene.start_command("blkback", command)?;
        process.line_with("ready")?;
        Ok(Self { process, socket })
    }

    /// qemu-storage-daemon with one queue in a thread of its own.
    pub(super) fn qemu(scene: &Scene, medium: Medium<'_>, aio: &str) -> Result<Self> {
        let socket = place(scene, "qemu");
        let node = match medium {
            Medium::Null => "driver=null-co,size=1073741824,read-zeroes=on,latency-ns=0".to_owned(),
            Medium::File { path, direct } => {
                let direct = if direct { "on" } else { "off" };
                file_node(path)? + &format!(",cache.direct={direct},aio={aio}")
            }
        };
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1,iothread=own,\
             addr.type=unix,addr.path={}",
            socket.display()
        );
        let mut command = program(QEMU_STORAGE_DAEMON)?;
        command.args(["--object", "iothread,id=own", "--blockdev"]).args([
            format!("{node},node-name=disk"),
            "--export".into(),
            export,
        ]);
        Self::start(scene, "qemu-storage-daemon", command, socket)
    }

    /// qemu-nbd, through the page cache.
    pub(super) fn qemu_nbd(scene: &Scene, path: &Path) -> Result<Self> {
        let (socket, node) = (place(scene, "qemu-nbd"), file_node(path)?);
        let mut command = program(QEMU_NBD)?;
        command
            .args(["--persistent", "--cache=writeback", "--aio=io_uring", "--socket"])
            .arg(&socket)
            .args(["--image-opts", &format!("driver=raw,file.{}", node.replace(',', ",file."))])
            .env_remove("LISTEN_FDS");
        Self::start(scene, "qemu-nbd", command, socket)
    }

    /// nbdkit with its plugin for files.
    pub(super) fn nbdkit(scene: &Scene, path: &Path) -> Result<Self> {
        let socket = place(scene, "nbdkit");
        let mut command = program(NBDKIT)?;
        command.args(["--foreground", "--unix"]).arg(&socket).arg("file").arg(path);
        Self::start(scene, "nbdkit", command, socket)
    }
}

fn place(scene: &Scene, name: &str) -> PathBuf {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    scene.folder().join(format!("{name}-{number}.sock"))
}

/// The file, which several servers have open at a time.
fn file_node(path: &Path) -> Result<String> {
    let path = path.to_str().context("a file's path is UTF-8")?;
    Ok(format!("driver=file,filename={path},locking=off"))
}

fn program(which: packages::Program) -> Result<Command> {
    Ok(Command::new(packages::find(which).with_context(|| format!("{} is there", which.name))?))
}
