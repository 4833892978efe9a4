//! Machines and monitors that come and go, and what a monitor asks beside queues.

use ring::wire::virtio_net::{Configuration, LINK_UP, control, feature};

use super::driver::{NEXT, Queue, WRITE};
use super::monitor::{Memory, Monitor, pair, request};
use super::scene::{ABLE, MAC, Machine, Served, eventually, tcp};

fn configuration(monitor: &mut Monitor) -> Configuration {
    let asked = [0_u32, Configuration::SIZE as u32, 0];
    let asked: Vec<u8> = asked.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let answer =
        monitor.ask(request::GET_CONFIG, &[&asked[..], &[0; Configuration::SIZE]].concat());
    Configuration::decode(&answer[12..])
}

#[test]
fn a_driver_is_told_what_the_interface_is_like() {
    let served = Served::of(|policy| (policy.mac, policy.mtu) = (Some(MAC), Some(9000)));
    let mut machine = Machine::new(&served, ABLE | feature::MAC | feature::MTU | feature::STATUS);
    let said = configuration(&mut machine.monitor);
    assert_eq!((said.mac, said.mtu, said.status), (MAC, 9000, LINK_UP));
    assert_eq!(said.max_virtqueue_pairs, 2);
    // Two pairs, and the control queue.
    assert_eq!(machine.monitor.number(request::GET_QUEUE_NUM), 5);
}

#[test]
fn what_is_too_large_for_the_interface_is_refused() {
    let served = Served::of(|policy| policy.mtu = Some(9000));
    let mut machine = Machine::new(&served, ABLE);
    for (mtu, fits) in
        [(9000_u64, true), (1500, true), (9001, false), (67, false), (1 << 40, false)]
    {
        let done = machine.monitor.try_tell(request::NET_SET_MTU, &mtu.to_ne_bytes(), &[]);
        assert_eq!(done, fits, "{mtu}");
    }
    assert!(!machine.monitor.try_tell(request::NET_SET_MTU, &[1, 2], &[]), "no number");
    machine.monitor.tell(request::SEND_RARP, &[2, 0, 0, 0, 0, 1, 0, 0], &[]);
    machine.there_and_back(&tcp(100));
}

#[test]
fn a_machine_goes_on_where_the_used_ring_stands_whatever_position_is_said() {
    let memory = Memory::new();
    let mut before = 0;
    for round in 0..3_u16 {
        // As after a death: nobody was asked for a position, and room that was posted is still there.
        let served = Served::new();
        let mut machine = Machine::with(&served, ABLE, &memory);
        if round == 0 {
            for n in 0..6 {
                machine.rx.post(n, 0x1000);
            }
        }
        for queue in [&machine.rx, &machine.tx] {
            queue.stop(&mut machine.monitor);
            // Some monitors say what was made available, others what was used.
            queue.set_up(&mut machine.monitor, queue.seen.wrapping_add(round));
        }
        for n in 0..2 {
            let packet = tcp(100 * usize::from(round) + n);
            machine.tx.send(&[&[0; 12], &packet[..]].concat(), &[], false);
            assert_eq!(machine.rx.receive()[12..], packet, "round {round}");
        }
        let [rx, tx] = [&machine.rx, &machine.tx].map(|queue| queue.stop(&mut machine.monitor));
        before += 2;
        // What is said at the end is what was given back, of either queue.
        assert_eq!((rx, tx), (before, before));
    }
}

#[test]
fn memory_that_is_said_twice_is_one_region() {
    let served = Served::new();
    let mut machine = Machine::new(&served, ABLE);
    for _ in 0..2 {
        assert!(machine.monitor.add_memory(0));
        machine.there_and_back(&tcp(100));
    }
    assert!(!machine.monitor.add_memory(4096), "another region may not lie over it");
    machine.there_and_back(&tcp(100));
}

#[test]
fn a_stopped_pair_goes_on_when_it_is_enabled_again() {
    let served = Served::new();
    let mut machine = Machine::new(&served, ABLE);
    machine.there_and_back(&tcp(1));
    for enabled in [0, 1] {
        for number in [0, 1] {
            machine.monitor.tell(request::SET_VRING_ENABLE, &pair(number, enabled), &[]);
        }
    }
    machine.there_and_back(&tcp(2));
}

#[test]
fn a_link_that_is_taken_down_hangs_up_until_it_is_up() {
    let served = Served::new();
    let mut machine = Machine::new(&served, ABLE);
    machine.there_and_back(&tcp(100));
    served.link(false);
    assert!(machine.monitor.is_over());
    assert!(!served.path().exists(), "nobody is let in");
    served.link(true);
    Machine::new(&served, ABLE).there_and_back(&tcp(200));
}

/// Asks `bytes` on the control queue; answers what was said.
fn command(queue: &mut Queue, bytes: &[u8]) -> u8 {
    let (at, answer) = (queue.data(), queue.data() + 0x1000);
    queue.memory.write(at, bytes);
    queue.memory.write(answer, &[0xEE]);
    queue.describe(0, at, 2, NEXT, 1);
    queue.describe(1, at + 2, bytes.len() as u32 - 2, NEXT, 2);
    queue.describe(2, answer, 1, WRITE, 0);
    queue.show(0);
    assert_eq!(queue.wait(), (0, 1));
    let [said] = queue.memory.read(answer);
    said
}

#[test]
fn a_driver_whose_monitor_has_no_control_queue_says_how_many_pairs_it_uses() {
    let served = Served::new();
    let features = ABLE | feature::CTRL_VQ | feature::MQ;
    let mut machine = Machine::new(&served, features);
    let [mut rx, mut tx] = [2, 3].map(|number| Queue::new(&mut machine.monitor, number));
    let mut asks = Queue::new(&mut machine.monitor, 4);
    let in_use = || served.vif.counters().queues.len();
    eventually("one pair is in use", || in_use() == 1);
    machine.there_and_back(&tcp(100));
    assert_eq!(command(&mut asks, &[control::MQ, control::VQ_PAIRS_SET, 2, 0]), control::OK);
    assert_eq!(in_use(), 2);
    rx.post(0, 0x1000);
    tx.send(&[&[0; 12], &tcp(50)[..]].concat(), &[], false);
    assert_eq!(rx.receive()[12..], tcp(50));
    for wrong in [
        [control::MQ, control::VQ_PAIRS_SET, 0, 0],
        [control::MQ, control::VQ_PAIRS_SET, 3, 0],
        [control::MQ, 9, 1, 0],
        [77, 0, 0, 0],
    ] {
        assert_eq!(command(&mut asks, &wrong), control::ERR, "{wrong:?}");
    }
    assert_eq!(command(&mut asks, &[control::ANNOUNCE, 0, 0]), control::OK);
    assert_eq!(command(&mut asks, &[control::MQ, control::VQ_PAIRS_SET, 1, 0]), control::OK);
    assert_eq!(in_use(), 1);
    machine.there_and_back(&tcp(100));
}
