//! The control socket under arbitrary bytes in arbitrary pieces: every line is answered with one
//! line, in words where it is no request, and whoever sends too much is hung up on.
#![no_main]

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::OnceLock;

use blkback::control::Request;
use hypervisor::daemon::control::{Desk, LONGEST_REQUEST, Response, Server};

/// Answers with what it was asked.
struct Echo;

impl Desk for Echo {
    type Request = Request;

    fn answer(&self, request: Request) -> Result<serde_json::Value, String> {
        match request {
            Request::Detach { force: true } => Err("no".repeat(3000)),
            other => serde_json::to_value(other).map_err(|error| error.to_string()),
        }
    }
}

/// One server for all inputs, which never goes: what one client did must not reach the next. Its
/// socket lies where what fuzzing makes lies, and the next run takes its place.
fn served() -> &'static Path {
    static SERVED: OnceLock<Server> = OnceLock::new();
    let server = SERVED.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts");
        std::fs::create_dir_all(&folder).unwrap();
        Server::start(&folder.join("control.sock"), Echo).unwrap()
    });
    server.path()
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let mut stream = UnixStream::connect(served()).unwrap();
    for piece in bytes.chunks(usize::from(*step) * 16 + 1) {
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut said = Vec::new();
    // It may hang up on us while we still send.
    let whole = stream.read_to_end(&mut said).is_ok();
    check(bytes, &said, whole);
});

fn check(asked: &[u8], said: &[u8], whole: bool) {
    let mut answers = said.split_inclusive(|byte| *byte == b'\n');
    for line in asked.split_inclusive(|byte| *byte == b'\n') {
        let Some(answer) = answers.next() else {
            // A last line without its end is not answered; nor is what follows a line that is too long.
            assert!(!line.ends_with(b"\n") || !whole, "a line without an answer");
            return;
        };
        if !whole && !answer.ends_with(b"\n") {
            return;
        }
        let answer: Response = serde_json::from_slice(answer).unwrap();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let asked = serde_json::from_slice::<Request>(line);
        match (asked, answer) {
            (Ok(request), Response::Result(value)) => {
                assert_eq!(serde_json::from_value::<Request>(value).unwrap(), request);
            }
            (Ok(request), Response::Error(words)) => {
                let refused = matches!(request, Request::Detach { force: true });
                assert!(refused || line.len() >= LONGEST_REQUEST, "{request:?}: {words}");
            }
            (Err(_), Response::Error(_)) => {}
            (Err(error), Response::Result(value)) => panic!("{error} was answered with {value}"),
        }
        if line.len() >= LONGEST_REQUEST {
            return;
        }
    }
    assert!(answers.next().is_none(), "more answers than lines");
}
