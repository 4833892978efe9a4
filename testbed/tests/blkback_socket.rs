//! blkback with a socket that whoever started it has made: systemd's way, and a descriptor's number.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testbed::programs::{Build, build, workspace};
use testbed::skip;

/// What a monitor asks first (`VHOST_USER_GET_QUEUE_NUM`), and how long it waits for the answer.
const QUESTION: [u32; 3] = [17, 1, 0];
const PATIENCE: Duration = Duration::from_secs(300);

/// blkback, with `listener` as descriptor 3, after `exports` in a shell.
fn start(folder: &Path, listener: UnixListener, exports: &str, entrance: &str) -> Child {
    let program = build("blkback", "blkback", Build::Tests).unwrap();
    // The shell's number stays the program's: that is how it knows that it is meant.
    let script = format!("{exports}; exec \"$@\" 3<&0 0</dev/null");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(program);
    command.args(["--engine", "memory", "--size", "16M", "--queues", "4"]);
    command.args(["--vhost-user", entrance, "--control"]);
    command.arg(folder.join("ctl.sock")).env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

/// What is said by a monitor that connects to `path`, and comes back.
fn asked(path: &Path) -> Option<u64> {
    let mut stream = UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&QUESTION.map(u32::to_ne_bytes).concat()).ok()?;
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).ok()?;
    Some(u64::from_ne_bytes(answer[12..].try_into().unwrap()))
}

fn ended(mut child: Child) -> String {
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    said
}

#[test]
fn a_socket_that_was_passed_is_served_by_whoever_connected_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.sock");
    let shown = path.display().to_string();
    // Built before anybody waits for it.
    build("blkback", "blkback", Build::Tests).unwrap();
    let systemd = "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=disk";
    for (exports, entrance) in [
        (systemd, "systemd"),
        (systemd, "systemd:disk"),
        (systemd, shown.as_str()),
        ("unset LISTEN_FDS", "fd=3"),
    ] {
        let listener = UnixListener::bind(&path).unwrap();
        // Connected before there is anybody: as a machine that starts first.
        let early = {
            let path = path.clone();
            std::thread::spawn(move || asked(&path))
        };
        let mut child = start(folder.path(), listener, exports, entrance);
        let mut said = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut said).unwrap();
        assert!(said.contains("ready") && said.contains(entrance), "{entrance}: {said}");
        assert_eq!(early.join().unwrap(), Some(4), "{entrance}");
        assert_eq!(asked(&path), Some(4), "{entrance}: the next one");
        ended(child);
        assert!(path.exists(), "{entrance}: the socket is not blkback's to remove");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_socket_that_was_not_passed_is_missed_in_words() {
    let folder = tempfile::tempdir().unwrap();
    for (n, (exports, entrance, words)) in [
        ("unset LISTEN_FDS", "systemd", "no socket was passed"),
        ("export LISTEN_PID=1 LISTEN_FDS=1", "systemd", "no socket was passed"),
        ("export LISTEN_PID=$$ LISTEN_FDS=1", "systemd:disk", "passed were: unknown"),
        ("export LISTEN_PID=$$ LISTEN_FDS=2", "systemd", "2 sockets are meant"),
        ("true", "fd=77", "is not open"),
    ]
    .into_iter()
    .enumerate()
    {
        let listener = UnixListener::bind(folder.path().join(format!("{n}.sock"))).unwrap();
        let output = start(folder.path(), listener, exports, entrance).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{entrance}: {said}");
    }
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let Some(program) = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join("systemd-analyze"))
        .find(|path| path.exists())
    else {
        skip::because(
            "the units of systemd",
            "systemd-analyze is missing (apt-get install systemd)",
        );
        return;
    };
    // What is served is installed elsewhere here.
    let folder = tempfile::tempdir().unwrap();
    for unit in ["blkback-vhost-user@.socket", "blkback-vhost-user@.service"] {
        let text = std::fs::read_to_string(workspace().join("blkback/systemd").join(unit)).unwrap();
        let name = unit.replace('@', "@test");
        std::fs::write(folder.path().join(name), text.replace("/usr/bin/blkback", "/bin/true"))
            .unwrap();
    }
    let units = ["blkback-vhost-user@test.socket", "blkback-vhost-user@test.service"];
    let output = Command::new(program)
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(units.map(|unit| folder.path().join(unit)))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("blkback")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}
