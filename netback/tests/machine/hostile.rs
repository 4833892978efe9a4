//! Drivers that break the rules of queues: the fault has a name, ends the queue, and a driver that sets the queue up
//! anew goes on.

use super::driver::{INDIRECT, NEXT, Queue, SIZE, WRITE, descriptor};
use super::monitor::{GUEST, MEMORY, Memory};
use super::scene::{ABLE, Machine, Served, tcp};

/// What a driver does wrong on the queue on which it sends.
type Wrong = fn(&mut Queue);

const SENDING: [(&str, Wrong); 14] = [
    ("available_index", |queue| queue.show_index(queue.seen.wrapping_add(SIZE + 1))),
    ("available_index", |queue| queue.show_index(queue.seen.wrapping_sub(1))),
    ("descriptor_head", |queue| queue.show(SIZE)),
    ("descriptor_next", |queue| {
        queue.describe(0, queue.data(), 100, NEXT, SIZE);
        queue.show(0);
    }),
    ("descriptor_loop", |queue| {
        queue.describe(0, queue.data(), 100, NEXT, 1);
        queue.describe(1, queue.data(), 100, NEXT, 0);
        queue.show(0);
    }),
    ("outside_memory", |queue| {
        queue.describe(0, GUEST - 1, 100, 0, 0);
        queue.show(0);
    }),
    ("outside_memory", |queue| {
        queue.describe(0, queue.data(), 100, NEXT, 1);
        queue.describe(1, GUEST + MEMORY - 10, 100, 0, 0);
        queue.show(0);
    }),
    ("outside_memory", |queue| {
        queue.describe(0, queue.data(), 100, NEXT, 1);
        queue.describe(1, u64::MAX - 10, u32::MAX, 0, 0);
        queue.show(0);
    }),
    ("indirect_length", |queue| {
        queue.describe(0, queue.data(), 17, INDIRECT, 0);
        queue.show(0);
    }),
    ("indirect_descriptor", |queue| {
        queue.memory.write(queue.data(), &descriptor(queue.data(), 16, INDIRECT, 0));
        queue.describe(0, queue.data(), 16, INDIRECT, 0);
        queue.show(0);
    }),
    ("outside_memory", |queue| {
        queue.describe(0, GUEST + MEMORY, 32, INDIRECT, 0);
        queue.show(0);
    }),
    ("descriptor_order", |queue| {
        queue.describe(0, queue.data(), 100, NEXT | WRITE, 1);
        queue.describe(1, queue.data(), 100, 0, 0);
        queue.show(0);
    }),
    // Room to write in what is to be sent, and less than a header.
    ("request_shape", |queue| {
        queue.describe(0, queue.data(), 100, NEXT, 1);
        queue.describe(1, queue.data(), 100, WRITE, 0);
        queue.show(0);
    }),
    ("request_shape", |queue| {
        queue.describe(0, queue.data(), 11, 0, 0);
        queue.show(0);
    }),
];

#[test]
fn what_is_wrong_in_what_is_sent_has_a_name_and_an_end() {
    for (name, wrong) in SENDING {
        // A chain that is read before it is written breaks another rule first.
        let name = if name == "descriptor_order" { "request_shape" } else { name };
        let served = Served::new();
        let mut machine = Machine::new(&served, ABLE);
        machine.there_and_back(&tcp(200));
        wrong(&mut machine.tx);
        served.until_fault(name);
        // Whoever sets everything up anew, goes on.
        drop(machine);
        Machine::new(&served, ABLE).there_and_back(&tcp(300));
    }
}

#[test]
fn what_is_wrong_in_room_for_packets_has_a_name_and_an_end() {
    let wrongs: [(&str, Wrong); 4] = [
        ("request_shape", |queue| {
            queue.describe(0, queue.data(), 100, 0, 0);
            queue.show(0);
        }),
        ("request_shape", |queue| {
            queue.describe(0, queue.data(), 0, WRITE, 0);
            queue.show(0);
        }),
        ("outside_memory", |queue| {
            queue.describe(0, queue.data(), 0x1000, NEXT | WRITE, 1);
            queue.describe(1, GUEST + MEMORY - 1, 2, WRITE, 0);
            queue.show(0);
        }),
        ("descriptor_loop", |queue| {
            queue.describe(0, queue.data(), 1, NEXT | WRITE, 0);
            queue.show(0);
        }),
    ];
    for (name, wrong) in wrongs {
        let served = Served::new();
        let mut machine = Machine::new(&served, ABLE);
        wrong(&mut machine.rx);
        // Room is looked at when there is something to put there.
        machine.tx.send(&[&[0; 12], &tcp(100)[..]].concat(), &[], false);
        served.until_fault(name);
        drop(machine);
        Machine::new(&served, ABLE).there_and_back(&tcp(300));
    }
}

#[test]
fn a_broken_queue_is_the_machines_own_again_once_it_was_stopped() {
    let served = Served::new();
    let memory = Memory::new();
    let mut machine = Machine::with(&served, ABLE, &memory);
    machine.tx.show(SIZE);
    served.until_fault("descriptor_head");
    for queue in [&machine.rx, &machine.tx] {
        queue.stop(&mut machine.monitor);
    }
    // A driver that resets the device begins with rings of zeroes.
    for queue in [&machine.rx, &machine.tx] {
        memory.write(queue.descriptors(), &[0; 0x4000]);
    }
    for (number, queue) in [&mut machine.rx, &mut machine.tx].into_iter().enumerate() {
        *queue = Queue::new(&mut machine.monitor, number as u32);
    }
    machine.there_and_back(&tcp(400));
}
