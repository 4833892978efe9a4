//! Monitors that break the protocol.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use crate::raw::message;
use crate::served::Served;

#[test]
fn monitors_that_break_the_protocol_are_let_go_by_name() {
    let served = Served::new();
    let number = |value: u64| value.to_ne_bytes().to_vec();
    let pair = |a: u32, b: u32| [a.to_ne_bytes(), b.to_ne_bytes()].concat();
    let long = message(2, 1, &[]);
    let long = [long[..8].to_vec(), 5000_u32.to_ne_bytes().to_vec()].concat();
    for (bytes, name) in [
        (message(1, 0, &[]), "message_flags"),
        (message(1, 5, &[]), "message_flags"),
        (long, "message_length"),
        (message(99, 1, &[]), "message_unknown"),
        (message(2, 1, &[1, 2]), "message_too_short"),
        (message(2, 1, &number(1 << 63)), "features_not_offered"),
        (message(16, 1, &number(1 << 63)), "protocol_features_not_offered"),
        (message(5, 1, &pair(1, 0)), "memory_descriptors"),
        (message(37, 1, &[0; 40]), "memory_descriptors"),
        (message(38, 1, &[0; 40]), "memory_not_there"),
        (message(8, 1, &pair(4, 128)), "queue_number"),
        (message(10, 1, &pair(0, 70000)), "queue_base"),
        (message(12, 1, &number(1 << 8)), "queue_without_kick"),
        (message(12, 1, &number(0)), "queue_descriptors"),
        (message(24, 1, &[[0; 4], [1; 4], [0; 4]].concat()), "configuration_length"),
        (message(25, 1, &[0; 12]), "configuration_not_writable"),
        (message(31, 1, &[0; 24]), "inflight_size"),
    ] {
        let mut socket = UnixStream::connect(served.path()).unwrap();
        socket.write_all(&bytes).unwrap();
        served.until_fault(name);
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "{name}: an answer: {rest:?}");
    }
    // And the next one is served.
    let mut socket = UnixStream::connect(served.path()).unwrap();
    socket.write_all(&message(17, 1, &[])).unwrap();
    let mut answer = [0; 20];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer[12..], 4_u64.to_ne_bytes());
}
