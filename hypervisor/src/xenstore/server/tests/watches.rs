//! Who is told of what, when, and how often.

use super::*;

#[test]
fn at_once_and_then_of_the_node_and_all_below() {
    let mut world = World::default();
    let (one, other) = (world.join(0), world.join(0));
    world.watch(one, "/a/b", "t").unwrap();
    assert_eq!(world.news(one), ["/a/b t"]);
    for (path, told) in [("/a/b", true), ("/a/b/c/d", true), ("/a", false), ("/a/bc", false)] {
        world.write(other, path, "").unwrap();
        let news: Vec<_> = told.then(|| format!("{path} t")).into_iter().collect();
        assert_eq!(world.news(one), news);
    }
    world.allow(other, "/a/b", "r0").unwrap();
    assert_eq!(world.news(one), ["/a/b t"]);
    world.ask(other, Kind::Mkdir, 0, "/a/b\0").unwrap();
    world.read(other, "/a/b").unwrap();
    assert_eq!(world.news(one), [""; 0], "nothing changed");
    world.remove(other, "/a").unwrap();
    assert_eq!(world.news(one), ["/a/b t"], "of what went above it, by its own path");
    world.remove(other, "/a").unwrap();
    assert_eq!(world.news(one), [""; 0], "it was not there");
}

#[test]
fn twice_the_same_is_refused_and_none_cannot_be_given_up() {
    let mut world = World::default();
    let one = world.join(0);
    world.watch(one, "/a", "t").unwrap();
    assert_eq!(world.watch(one, "/a", "t"), Err(Refusal::Exists));
    world.watch(one, "/a", "u").unwrap();
    world.ask(one, Kind::Unwatch, 0, "/a\0t\0").unwrap();
    assert_eq!(world.ask(one, Kind::Unwatch, 0, "/a\0t\0"), Err(Refusal::Missing));
    world.news(one);
    world.write(one, "/a", "").unwrap();
    assert_eq!(world.news(one), ["/a u"]);
    for bad in ["", "/a\0", "a b\0t\0", "/a\0t\0more\0"] {
        assert_eq!(world.ask(one, Kind::Watch, 0, bad), Err(Refusal::Invalid), "{bad:?}");
    }
}

#[test]
fn a_relative_watch_is_told_relative_paths() {
    let mut world = World::default();
    let zero = world.join(0);
    let one = world.guest(zero, 1);
    world.watch(one, "device", "t").unwrap();
    world.watch(one, "/local/domain/1/device", "t").unwrap();
    assert_eq!(world.news(one), ["device t", "/local/domain/1/device t"]);
    world.write(zero, "/local/domain/1/device/vbd", "").unwrap();
    assert_eq!(world.news(one), ["device/vbd t", "/local/domain/1/device/vbd t"]);
    world.ask(one, Kind::Unwatch, 0, "device\0t\0").unwrap();
    world.remove(zero, "/local/domain/1/device").unwrap();
    assert_eq!(world.news(one), ["/local/domain/1/device t"]);
}

#[test]
fn nobody_is_told_of_what_it_may_not_read() {
    let mut world = World::default();
    let zero = world.join(0);
    let one = world.guest(zero, 1);
    world.watch(one, "/", "t").unwrap();
    world.watch(one, "@introduceDomain", "i").unwrap();
    assert_eq!(world.news(one), ["/ t", "@introduceDomain i"], "on registration always");
    world.write(zero, "/secret/x", "").unwrap();
    world.server.introduce(domain(3));
    assert_eq!(world.news(one), [""; 0]);
    world.allow(zero, "/secret/x", "n0 r1").unwrap();
    assert_eq!(world.news(one), ["/secret/x t"]);
    world.allow(zero, "/secret/x", "n0").unwrap();
    assert_eq!(world.news(one), ["/secret/x t"], "it could, until now");
    world.write(zero, "/secret/x", "").unwrap();
    assert_eq!(world.news(one), [""; 0]);

    assert_eq!(world.allow(one, "@introduceDomain", "r1"), Err(Refusal::Access));
    world.allow(zero, "@introduceDomain", "n0 r1").unwrap();
    assert_eq!(world.allowed(zero, "@introduceDomain").unwrap(), "n0 r1");
    world.server.introduce(domain(4));
    assert_eq!(world.news(one), ["@introduceDomain i"]);
    world.server.introduce(domain(4));
    assert_eq!(world.news(one), [""; 0], "it is known");
}

#[test]
fn changes_are_coalesced_while_nobody_reads() {
    let mut world = World::default();
    let (slow, other) = (world.join(0), world.join(0));
    world.send(slow, Kind::Watch, 0, b"/a\0t\0");
    for round in 0..1000 {
        world.write(other, "/a/x", &round.to_string()).unwrap();
        world.write(other, "/a/y", &round.to_string()).unwrap();
    }
    assert_eq!(world.drain(slow).len(), 1);
    assert_eq!(world.news(slow), ["/a t", "/a/x t", "/a/y t"]);
    world.write(other, "/a/x", "").unwrap();
    assert_eq!(world.news(slow), ["/a/x t"], "what was read may be told again");
}

#[test]
fn a_crowd_of_changes_ends_in_one_at_the_watch_s_own_path() {
    let mut world = World::default();
    let (slow, other) = (world.join(0), world.join(0));
    world.watch(slow, "/a", "t").unwrap();
    world.watch(slow, "/b", "t").unwrap();
    world.news(slow);
    for round in 0..3 * quota::EVENTS {
        world.write(other, &format!("/a/{round}"), "").unwrap();
    }
    world.write(other, "/b/c", "").unwrap();
    let news = world.news(slow);
    assert_eq!(news.len(), quota::EVENTS + 2);
    assert_eq!(news[quota::EVENTS..], ["/a t", "/b t"]);
    world.write(other, "/b/c", "").unwrap();
    assert_eq!(world.news(slow), ["/b/c t"]);
}

#[test]
fn a_watch_given_up_or_reset_is_told_nothing_more() {
    let mut world = World::default();
    let (slow, other) = (world.join(0), world.join(0));
    world.watch(slow, "/a", "t").unwrap();
    world.watch(slow, "/b", "t").unwrap();
    world.news(slow);
    world.write(other, "/a", "").unwrap();
    world.write(other, "/b", "").unwrap();
    world.send(slow, Kind::Unwatch, 0, b"/a\0t\0");
    world.drain(slow);
    assert_eq!(world.news(slow), ["/b t"]);
    world.write(other, "/b", "").unwrap();
    world.send(slow, Kind::ResetWatches, 0, b"\0");
    world.drain(slow);
    assert_eq!(world.news(slow), [""; 0]);
}

#[test]
fn an_event_too_long_for_a_message_names_the_watch_s_own_path() {
    let mut world = World::default();
    let (one, other) = (world.join(0), world.join(0));
    let token = "t".repeat(3000);
    world.watch(one, "/a", &token).unwrap();
    world.news(one);
    world.write(other, &format!("/a/{}", "x".repeat(2000)), "").unwrap();
    assert_eq!(world.news(one), [format!("/a {token}")]);
}
