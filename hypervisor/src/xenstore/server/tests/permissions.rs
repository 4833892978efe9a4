//! Who may do what, how much of it, and what becomes of it when they go.

use super::*;

#[test]
fn a_new_node_has_its_parent_s_permissions_and_its_maker_for_owner() {
    let mut world = World::default();
    let zero = world.join(0);
    world.write(zero, "/a", "").unwrap();
    world.allow(zero, "/a", "n0 b1 r2").unwrap();
    let one = world.join(1);
    world.write(one, "/a/b/c", "x").unwrap();
    assert_eq!(world.allowed(zero, "/a/b").unwrap(), "n1 b1 r2");
    assert_eq!(world.allowed(zero, "/a/b/c").unwrap(), "n1 b1 r2");
    let two = world.join(2);
    assert_eq!(world.read(two, "/a/b/c").unwrap(), "x");
    assert_eq!(world.write(two, "/a/b/c", ""), Err(Refusal::Access));
    assert_eq!(world.write(two, "/a/new", ""), Err(Refusal::Access));
    assert_eq!(world.remove(two, "/a/b"), Err(Refusal::Access));
    let three = world.join(3);
    assert_eq!(world.read(three, "/a/b/c"), Err(Refusal::Access));
    assert_eq!(world.read(three, "/a/none"), Err(Refusal::Access));
    assert_eq!(world.read(two, "/a/none"), Err(Refusal::Missing));
    world.write(zero, "/a/b/zero", "").unwrap();
    assert_eq!(world.allowed(zero, "/a/b/zero").unwrap(), "n1 b1 r2", "as the parent's");
}

#[test]
fn only_the_owner_changes_permissions_and_only_zero_the_owner() {
    let mut world = World::default();
    let zero = world.join(0);
    let one = world.guest(zero, 1);
    let two = world.join(2);
    world.write(one, "key", "x").unwrap();
    assert_eq!(world.read(two, "/local/domain/1/key"), Err(Refusal::Access));
    world.allow(one, "key", "n1 b2").unwrap();
    assert_eq!(world.read(two, "/local/domain/1/key").unwrap(), "x");
    world.write(two, "/local/domain/1/key", "y").unwrap();
    assert_eq!(world.allow(two, "/local/domain/1/key", "n1"), Err(Refusal::Access));
    assert_eq!(world.allow(one, "key", "n2"), Err(Refusal::NotPermitted));
    world.allow(zero, "/local/domain/1/key", "n2").unwrap();
    assert_eq!(world.read(one, "key"), Err(Refusal::Access));
    for bad in ["", "x1", "r", "r1 ", "r99999"] {
        assert_eq!(world.allow(zero, "/tool", bad), Err(Refusal::Invalid), "{bad:?}");
    }
}

#[test]
fn a_device_model_acts_for_its_target() {
    let mut world = World::default();
    let zero = world.join(0);
    let one = world.guest(zero, 1);
    let two = world.join(2);
    world.write(one, "key", "x").unwrap();
    let set = |world: &mut World, who| world.ask(who, Kind::SetTarget, 0, "2\x001\0");
    assert_eq!(set(&mut world, zero), Err(Refusal::Missing));
    world.server.introduce(domain(1));
    world.server.introduce(domain(2));
    assert_eq!(set(&mut world, two), Err(Refusal::Access));
    set(&mut world, zero).unwrap();
    assert_eq!(world.read(two, "/local/domain/1/key").unwrap(), "x");
    world.server.release(domain(1));
    world.guest(zero, 1);
    assert_eq!(world.read(two, "/local/domain/1"), Err(Refusal::Access), "another domain 1");
}

#[test]
fn a_domain_has_its_quota_and_zero_has_none() {
    let mut world = World::default();
    let zero = world.join(0);
    let one = world.guest(zero, 1);
    world.write(one, "key", &"x".repeat(2048)).unwrap();
    assert_eq!(world.write(one, "key", &"x".repeat(2049)), Err(Refusal::NoSpace));
    world.write(zero, "/key", &"x".repeat(4000)).unwrap();

    // Its home and the key are two.
    for number in 2..1000 {
        world.write(one, &format!("n{number}"), "").unwrap();
    }
    assert_eq!(world.write(one, "more", ""), Err(Refusal::NoSpace));
    assert_eq!(world.ask(one, Kind::Mkdir, 0, "more\0"), Err(Refusal::NoSpace));
    world.write(one, "key", "there already").unwrap();
    world.write(zero, "/local/domain/1/more", "").unwrap();
    world.remove(one, "n2").unwrap();
    world.remove(one, "n3").unwrap();
    assert_eq!(world.write(one, "a/b", ""), Err(Refusal::NoSpace), "two, and one is left");
    world.write(one, "a", "").unwrap();

    assert_eq!(world.allow(one, "a", "n1 r2 r3 r4 r5 r6"), Err(Refusal::NoSpace));
    world.allow(one, "a", "n1 r2 r3 r4 r5").unwrap();
    world.allow(zero, "/key", "n0 r1 r2 r3 r4 r5 r6").unwrap();
}

#[test]
fn watches_and_transactions_are_counted_over_all_connections() {
    let mut world = World::default();
    let zero = world.join(0);
    let one = world.guest(zero, 1);
    let again = world.join(1);
    for number in 0..128 {
        let who = if number % 2 == 0 { one } else { again };
        world.watch(who, "/a", &number.to_string()).unwrap();
        world.watch(zero, "/a", &number.to_string()).unwrap();
    }
    assert_eq!(world.watch(one, "/a", "more"), Err(Refusal::TooBig));
    assert_eq!(world.watch(again, "/a", "more"), Err(Refusal::TooBig));
    world.watch(zero, "/a", "more").unwrap();
    world.ask(one, Kind::Unwatch, 0, "/a\x000\0").unwrap();
    world.watch(again, "/a", "more").unwrap();

    for number in 0..10 {
        world.start(if number % 2 == 0 { one } else { again }).unwrap();
        world.start(zero).unwrap();
    }
    assert_eq!(world.start(one), Err(Refusal::NoSpace));
    assert_eq!(world.start(again), Err(Refusal::NoSpace));
    world.start(zero).unwrap();
    world.server.disconnect(again);
    world.start(one).unwrap();

    for _ in 1..Quota::default().connections {
        world.join(1);
    }
    let refused = world.server.connect(domain(1)).unwrap_err().to_string();
    assert!(refused.contains("16 connections"), "{refused}");
    world.join(0);
}

#[test]
fn a_transaction_cannot_evade_the_quota() {
    let mut world = World::default();
    let zero = world.join(0);
    let one = world.guest(zero, 1);
    let fill = |world: &mut World, place: u32, folder: &str| {
        (0..600).try_for_each(|number| {
            world.ask(one, Kind::Write, place, &format!("{folder}{number}\0")).map(drop)
        })
    };
    let (first, second) = (world.start(one).unwrap(), world.start(one).unwrap());
    fill(&mut world, first, "a/").unwrap();
    assert_eq!(fill(&mut world, first, "b/"), Err(Refusal::NoSpace));
    world.write(one, "c", "").unwrap();
    assert_eq!(world.end(one, first, true), Err(Refusal::Again), "the home has a new child");
    world.end(one, second, false).unwrap();

    // Two that touch different nodes, each within the quota.
    for folder in ["x", "y"] {
        world.ask(one, Kind::Mkdir, 0, &format!("{folder}\0")).unwrap();
    }
    let (first, second) = (world.start(one).unwrap(), world.start(one).unwrap());
    fill(&mut world, first, "x/").unwrap();
    fill(&mut world, second, "y/").unwrap();
    world.end(one, first, true).unwrap();
    assert_eq!(world.end(one, second, true), Err(Refusal::NoSpace));
    assert_eq!(world.server.tree.owned(domain(1)), 604);
    assert_eq!(world.ask(one, Kind::Directory, 0, "y\0").unwrap(), "");

    // Nor can it look at more nodes than it may.
    let reads = world.start(one).unwrap();
    let refused = (0..2000)
        .map(|number| world.ask(one, Kind::Read, reads, &format!("none{number}\0")))
        .find(|answer| *answer != Err(Refusal::Missing));
    assert_eq!(refused, Some(Err(Refusal::NoSpace)));
}

#[test]
fn what_a_domain_owned_goes_with_it() {
    let mut world = World::default();
    let zero = world.join(0);
    let one = world.guest(zero, 1);
    world.server.introduce(domain(1));
    world.write(one, "device/vbd", "x").unwrap();
    world.write(zero, "/local/domain/1/device/by-zero", "x").unwrap();
    world.allow(zero, "/local/domain/1/device/by-zero", "n0").unwrap();
    world.write(zero, "/kept", "x").unwrap();
    world.allow(zero, "/kept", "n0 r1 r2").unwrap();
    world.watch(zero, "/local/domain/1/device/vbd", "v").unwrap();
    world.watch(zero, "/local/domain", "d").unwrap();
    world.watch(zero, "@releaseDomain", "r").unwrap();
    world.news(zero);

    assert_eq!(world.ask(zero, Kind::Release, 0, "1\0").unwrap(), "OK\0");
    assert_eq!(
        world.news(zero),
        ["/local/domain/1 d", "/local/domain/1/device/vbd v", "@releaseDomain r"]
    );
    assert!(!world.server.is_connected(one));
    assert_eq!(world.read(zero, "/local/domain/1"), Err(Refusal::Missing));
    assert_eq!(world.read(zero, "/local/domain/1/device/by-zero"), Err(Refusal::Missing));
    assert_eq!(world.allowed(zero, "/kept").unwrap(), "n0 r2", "the next domain 1 is another");
    assert_eq!(world.server.tree.owned(domain(1)), 0);
    assert_eq!(world.ask(zero, Kind::Release, 0, "1\0"), Err(Refusal::Missing));
    assert_eq!(world.ask(zero, Kind::Release, 0, "0\0"), Err(Refusal::Invalid));
    assert_eq!(world.read(zero, "/kept").unwrap(), "x");
}
