//! The store's messages: whatever parses must be what was sent, however it was cut into pieces.
#![no_main]

use hypervisor::xenstore::wire::{Header, Parser};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let step = usize::from(*step) + 1;
    let whole = parse(bytes, bytes.len().max(1));
    assert_eq!(whole, parse(bytes, step), "the pieces changed the messages");
    let mut again = Vec::new();
    for (header, payload) in &whole {
        again.extend_from_slice(header);
        again.extend_from_slice(payload);
    }
    assert!(bytes.starts_with(&again), "what was parsed is not what was sent");
});

/// The messages in `bytes`, each as its header's bytes and its payload, until one is refused.
fn parse(bytes: &[u8], step: usize) -> Vec<([u8; Header::SIZE], Vec<u8>)> {
    let mut parser = Parser::default();
    let mut messages = Vec::new();
    for piece in bytes.chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() {
            let Ok(used) = parser.feed(rest) else { return messages };
            while let Some(message) = parser.take() {
                messages.push((message.header.encode(), message.payload));
            }
            assert!(used > 0, "no bytes taken and no message given");
            rest = &rest[used..];
        }
    }
    messages
}
