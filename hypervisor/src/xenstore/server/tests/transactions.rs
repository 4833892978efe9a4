//! What makes transactions conflict, and when their effects show.

use super::*;

fn world() -> (World, ConnId, ConnId) {
    let mut world = World::default();
    let (one, other) = (world.join(0), world.join(0));
    for path in ["/a/x", "/a/y", "/b/x"] {
        world.write(one, path, "old").unwrap();
    }
    (world, one, other)
}

/// Begins a transaction, does `mine` in it, `theirs` beside it, and commits.
fn race(mine: &[(Kind, &str)], theirs: &[(Kind, &str)]) -> Answered {
    let (mut world, one, other) = world();
    let number = world.start(one).unwrap();
    for (kind, payload) in mine {
        let _ = world.ask(one, *kind, number, payload);
    }
    for (kind, payload) in theirs {
        world.ask(other, *kind, 0, payload).unwrap();
    }
    world.end(one, number, true)
}

#[test]
fn conflicts() {
    let done = || Ok("OK\0".to_owned());
    let read = (Kind::Read, "/a/x\0");
    let write = (Kind::Write, "/a/x\0new");
    assert_eq!(race(&[read, write], &[]), done());
    assert_eq!(race(&[read], &[write]), Err(Refusal::Again));
    assert_eq!(race(&[write], &[write]), Err(Refusal::Again));
    assert_eq!(race(&[read], &[(Kind::SetPerms, "/a/x\0r0\0")]), Err(Refusal::Again));
    assert_eq!(race(&[read], &[(Kind::Rm, "/a\0")]), Err(Refusal::Again));
    assert_eq!(race(&[read], &[(Kind::Rm, "/a\0"), write]), Err(Refusal::Again), "made anew");
    // A node is not its siblings, nor its parent's value, nor its children's.
    assert_eq!(race(&[read, write], &[(Kind::Write, "/a/y\0")]), done());
    assert_eq!(race(&[read, write], &[(Kind::Write, "/a\0")]), done());
    assert_eq!(race(&[(Kind::Read, "/a\0")], &[write]), done());
    assert_eq!(race(&[read], &[(Kind::Read, "/a/x\0")]), done());
    // A list of children is its parent's.
    let list = (Kind::Directory, "/a\0");
    assert_eq!(race(&[list], &[write]), done());
    assert_eq!(race(&[list], &[(Kind::Write, "/a/z\0")]), Err(Refusal::Again));
    assert_eq!(race(&[list], &[(Kind::Rm, "/a/y\0")]), Err(Refusal::Again));
    // What is not there may come to be.
    assert_eq!(race(&[(Kind::Read, "/n/m\0")], &[(Kind::Write, "/n/m\0")]), Err(Refusal::Again));
    // Removing looks at all that goes.
    let remove = (Kind::Rm, "/a\0");
    assert_eq!(race(&[remove], &[write]), Err(Refusal::Again));
    assert_eq!(race(&[remove], &[(Kind::Write, "/a/z\0")]), Err(Refusal::Again));
    assert_eq!(race(&[remove], &[(Kind::Write, "/b/x\0")]), done());
}

#[test]
fn effects_show_at_the_end_and_only_if_it_holds() {
    let (mut world, one, other) = world();
    world.watch(other, "/", "t").unwrap();
    world.news(other);
    for commit in [false, true] {
        let number = world.start(one).unwrap();
        world.ask(one, Kind::Write, number, "/a/x\0new").unwrap();
        world.ask(one, Kind::Write, number, "/a/x\0newer").unwrap();
        world.ask(one, Kind::Write, number, "/c/d\0").unwrap();
        world.ask(one, Kind::Rm, number, "/b\0").unwrap();
        world.ask(one, Kind::Write, number, "/e\0").unwrap();
        world.ask(one, Kind::Rm, number, "/e\0").unwrap();
        assert_eq!(world.read(other, "/a/x").unwrap(), "old");
        assert_eq!(world.read(other, "/c"), Err(Refusal::Missing));
        assert_eq!(world.news(other), [""; 0]);
        world.end(one, number, commit).unwrap();
    }
    assert_eq!(world.read(other, "/a/x").unwrap(), "newer");
    assert_eq!(world.read(other, "/b"), Err(Refusal::Missing));
    assert_eq!(world.read(other, "/c/d").unwrap(), "");
    assert_eq!(world.news(other), ["/a/x t", "/b t", "/c t", "/c/d t"]);
}

#[test]
fn numbers_that_mean_nothing_are_refused() {
    let (mut world, one, other) = world();
    let number = world.start(one).unwrap();
    assert_eq!(world.ask(other, Kind::Read, number, "/a\0"), Err(Refusal::Missing));
    assert_eq!(world.end(other, number, true), Err(Refusal::Missing));
    assert_eq!(world.end(one, 0, true), Err(Refusal::Missing));
    assert_eq!(world.ask(one, Kind::TransactionStart, number, "\0"), Err(Refusal::Busy));
    assert_eq!(world.ask(one, Kind::TransactionEnd, number, "X\0"), Err(Refusal::Invalid));
    world.end(one, number, true).unwrap();
    assert_eq!(world.end(one, number, true), Err(Refusal::Missing));
}

#[test]
fn permissions_count_inside_too() {
    let (mut world, zero, _) = world();
    let one = world.guest(zero, 1);
    let number = world.start(one).unwrap();
    assert_eq!(world.ask(one, Kind::Write, number, "/a/x\0"), Err(Refusal::Access));
    world.ask(one, Kind::Write, number, "mine\0x").unwrap();
    world.ask(one, Kind::SetPerms, number, "mine\0r1\0").unwrap();
    world.end(one, number, true).unwrap();
    assert_eq!(world.allowed(zero, "/local/domain/1/mine").unwrap(), "r1");
}
