//! Memory that comes and goes while requests are under way.

use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;

use ring::wire::virtio_blk::{kind, status};

use crate::raw::{Driver, Machine, USER, memory, request, words};
use crate::served::Served;

const RAM: u64 = 1 << 20;
const ABOUT: u64 = 0x8_000;
/// Where more memory is plugged in, as the machine has it.
const MORE: u64 = 1 << 32;

#[test]
fn regions_come_and_go_while_requests_run() {
    let served = Served::new();
    let machine = Machine::new(&served.path(), 0, RAM);
    let mut driver = Driver::new(&machine, 0, 0x1000, 128);
    let more = memory(RAM + 4096);
    // From the file's second page on.
    let lent = words(&[0, MORE, RAM, USER + MORE, 4096]);
    let mut sector = 0;
    for round in 0..50_u8 {
        // Requests of two pages each, in the memory that stays.
        machine.write(0x10_000, &[round; 8192]);
        let at = |n: u64| ABOUT + n * 32;
        let heads: Vec<_> = (0..16)
            .map(|n| driver.begin(kind::OUT, sector + n * 16, &[(0x10_000, 8192, false)], at(n)))
            .collect();
        machine.done(request::ADD_MEM_REG, &lent, &[more.as_fd()]);
        // What the new memory has reaches the disk, and what the disk has reaches it.
        more.write_all_at(&[round ^ 0xFF; 4096], 4096).unwrap();
        let head = driver.begin(kind::OUT, 8000, &[(MORE, 4096, false)], at(16));
        let mut back: Vec<_> = (0..17).map(|_| driver.wait().0).collect();
        back.sort_unstable();
        let mut expected: Vec<_> = heads.into_iter().chain([head]).map(u32::from).collect();
        expected.sort_unstable();
        assert_eq!(back, expected);
        for n in 0..17 {
            assert_eq!(machine.read(at(n) + 16), [status::OK], "round {round}, request {n}");
        }
        let parts = [(MORE + RAM - 4096, 4096, true)];
        assert_eq!(driver.request(kind::IN, 8000, &parts, ABOUT), status::OK);
        let mut bytes = [0; 4096];
        more.read_exact_at(&mut bytes, RAM).unwrap();
        assert_eq!(bytes, [round ^ 0xFF; 4096]);
        // A request into it that is under way while it goes is answered, one way or the other.
        driver.begin(kind::IN, sector, &[(MORE, 8192, true)], at(0));
        machine.done(request::REM_MEM_REG, &lent, &[]);
        driver.wait();
        let [answer] = machine.read(at(0) + 16);
        assert!([status::OK, status::IOERR].contains(&answer), "{answer}");
        assert_eq!(driver.request(kind::IN, sector, &[(MORE, 512, true)], ABOUT), status::IOERR);
        // And what was written is there.
        let parts = [(0x20_000, 8192, true)];
        assert_eq!(driver.request(kind::IN, sector + 15 * 16, &parts, ABOUT), status::OK);
        assert_eq!(machine.read(0x20_000), [round; 8192]);
        sector = (sector + 256) % 7000;
    }
    let total = served.disks.total();
    assert!(total.refused["outside_memory"] >= 50);
    assert_eq!((total.medium_errors, total.in_flight), (0, 0));
}

#[test]
fn a_request_may_lie_across_two_regions() {
    let served = Served::new();
    let machine = Machine::new(&served.path(), 0, RAM);
    let mut driver = Driver::new(&machine, 0, 0x1000, 128);
    let more = memory(RAM);
    machine.done(request::ADD_MEM_REG, &words(&[0, RAM, RAM, USER + RAM, 0]), &[more.as_fd()]);
    machine.write(RAM - 512, &[1; 512]);
    more.write_all_at(&[2; 512], 0).unwrap();
    assert_eq!(driver.request(kind::OUT, 0, &[(RAM - 512, 1024, false)], ABOUT), status::OK);
    assert_eq!(driver.request(kind::IN, 0, &[(0x10_000, 1024, true)], ABOUT), status::OK);
    let bytes: [u8; 1024] = machine.read(0x10_000);
    assert_eq!((bytes[..512].to_vec(), bytes[512..].to_vec()), (vec![1; 512], vec![2; 512]));
    // One that reaches past both.
    let past = [(2 * RAM - 512, 1024, false)];
    assert_eq!(driver.request(kind::OUT, 0, &past, ABOUT), status::IOERR);
    // The same place twice is refused, and the one that is there stays.
    let again = words(&[0, RAM - 4096, 8192, USER, 0]);
    assert!(!machine.is_done(request::ADD_MEM_REG, &again, &[more.as_fd()]));
    assert!(!machine.is_done(request::REM_MEM_REG, &words(&[0, RAM, RAM - 1, USER + RAM, 0]), &[]));
    assert_eq!(driver.request(kind::OUT, 0, &[(RAM - 512, 1024, false)], ABOUT), status::OK);
}
