//! Debian's own xenstore programs against the server.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use hypervisor::DomId;
use hypervisor::store::{Permission, Store, Transaction};
use hypervisor::xenstore::Client;
use hypervisor::xenstore::server::Service;

const NONE: Transaction = Transaction::NONE;

struct Stock {
    _service: Service,
    client: Client,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

/// What a program did: whether it ended well, and what it wrote.
struct Ran {
    well: bool,
    out: String,
    err: String,
}

impl Stock {
    /// `None`, loudly, where the programs are missing.
    fn start() -> Option<Self> {
        if !testbed::skip::unless_installed(
            "stock xenstore programs",
            &[testbed::packages::XENSTORE],
        ) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let service = Service::spawn(UnixListener::bind(&socket).unwrap()).unwrap();
        let client = Client::connect(&socket).unwrap();
        Some(Self { _service: service, client, socket, _folder: folder })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(format!("xenstore-{program}"));
        command.args(arguments).env("XENSTORED_PATH", &self.socket).stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        let output = self.command(program, arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        Ran { well: output.status.success(), out, err }
    }

    fn well(&self, program: &str, arguments: &[&str]) -> String {
        let ran = self.run(program, arguments);
        assert!(ran.well, "xenstore-{program} {arguments:?}: {}{}", ran.out, ran.err);
        ran.out
    }
}

#[test]
fn read_write_list_exists_rm() {
    let Some(stock) = Stock::start() else { return };
    stock.well("write", &["/a/b", "one", "/a/c", "two"]);
    assert_eq!(stock.client.read(NONE, "/a/b").unwrap(), b"one");
    assert_eq!(stock.well("read", &["/a/b", "/a/c"]), "one\ntwo\n");
    assert_eq!(stock.well("read", &["-s", "-p", "/a/b"]), "/a/b: one\n");
    assert_eq!(stock.well("list", &["/a"]), "b\nc\n");
    stock.well("exists", &["/a/b"]);
    assert!(!stock.run("exists", &["/a/none"]).well);
    assert!(!stock.run("read", &["/a/none"]).well);
    assert!(!stock.run("write", &["/a//b", "x"]).well);
    stock.well("rm", &["/a/b"]);
    assert!(!stock.run("exists", &["/a/b"]).well);
    // `-t` removes parents that became empty too.
    stock.well("rm", &["-t", "/a/c"]);
    assert_eq!(stock.client.list(NONE, "/").unwrap(), ["tool"]);
}

#[test]
fn ls_shows_everything_with_permissions() {
    let Some(stock) = Stock::start() else { return };
    stock.well("write", &["/vm/name", "guest"]);
    assert_eq!(stock.well("ls", &["/vm"]), "name = \"guest\"\n");
    assert_eq!(stock.well("ls", &["-f", "/vm"]), "/vm/name = \"guest\"\n");
    let all = stock.well("ls", &["-f", "-p"]);
    assert!(all.contains("/tool/xenstored = \"\""), "{all}");
    let name = all.lines().find(|line| line.starts_with("/vm/name")).unwrap();
    assert!(name.ends_with("(n0)"), "{name}");
}

#[test]
fn ls_shows_a_list_longer_than_a_message() {
    let Some(stock) = Stock::start() else { return };
    for number in 0..1500 {
        stock.client.write(NONE, &format!("/long/child{number:05}"), b"").unwrap();
    }
    let listed = stock.well("ls", &["-f", "/long"]);
    let names: Vec<String> =
        (0..1500).map(|number| format!("/long/child{number:05} = \"\"")).collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), names);
}

#[test]
fn chmod_sets_what_get_perms_says() {
    let Some(stock) = Stock::start() else { return };
    stock.well("write", &["/a/b", "x"]);
    stock.well("chmod", &["/a/b", "n7", "r3"]);
    let entry =
        |number, read| Permission { domain: DomId::new(number).unwrap(), read, write: false };
    assert_eq!(stock.client.permissions(NONE, "/a/b").unwrap(), [entry(7, false), entry(3, true)]);
    stock.well("chmod", &["-r", "/a", "b5"]);
    let five = Permission { domain: DomId::new(5).unwrap(), read: true, write: true };
    assert_eq!(stock.client.permissions(NONE, "/a").unwrap(), [five]);
    assert_eq!(stock.client.permissions(NONE, "/a/b").unwrap(), [five]);
    assert!(stock.well("ls", &["-p", "/a"]).contains("(b5)"));
}

/// A child that is ended with its owner.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn watch_is_told_at_once_and_of_changes() {
    let Some(stock) = Stock::start() else { return };
    let mut child =
        Ended(stock.command("watch", &["-n", "3", "/a"]).stdout(Stdio::piped()).spawn().unwrap());
    let out = child.0.stdout.take().unwrap();
    let (line_came, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(out).lines() {
            let Ok(line) = line else { return };
            if line_came.send(line).is_err() {
                return;
            }
        }
    });
    let next = || lines.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(next(), "/a");
    stock.client.write(NONE, "/a/b", b"x").unwrap();
    assert_eq!(next(), "/a/b");
    stock.client.remove(NONE, "/a").unwrap();
    assert_eq!(next(), "/a");
    assert!(child.0.wait().unwrap().success(), "it was to end after three");
    drop(child);
    reader.join().unwrap();
}
