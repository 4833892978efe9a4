//! Monitors one after the other, and two at once.

use std::io::Read as _;
use std::os::unix::net::UnixStream;

use ring::wire::virtio_blk::{feature, kind, status};

use crate::raw::{BASIC, Driver, Machine, message, request, words};
use crate::served::{PATIENCE, Served};

const DATA: u64 = 0x10_000;
const ABOUT: u64 = 0x8_000;

#[test]
fn a_second_monitor_is_turned_away_and_the_first_goes_on() {
    let served = Served::new();
    let machine = Machine::new(&served.path(), 0, 1 << 20);
    let mut driver = Driver::new(&machine, 0, 0x1000, 64);
    for _ in 0..3 {
        let mut second = UnixStream::connect(served.path()).unwrap();
        second.set_read_timeout(Some(PATIENCE)).unwrap();
        // What it says is not answered; the connection ends.
        let _ = std::io::Write::write_all(&mut second, &message(1, 1, &[]));
        let mut rest = Vec::new();
        assert!(second.read_to_end(&mut rest).is_ok_and(|_| rest.is_empty()) || rest.is_empty());
        assert_eq!(driver.request(kind::OUT, 0, &[(DATA, 512, false)], ABOUT), status::OK);
    }
    served.until_fault("second_monitor");
    let history = served.board.read().history;
    assert_eq!(history.faults["second_monitor"], 3);
    assert!(history.fault.unwrap().contains("one machine at a time"));
    // Once the first one is gone, the next is welcome.
    drop(machine);
    let machine = Machine::new(&served.path(), 0, 1 << 20);
    let mut driver = Driver::new(&machine, 0, 0x1000, 64);
    assert_eq!(driver.request(kind::OUT, 0, &[(DATA, 512, false)], ABOUT), status::OK);
}

#[test]
fn one_that_comes_as_soon_as_the_last_one_went_is_never_turned_away() {
    let served = Served::new();
    for round in 0..200 {
        let machine = Machine::new(&served.path(), 0, 1 << 16);
        if round % 10 == 0 {
            let mut driver = Driver::new(&machine, 0, 0x1000, 16);
            assert_eq!(driver.request(kind::FLUSH, 0, &[], ABOUT), status::OK);
        }
    }
    let history = served.board.read().history;
    assert_eq!((history.connections, history.faults.len()), (200, 0), "{history:?}");
}

#[test]
fn nothing_of_one_connection_is_left_to_the_next() {
    let served = Served::new();
    let features = feature::DISCARD | feature::WRITE_ZEROES | feature::MQ;
    {
        let machine = Machine::new(&served.path(), features, 1 << 20);
        let mut driver = Driver::new(&machine, 0, 0x1000, 64);
        assert_eq!(driver.request(kind::FLUSH, 0, &[], ABOUT), status::OK);
        machine.done(request::SET_STATUS, &15_u64.to_ne_bytes(), &[]);
        // Requests are under way when it goes.
        for n in 0..8_u64 {
            let at = ABOUT + n * 32;
            driver.begin(kind::OUT, n * 8, &[(DATA, 4096, false)], at);
        }
    }
    let stream = UnixStream::connect(served.path()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let machine = Machine::over(stream, 1 << 20);
    machine.tell(request::SET_FEATURES, &words(&[BASIC]), &[]);
    machine.tell(request::SET_PROTOCOL_FEATURES, &words(&[1 << 3 | 1 << 16]), &[]);
    assert_eq!(machine.number(request::GET_STATUS), 0);
    // No memory, no queue: neither is there to be used.
    assert!(!machine.is_done(request::REM_MEM_REG, &words(&[0, 0, 1 << 20, 0, 0]), &[]));
    let base = machine.ask(request::GET_VRING_BASE, &[0; 8]);
    assert_eq!(base, [0; 8]);
    // What the first one had under way was answered before it was let go.
    let total = served.disks.total();
    assert_eq!((total.in_flight, total.medium_errors), (0, 0));
}
