//! How a queue behaves beside the bytes: rates, pages that are missing, multicast, its end.

use std::time::Duration;

use hypervisor::GrantRef;
use netback::buffer::Pool;
use netback::credit::Rate;
use netback::queue::{Ended, Serving};
use netback::tx::admit::Needs;
use netback::tx::assemble::Assemble;
use netback::vnet;
use ring::Waiting;
use ring::wire::netif::Status;
use ring::wire::netif::chain::{Multicast, Offload};
use ring::wire::netif::split::multicast;
use ring::wire::netif::tx::{Flags, Request};

use super::packets::Shape;
use super::scene::{Scene, Setting, eventually};

const SMALL: Shape = Shape { v6: false, tcp: true, payload: 100, seed: 1 };
const LARGE: Shape = Shape { v6: false, tcp: true, payload: 60_000, seed: 2 };

fn serving(change: impl FnOnce(&mut Serving)) -> Setting {
    let mut setting = Setting::default();
    change(&mut setting.serving);
    setting
}

#[test]
fn a_queue_ends_as_told_and_tells_so() {
    let scene = Scene::new();
    let (_guest, served) = scene.serve(0, Setting::default());
    served.handle().stop();
    assert_eq!(served.ended(), Ended::Stopped);
}

#[test]
fn a_rate_holds_packets_back_and_a_change_lets_them_go() {
    let scene = Scene::new();
    let setting = Setting::default();
    // So slow that what is held stays held for as long as a test may take.
    setting.serving.limits.tx.set(Some(Rate { bytes: 1, micros: u64::from(u32::MAX) }));
    let (mut guest, mut served) = scene.serve(0, setting);
    for _ in 0..4 {
        guest.send(&LARGE.bytes(), Offload::default(), &[]);
    }
    served.until("it is used up", |stats| stats.tx_held == 1 && stats.tx_packets == 2);
    for _ in 0..2 {
        assert_eq!(served.take().1, LARGE.bytes());
    }
    served.serving.limits.tx.set(None);
    served.handle().wake();
    for _ in 0..2 {
        assert_eq!(served.take().1, LARGE.bytes());
    }
}

#[test]
fn what_waits_for_memory_is_tried_again_by_itself() {
    let scene = Scene::new();
    let (mut front, mut receive) = scene.sending();
    let request = Request { gref: GrantRef(1), offset: 0, flags: Flags::NONE, id: 3, size: 60 };
    front.push(&request.into()).unwrap();
    let _ = front.publish();
    let (credit, groups, stats) = Default::default();
    let (mut none, mut some) = (Pool::new(0), Pool::new(1));
    let mut assemble = Assemble::default();
    let mut next = |pool: &mut Pool, room, now| {
        let (credit, groups, stats) = (&credit, &groups, &stats);
        let mut needs = Needs { pool, room, credit, groups, stats, now };
        let staged = assemble.next(&mut receive, &mut needs).unwrap();
        (staged.map(|staged| staged.chain.slots()), assemble.until(), assemble.holds())
    };
    // Room at the port is told of; memory is not.
    assert_eq!(next(&mut some, 0, 1), (None, None, true));
    let (staged, until, held) = next(&mut none, 1, 1);
    assert_eq!((staged, held), (None, true));
    let until = until.expect("it is tried again by itself");
    assert!(until > 1);
    assert_eq!(next(&mut some, 1, until), (Some(1), None, false));
}

#[test]
fn a_rate_for_what_is_received_is_kept_too() {
    let scene = Scene::new();
    let setting = Setting::default();
    setting.serving.limits.rx.set(Some(Rate { bytes: 1, micros: u64::from(u32::MAX) }));
    let (mut guest, mut served) = scene.serve(0, setting);
    for _ in 0..4 {
        served.put(&vnet::Header::default(), &LARGE.bytes());
    }
    guest.post(256);
    served.until("it is used up", |stats| stats.rx_held == 1 && stats.rx_packets == 2);
    served.serving.limits.rx.set(None);
    served.handle().wake();
    for _ in 0..4 {
        assert_eq!(guest.receive().0, LARGE.bytes());
    }
}

#[test]
fn a_packet_waits_for_as_many_pages_as_it_needs_and_no_more() {
    for waiting in [Waiting::Sleep, Waiting::default()] {
        let scene = Scene::new();
        let (mut guest, mut served) = scene.serve(0, serving(|s| s.waiting = waiting));
        served.put(&vnet::Header::default(), &LARGE.bytes());
        served.until("it waits", |stats| stats.rx_starved == 1);
        // One by one, each told of where the ring says so: 15 pages for 60054 bytes.
        for _ in 0..14 {
            guest.post(1);
        }
        assert_eq!(served.stats().rx_packets, 0);
        guest.post(1);
        guest.wait_rx();
        served.until("it came", |stats| stats.rx_packets == 1);
        assert_eq!(guest.receive_now().unwrap().0, LARGE.bytes());
    }
}

#[test]
fn a_guest_that_posts_without_telling_is_looked_at() {
    let scene = Scene::new();
    let mut setting = serving(|serving| serving.waiting = Waiting::Sleep);
    setting.features.rx_notify = false;
    let (mut guest, mut served) = scene.serve(0, setting);
    served.put(&vnet::Header::default(), &SMALL.bytes());
    served.until("it waits", |stats| stats.rx_starved == 1);
    let request = ring::wire::netif::rx::Request { id: 1, gref: guest.grefs[400] };
    guest.rx.push(&request).unwrap();
    let _ = guest.rx.publish();
    served.until("it came", |stats| stats.rx_packets == 1);
}

#[test]
fn what_waits_is_bounded_in_number_and_in_time() {
    let scene = Scene::new();
    let setting = serving(|serving| {
        serving.rx.packets = 8;
        serving.rx.wait_ns = 50_000_000;
        serving.rx.stall_ns = u64::MAX;
    });
    let (mut guest, mut served) = scene.serve(0, setting);
    for _ in 0..40 {
        served.put(&vnet::Header::default(), &SMALL.bytes());
        assert!(served.stats().rx_waiting <= 8);
    }
    served.until("all are lost", |stats| stats.lost.get("not_posted") == Some(&40));
    guest.post(256);
    served.put(&vnet::Header::default(), &LARGE.bytes());
    assert_eq!(guest.receive().0, LARGE.bytes());
}

#[test]
fn a_guest_that_posts_nothing_loses_its_link_until_it_does() {
    let scene = Scene::new();
    let setting = serving(|serving| {
        serving.rx.stall_ns = 20_000_000;
        serving.rx.wait_ns = u64::MAX;
    });
    let (mut guest, mut served) = scene.serve(0, setting);
    served.put(&vnet::Header::default(), &SMALL.bytes());
    served.until("it is stalled", |stats| stats.rx_stalls == 1);
    assert!(served.serving.is_stalled());
    eventually("the link is down", || !served.far.is_up());
    served.until("what waits is lost", |stats| stats.lost.get("not_posted") == Some(&1));
    guest.post(256);
    eventually("the link is up", || served.far.is_up());
    served.put(&vnet::Header::default(), &SMALL.bytes());
    assert_eq!(guest.receive().0, SMALL.bytes());
}

#[test]
fn multicast_goes_where_the_guest_listed_it() {
    let scene = Scene::new();
    let (mut guest, mut served) = scene.serve(0, Setting::default());
    served.serving.groups.choose(true);
    let group = [1, 0, 0x5E, 0, 0, 9];
    let mut packet = SMALL.bytes();
    packet[..6].copy_from_slice(&group);
    served.put(&vnet::Header::default(), &packet);
    served.until("it is kept away", |stats| stats.rx_unlisted == 1);
    let id = guest.request(Default::default(), 0, 0).id;
    guest.send_raw(&multicast(id, Multicast::Add(group)));
    assert_eq!(guest.answer(), Status::OKAY);
    served.put(&vnet::Header::default(), &packet);
    assert_eq!(guest.receive().0, packet);
    let id = guest.request(Default::default(), 0, 0).id;
    guest.send_raw(&multicast(id, Multicast::Delete(group)));
    assert_eq!(guest.answer(), Status::OKAY);
    served.put(&vnet::Header::default(), &packet);
    served.until("it is kept away again", |stats| stats.rx_unlisted == 2);
}

#[test]
fn an_idle_queue_sleeps_and_gives_memory_back() {
    let scene = Scene::new();
    let setting = serving(|serving| serving.idle = Duration::from_millis(20));
    let (mut guest, mut served) = scene.serve(0, setting);
    guest.send(&SMALL.bytes(), Offload::default(), &[]);
    served.take();
    let before = served.until("it sleeps", |stats| stats.sleeps > 0);
    std::thread::sleep(Duration::from_millis(300));
    let after = served.stats();
    // It may have been on its way to sleep, and wakes once to free memory; idle costs no more.
    assert!(after.sleeps - before.sleeps <= 3, "{} times", after.sleeps - before.sleeps);
    assert_eq!(after.turns, before.turns);
}
