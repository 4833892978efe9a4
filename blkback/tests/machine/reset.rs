//! A queue that a driver broke: what it is told, and that it can begin anew.

use std::io::Read as _;
use std::os::fd::AsFd as _;

use ring::wire::virtio_blk::{feature, kind, status};

use crate::raw::{Driver, Machine, readable, request};
use crate::served::Served;

const DATA: u64 = 0x10_000;
const ABOUT: u64 = 0x8_000;
/// `DRIVER_OK`, `FEATURES_OK`, `DRIVER`, `ACKNOWLEDGE`.
const IN_USE: u64 = 4 | 8 | 2 | 1;
const NEEDS_RESET: u64 = 64;

fn write_and_read(driver: &mut Driver<'_>, byte: u8) {
    driver.machine.write(DATA, &[byte; 4096]);
    assert_eq!(driver.request(kind::OUT, 8, &[(DATA, 4096, false)], ABOUT), status::OK);
    driver.machine.write(DATA, &[0; 4096]);
    assert_eq!(driver.request(kind::IN, 8, &[(DATA, 4096, true)], ABOUT), status::OK);
    assert_eq!(driver.machine.read(DATA), [byte; 4096]);
}

/// What the device says to the monitor by itself: the number of a message without more.
fn said(machine: &Machine) -> Option<u32> {
    if !readable(machine.told.as_fd(), 0) {
        return None;
    }
    let mut header = [0; 12];
    (&machine.told).read_exact(&mut header).unwrap();
    assert_eq!(header[4..], [1, 0, 0, 0, 0, 0, 0, 0], "version 1, and nothing behind it");
    Some(u32::from_ne_bytes(header[..4].try_into().unwrap()))
}

/// Something that a driver does wrong.
type Way<'a> = &'a dyn Fn(&mut Driver<'_>);

#[test]
fn a_driver_that_breaks_its_queue_is_told_and_resets() {
    let served = Served::new();
    let machine = Machine::new(&served.path(), feature::MQ, 1 << 20);
    let mut driver = Driver::new(&machine, 0, 0x1000, 64);
    let mut other = Driver::new(&machine, 1, 0x4000, 64);
    machine.done(request::SET_STATUS, &IN_USE.to_ne_bytes(), &[]);
    let ways: [(&str, Way<'_>); 4] = [
        ("available_index", &|driver| driver.show(1000)),
        ("descriptor_head", &|driver| driver.offer(64)),
        ("descriptor_loop", &|driver| {
            driver.describe(5, (DATA, 16, false), 1, 5);
            driver.offer(5);
        }),
        ("request_shape", &|driver| {
            let head = driver.chain(&[(ABOUT, 16, false)]);
            driver.offer(head);
        }),
    ];
    for (n, (name, break_it)) in ways.into_iter().enumerate() {
        let byte = n as u8 + 1;
        write_and_read(&mut driver, byte);
        assert_eq!((machine.number(request::GET_STATUS), said(&machine)), (IN_USE, None));
        assert!(!readable(driver.error.as_fd(), 0), "{name}: before anything is wrong");
        break_it(&mut driver);
        // The queue's own event, and a change of the configuration for the driver to look at the status.
        assert!(readable(driver.error.as_fd(), 60_000), "{name}: no error event");
        served.until_fault(name);
        assert!(readable(machine.told.as_fd(), 60_000), "{name}: no interrupt");
        assert_eq!(said(&machine), Some(2), "{name}: VHOST_USER_BACKEND_CONFIG_CHANGE_MSG");
        assert_eq!(machine.number(request::GET_STATUS), IN_USE | NEEDS_RESET, "{name}");
        // It stays so whatever the driver says, as long as that is no reset.
        machine.done(request::SET_STATUS, &IN_USE.to_ne_bytes(), &[]);
        assert_eq!(machine.number(request::GET_STATUS), IN_USE | NEEDS_RESET, "{name}");
        // Another queue goes on meanwhile, so that what the guest needs in order to end is answered.
        write_and_read(&mut other, byte | 0x80);
        machine.done(request::SET_STATUS, &0_u64.to_ne_bytes(), &[]);
        assert_eq!(machine.number(request::GET_STATUS), 0, "{name}");
        let _ = driver.error.read();
        driver = Driver::new(&machine, 0, 0x1000, 64);
        other = Driver::new(&machine, 1, 0x4000, 64);
        machine.done(request::SET_STATUS, &IN_USE.to_ne_bytes(), &[]);
    }
    write_and_read(&mut driver, 9);
    assert_eq!(machine.number(request::GET_STATUS), IN_USE);
}

#[test]
fn what_was_under_way_at_a_reset_is_not_begun_anew() {
    for reset in [request::RESET_DEVICE, request::RESET_OWNER] {
        under_way_at_a_reset(reset);
    }
}

fn under_way_at_a_reset(reset: u32) {
    let served = Served::new();
    let machine = Machine::new(&served.path(), 0, 1 << 20);
    // A region for what is under way: one queue of 64 entries.
    let about = [[0_u64.to_ne_bytes(); 2].concat(), vec![1, 0, 64, 0, 0, 0, 0, 0]].concat();
    machine.tell(request::GET_INFLIGHT_FD, &about, &[]);
    let region = machine.answer_beside(request::GET_INFLIGHT_FD);
    let mut driver = Driver::new(&machine, 0, 0x1000, 64);
    write_and_read(&mut driver, 1);
    // A request that is noted when it is taken, and breaks the queue when it is looked at.
    let head = driver.chain(&[(ABOUT, 16, false)]);
    driver.offer(head);
    assert!(readable(driver.error.as_fd(), 60_000));
    let noted = |head: u16| {
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&region, &mut byte, 16 + 16 * u64::from(head))
            .unwrap();
        byte[0]
    };
    assert_eq!(noted(head), 1);
    // Set up again without a reset, it is owed still.
    let base = machine.ask(request::GET_VRING_BASE, &[0; 8]);
    assert_eq!(base[..4], [0; 4]);
    let _ = driver.error.read();
    driver.start(u16::from_ne_bytes(base[4..6].try_into().unwrap()), None);
    assert!(readable(driver.error.as_fd(), 60_000), "the same request breaks it again");
    machine.done(reset, &[], &[]);
    assert_eq!(noted(head), 0);
    let mut driver = Driver::new(&machine, 0, 0x1000, 64);
    write_and_read(&mut driver, 2);
}
