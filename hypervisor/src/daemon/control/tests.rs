//! A server with a desk that repeats what it was asked, and clients of every kind.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::*;

/// What can be asked here.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    List,
    Limits { iops: Option<u64>, bytes: Option<u64> },
    Resize { size: Option<u64> },
    Detach { force: bool },
}

#[derive(Default)]
struct Echo {
    /// Told when a detach is heard.
    heard: Option<std::sync::mpsc::Sender<()>>,
}

impl Desk for Echo {
    type Request = Request;

    fn answer(&self, request: Request) -> Result<serde_json::Value, String> {
        match request {
            Request::Resize { size: Some(0) } => Err("too small".into()),
            Request::Detach { .. } => {
                self.heard.iter().for_each(|heard| heard.send(()).unwrap());
                std::thread::sleep(Duration::from_millis(300));
                Ok("gone".into())
            }
            other => serde_json::to_value(other).map_err(|e| e.to_string()),
        }
    }
}

fn served() -> (tempfile::TempDir, PathBuf, Server) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blkback-x.sock");
    let server = Server::start(&path, Echo::default()).unwrap();
    (folder, path, server)
}

#[test]
fn asked_and_answered() {
    let (_folder, path, _server) = served();
    let mut client = Client::connect("blkback", &path).unwrap();
    for request in [
        Request::List,
        Request::Limits { iops: Some(7), bytes: None },
        Request::Resize { size: Some(1 << 40) },
    ] {
        let answer = client.ask(&request).unwrap().unwrap();
        assert_eq!(serde_json::from_value::<Request>(answer).unwrap(), request);
    }
    assert_eq!(client.ask(&Request::Resize { size: Some(0) }).unwrap(), Err("too small".into()));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn nonsense_is_answered_in_words_and_forgotten() {
    let (_folder, path, _server) = served();
    let stream = UnixStream::connect(&path).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for line in [
        "",
        "{}",
        "null",
        "{\"command\":\"fly\"}",
        "\u{1}\u{2}",
        "[[[[[[[[[[",
        "{\"command\":\"resize\",\"size\":-1}",
        "{\"command\":\"resize\",\"size\":1e99}",
    ] {
        writeln!(&stream, "{line}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert!(answer.starts_with("{\"error\":\"not a request"), "{line}: {answer}");
    }
    (&stream).write_all(&[0xFF, 0xFE, b'\n']).unwrap();
    let mut answer = String::new();
    answers.read_line(&mut answer).unwrap();
    assert!(answer.starts_with("{\"error\""), "{answer}");
    writeln!(&stream, "{{\"command\":\"list\"}}").unwrap();
    let mut answer = String::new();
    answers.read_line(&mut answer).unwrap();
    assert!(answer.starts_with("{\"result\""), "{answer}");
}

#[test]
fn deep_nesting_and_endless_lines_end_the_client_only() {
    let (_folder, path, _server) = served();
    let mut stream = UnixStream::connect(&path).unwrap();
    // The server hangs up in the midst of it.
    let _ = stream.write_all(&[b'['; 100_000]);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    let mut client = Client::connect("blkback", &path).unwrap();
    assert!(client.ask(&Request::List).unwrap().is_ok());
}

#[test]
fn many_clients_are_refused_and_room_comes_back() {
    let (_folder, path, _server) = served();
    let silent: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(&path).unwrap()).collect();
    // The last is refused, in words, and hung up on.
    let mut words = String::new();
    BufReader::new(silent.last().unwrap()).read_line(&mut words).unwrap();
    assert!(words.contains("clients already"), "{words}");
    drop(silent);
    let answered = (0..3000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        Client::connect("blkback", &path)
            .unwrap()
            .ask(&Request::List)
            .is_ok_and(|answer| answer.is_ok())
    });
    assert!(answered, "room came back");
}

#[test]
fn one_slow_answer_holds_nobody_up_and_survives_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blkback-x.sock");
    let (heard, asked) = std::sync::mpsc::channel();
    let server = Server::start(&path, Echo { heard: Some(heard) }).unwrap();
    let slow = std::thread::spawn({
        let path = path.clone();
        move || {
            Client::connect("blkback", &path)
                .unwrap()
                .ask(&Request::Detach { force: false })
                .unwrap()
        }
    });
    Client::connect("blkback", &path).unwrap().ask(&Request::List).unwrap().unwrap();
    asked.recv().unwrap();
    // It was heard: its answer is sent before the end is complete.
    drop(server);
    assert!(!path.exists());
    assert!(Client::connect("blkback", &path).is_err());
    assert_eq!(slow.join().unwrap(), Ok("gone".into()));
}

#[test]
fn a_dead_daemons_socket_is_replaced_and_a_live_ones_is_not() {
    let (folder, path, server) = served();
    let taken = Server::start(&path, Echo::default()).map(drop).unwrap_err();
    assert!(taken.to_string().contains("another process answers"), "{taken}");
    let named = socket::path_for("blkback", folder.path(), "x");
    assert!(named.to_string_lossy().contains(&std::process::id().to_string()), "{named:?}");
    drop(server);
    // As a killed daemon leaves it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(socket::find("blkback", folder.path()).unwrap(), std::slice::from_ref(&path));
    assert_eq!(socket::path_for("blkback", folder.path(), "x"), path);
    let again = Server::start(&path, Echo::default()).unwrap();
    assert!(Client::connect("blkback", again.path()).unwrap().ask(&Request::List).unwrap().is_ok());
    let file = folder.path().join("data");
    std::fs::write(&file, "precious").unwrap();
    assert!(Server::start(&file, Echo::default()).is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert!(socket::find("blkback", &folder.path().join("nowhere")).unwrap().is_empty());
}
