//! Clients that break the protocol, or do not read.

use proptest::prelude::*;

use super::super::exercise::exercise;
use super::*;
use crate::xenstore::wire::{Header, PAYLOAD_MAX};

#[test]
fn nonsense_is_refused_and_the_connection_lives_on() {
    let mut world = World::default();
    let one = world.join(1);
    for kind in [15, 16, 20, 23, 0xffff, u32::MAX] {
        let header = Header { kind, request: 5, transaction: 6, len: 1 };
        world.server.handle(one, &[&header.encode()[..], b"x"].concat()).unwrap();
        let [reply] = world.drain(one).try_into().unwrap();
        assert_eq!(reply.header.kind, Kind::Error.number());
        assert_eq!((reply.header.request, reply.header.transaction), (5, 6));
        assert_eq!(reply.payload, b"ENOSYS\0");
    }
    for kind in [Kind::Read, Kind::Directory, Kind::Write, Kind::Rm, Kind::Mkdir, Kind::SetPerms] {
        for payload in ["", "x", "\0", "/a b\0x", "//\0"] {
            assert_eq!(world.ask(one, kind, 0, payload), Err(Refusal::Invalid), "{kind:?}");
        }
    }
    for kind in [Kind::Introduce, Kind::Release, Kind::Resume, Kind::SetTarget, Kind::Control] {
        assert_eq!(world.ask(one, kind, 0, "1\x002\x003\0"), Err(Refusal::Access), "{kind:?}");
    }
    for number in ["", "x", "-1", "32752", "65536", "99999999999999999999"] {
        let asked = world.ask(one, Kind::GetDomainPath, 0, &format!("{number}\0"));
        assert_eq!(asked, Err(Refusal::Invalid), "{number}");
    }
    assert_eq!(world.ask(one, Kind::GetDomainPath, 0, "1\0").unwrap(), "/local/domain/1\0");
    assert_eq!(world.ask(one, Kind::IsDomainIntroduced, 0, "1\0").unwrap(), "F\0");
}

#[test]
fn a_message_that_announces_too_much_ends_the_connection() {
    let mut world = World::default();
    let one = world.join(1);
    let header = Header { kind: 2, request: 0, transaction: 0, len: 4097 };
    assert!(world.server.handle(one, &header.encode()).is_err());
}

#[test]
fn half_a_message_is_waited_for() {
    let mut world = World::default();
    let one = world.join(0);
    let bytes = wire::encode(Kind::Read, 1, 0, &[b"/tool/xenstored\0"]).unwrap();
    for byte in &bytes {
        assert_eq!(world.drain(one), []);
        assert_eq!(world.server.handle(one, &[*byte]), Ok(1));
    }
    assert_eq!(world.drain(one).len(), 1);
}

#[test]
fn who_reads_no_replies_has_its_requests_wait() {
    let mut world = World::default();
    let one = world.join(0);
    world.write(one, "/a", &"x".repeat(4000)).unwrap();
    let read = wire::encode(Kind::Read, 1, 0, &[b"/a\0"]).unwrap();
    let many = read.repeat(1000);
    let mut rest = many.as_slice();
    let mut replies = 0;
    while !rest.is_empty() {
        let taken = world.server.handle(one, rest).unwrap();
        rest = &rest[taken..];
        if !rest.is_empty() {
            assert!(!world.server.wants_input(one));
            assert_eq!(world.server.handle(one, rest), Ok(0));
        }
        let (held, _, _) = world.server.connections[&one].held();
        assert!(held <= quota::REPLY_BYTES + PAYLOAD_MAX + Header::SIZE, "{held}");
        replies += world.drain(one).len();
        assert!(world.server.wants_input(one));
    }
    assert_eq!(replies, 1000);
}

#[test]
fn long_paths_use_up_what_may_wait() {
    let mut world = World::default();
    let zero = world.join(0);
    let one = world.guest(zero, 1);
    world.watch(one, "a", "t").unwrap();
    world.news(one);
    let other = world.join(1);
    for round in 0..500 {
        let long = format!("a/{round:0>1500}");
        world.write(other, &long, "").unwrap();
        world.remove(other, &long).unwrap();
    }
    let (_, events, bytes) = world.server.connections[&one].held();
    assert!(events < 200 && bytes <= quota::EVENT_BYTES + 100, "{events} events, {bytes} bytes");
    assert_eq!(world.news(one).last().unwrap(), "a t");
    assert_eq!(world.server.connections[&one].held(), (0, 0, 0));

    let number = world.start(one).unwrap();
    let refused = (0..1000).find(|round| {
        let asked = world.ask(one, Kind::Read, number, &format!("{round:0>1500}\0"));
        asked == Err(Refusal::NoSpace)
    });
    assert!(refused.is_some_and(|round| (100..200).contains(&round)), "{refused:?}");
    assert_eq!(world.read(one, "a").unwrap(), "", "outside of it all goes on");
}

#[test]
fn long_lists_come_in_parts_that_fit() {
    let mut world = World::default();
    let one = world.join(0);
    let names: Vec<String> = (0..1500).map(|number| format!("n{number:04}")).collect();
    for name in &names {
        world.write(one, &format!("/l/{name}"), "").unwrap();
    }
    assert_eq!(world.ask(one, Kind::Directory, 0, "/l\0"), Err(Refusal::TooBig));
    let mut list = String::new();
    let mut generations = BTreeSet::new();
    loop {
        let part =
            world.ask(one, Kind::DirectoryPart, 0, &format!("/l\0{}\0", list.len())).unwrap();
        let (generation, part) = part.split_once('\0').unwrap();
        generations.insert(generation.to_owned());
        list.push_str(part);
        if list.ends_with("\0\0") {
            break;
        }
    }
    assert_eq!(list.trim_end_matches('\0').split('\0').collect::<Vec<_>>(), names);
    assert_eq!(generations.len(), 1);
    let whole = list.len() - 1;
    let mut part = |offset| world.ask(one, Kind::DirectoryPart, 0, &format!("/l\0{offset}\0"));
    assert!(part(whole).unwrap().ends_with("\0\0"));
    assert_eq!(part(whole + 1), Err(Refusal::Invalid));
    assert_eq!(part(usize::MAX), Err(Refusal::Invalid));
}

#[test]
fn the_deepest_path_there_can_be_is_no_trouble() {
    let mut world = World::default();
    let zero = world.join(0);
    let deep = "/a".repeat(1536);
    assert_eq!(deep.len(), path_limit());
    world.write(zero, &deep, "x").unwrap();
    let number = world.start(zero).unwrap();
    world.ask(zero, Kind::Rm, number, "/a\0").unwrap();
    world.end(zero, number, true).unwrap();
    assert_eq!(world.read(zero, &deep), Err(Refusal::Missing));
    assert_eq!(world.write(zero, &format!("{deep}/a"), "x"), Err(Refusal::Invalid));
}

fn path_limit() -> usize {
    crate::xenstore::path::ABSOLUTE_MAX
}

/// Messages that mean something more often than random bytes do, in the form `exercise` takes.
fn sensible() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::sample::select(vec![
        "/a\0",
        "a\0b",
        "/local/domain/1/x\0v",
        "x\0t\0",
        "/\0t\0",
        "@releaseDomain\0t\0",
        "\0",
        "T\0",
        "F\0",
        "x\0n1\0b2\0",
        "/\0n0\0b1\0",
        "/a\x000\0",
        "1\0",
        "2\x001\0",
        "1\x001\x001\0",
    ]);
    (0_u8..3, 0_u8..8, 0_u32..24, 0_u32..4, payload).prop_map(
        |(who, action, kind, transaction, payload)| {
            let len = u32::try_from(payload.len()).unwrap();
            let header = Header { kind, request: 1, transaction, len };
            let message = [&header.encode()[..], payload.as_bytes()].concat();
            let len = u8::try_from(message.len()).unwrap();
            [&[who | action << 2, len], message.as_slice()].concat()
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        exercise(&bytes);
    }

    #[test]
    fn any_sequence_of_requests_is_survived(
        steps in prop::collection::vec(sensible(), 0..400),
    ) {
        exercise(&steps.concat());
    }
}
