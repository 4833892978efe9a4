//! The wire against the public header's values, and against itself.

use proptest::prelude::*;

use super::*;

#[test]
fn kinds_have_the_header_s_numbers() {
    let numbers = [
        (Kind::Control, 0),
        (Kind::Directory, 1),
        (Kind::Read, 2),
        (Kind::GetPerms, 3),
        (Kind::Watch, 4),
        (Kind::Unwatch, 5),
        (Kind::TransactionStart, 6),
        (Kind::TransactionEnd, 7),
        (Kind::Introduce, 8),
        (Kind::Release, 9),
        (Kind::GetDomainPath, 10),
        (Kind::Write, 11),
        (Kind::Mkdir, 12),
        (Kind::Rm, 13),
        (Kind::SetPerms, 14),
        (Kind::WatchEvent, 15),
        (Kind::Error, 16),
        (Kind::IsDomainIntroduced, 17),
        (Kind::Resume, 18),
        (Kind::SetTarget, 19),
        (Kind::ResetWatches, 21),
        (Kind::DirectoryPart, 22),
    ];
    for (kind, number) in numbers {
        assert_eq!(kind.number(), number);
        assert_eq!(Kind::from_number(number), Some(kind));
    }
    for none in [20, 23, 0xffff, u32::MAX] {
        assert_eq!(Kind::from_number(none), None);
    }
}

#[test]
fn a_header_is_four_native_words() {
    let header = Header { kind: 11, request: 2, transaction: 3, len: 4 };
    let mut words = Vec::new();
    for word in [11_u32, 2, 3, 4] {
        words.extend_from_slice(&word.to_ne_bytes());
    }
    assert_eq!(header.encode().as_slice(), words);
    assert_eq!(Header::decode(header.encode()), header);
}

#[test]
fn refusals_go_by_name_and_have_this_system_s_numbers() {
    let numbers = [
        (Refusal::Invalid, "EINVAL", nix::errno::Errno::EINVAL),
        (Refusal::Access, "EACCES", nix::errno::Errno::EACCES),
        (Refusal::Exists, "EEXIST", nix::errno::Errno::EEXIST),
        (Refusal::IsDirectory, "EISDIR", nix::errno::Errno::EISDIR),
        (Refusal::Missing, "ENOENT", nix::errno::Errno::ENOENT),
        (Refusal::NoMemory, "ENOMEM", nix::errno::Errno::ENOMEM),
        (Refusal::NoSpace, "ENOSPC", nix::errno::Errno::ENOSPC),
        (Refusal::Io, "EIO", nix::errno::Errno::EIO),
        (Refusal::NotEmpty, "ENOTEMPTY", nix::errno::Errno::ENOTEMPTY),
        (Refusal::NoSuchRequest, "ENOSYS", nix::errno::Errno::ENOSYS),
        (Refusal::ReadOnly, "EROFS", nix::errno::Errno::EROFS),
        (Refusal::Busy, "EBUSY", nix::errno::Errno::EBUSY),
        (Refusal::Again, "EAGAIN", nix::errno::Errno::EAGAIN),
        (Refusal::Connected, "EISCONN", nix::errno::Errno::EISCONN),
        (Refusal::TooBig, "E2BIG", nix::errno::Errno::E2BIG),
        (Refusal::NotPermitted, "EPERM", nix::errno::Errno::EPERM),
    ];
    for (refusal, name, errno) in numbers {
        assert_eq!(refusal.name(), name);
        assert_eq!(refusal.errno(), errno as i32);
        assert_eq!(Refusal::from_name(name.as_bytes()), Some(refusal));
    }
    assert_eq!(Refusal::from_name(b"EWHAT"), None);
}

#[test]
fn permission_strings() {
    let zero = |read, write| Permission { domain: DomId::ZERO, read, write };
    for (text, permission) in [
        ("n0", zero(false, false)),
        ("r0", zero(true, false)),
        ("w0", zero(false, true)),
        ("b0", zero(true, true)),
        ("r31", Permission { domain: DomId::new(31).unwrap(), read: true, write: false }),
    ] {
        assert_eq!(parse_permission(text.as_bytes()), Some(permission));
        assert_eq!(permission_string(&permission), text);
    }
    for bad in ["", "r", "x0", "r-1", "r+1", "r 1", "r65536", "r32752", "0r"] {
        assert_eq!(parse_permission(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn a_payload_may_be_4096_bytes_and_no_more() {
    assert!(encode(Kind::Write, 0, 0, &[&[7; 4096]]).is_ok());
    assert_eq!(encode(Kind::Write, 0, 0, &[&[7; 4096], &[7]]), Err(TooLong(4097)));
    let announce = |len| Header { kind: 11, request: 0, transaction: 0, len }.encode();
    assert_eq!(Parser::default().feed(&announce(4096)), Ok(16));
    assert_eq!(Parser::default().feed(&announce(4097)), Err(TooLong(4097)));
    assert_eq!(Parser::up_to(4097).feed(&announce(4097)), Ok(16));
    assert!(Parser::default().feed(&announce(u32::MAX)).is_err());
}

#[test]
fn strings_are_cut_at_their_ends() {
    assert_eq!(strings::<2>(b"a\0bc\0d\0e"), Some(([&b"a"[..], b"bc"], &b"d\0e"[..])));
    assert_eq!(strings::<1>(b"\0"), Some(([&b""[..]], &b""[..])));
    assert_eq!(strings::<1>(b"a"), None);
    assert_eq!(strings::<2>(b"a\0b"), None);
    assert_eq!(strings::<0>(b"a"), Some(([], &b"a"[..])));
}

proptest! {
    #[test]
    fn messages_survive_being_cut_anywhere(
        messages in prop::collection::vec(
            (any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)), 1..6),
        cut in 1_usize..50,
    ) {
        let mut stream = Vec::new();
        for (request, transaction, payload) in &messages {
            stream.extend(encode(Kind::Read, *request, *transaction, &[payload]).unwrap());
        }
        let mut parser = Parser::default();
        let mut found = Vec::new();
        for mut piece in stream.chunks(cut) {
            loop {
                let taken = parser.feed(piece).unwrap();
                piece = &piece[taken..];
                match parser.take() {
                    Some(message) => found.push(message),
                    None => break,
                }
            }
            prop_assert!(piece.is_empty());
        }
        prop_assert_eq!(found.len(), messages.len());
        for (message, (request, transaction, payload)) in found.iter().zip(&messages) {
            prop_assert_eq!(message.header.request, *request);
            prop_assert_eq!(message.header.transaction, *transaction);
            prop_assert_eq!(&message.payload, payload);
        }
    }

    #[test]
    fn garbage_is_never_held_beyond_one_message(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        let mut parser = Parser::default();
        let mut rest = bytes.as_slice();
        while let Ok(taken) = parser.feed(rest) {
            rest = &rest[taken..];
            prop_assert!(parser.bytes.len() <= PAYLOAD_MAX);
            if parser.take().is_none() {
                prop_assert!(rest.is_empty());
                break;
            }
        }
    }
}
