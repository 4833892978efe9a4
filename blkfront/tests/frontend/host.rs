//! A disk of a process: threads, sleeping, reconnection behind their backs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use blkfront::buffer::Either;
use blkfront::host::{HostBuffer, HostDisk, OpenError, find};
use blkfront::{Config, Ending, IoError, Private, Request};
use hypervisor::embedded::Domain;
use hypervisor::store::{Store as _, Transaction};
use hypervisor::testing::Machine;
use hypervisor::xenbus::State;

use crate::backend::{Backend, DIRECTORY, Features, VDEV};

const MIB: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// A backend on a thread of its own.
struct Running {
    stop: Arc<AtomicBool>,
    /// How often the backend is still to drop its connection and ask for a new one.
    restarts: Arc<AtomicU32>,
    detach: Arc<AtomicBool>,
    thread: Option<JoinHandle<Backend>>,
}

impl Running {
    fn start(mut backend: Backend) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let restarts = Arc::new(AtomicU32::new(0));
        let detach = Arc::new(AtomicBool::new(false));
        let (asked, again, away) = (Arc::clone(&stop), Arc::clone(&restarts), Arc::clone(&detach));
        let thread = std::thread::spawn(move || {
            let mut served = 0;
            while !asked.load(Ordering::Relaxed) {
                if away.swap(false, Ordering::Relaxed) {
                    backend.say(&[("online", "0".to_owned())], State::Closing);
                }
                if backend.queues() == 0 {
                    backend.connect();
                } else if backend.front_state() == State::Closing {
                    backend.drop_rings();
                    backend.say(&[], State::Closed);
                } else if served > 50 && again.load(Ordering::Relaxed) > 0 {
                    again.fetch_sub(1, Ordering::Relaxed);
                    served = 0;
                    backend.take().into_iter().for_each(|taken| taken.slot.abandon());
                    backend.drop_rings();
                    backend.offer();
                }
                served += backend.poll();
                std::thread::yield_now();
            }
            backend
        });
        Self { stop, restarts, detach, thread: Some(thread) }
    }

    fn end(mut self) -> Backend {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn private(bytes: Vec<u8>) -> HostBuffer<Domain> {
    Either::Private(Private::new(bytes))
}

fn into_bytes(buffer: HostBuffer<Domain>) -> Vec<u8> {
    match buffer {
        Either::Private(private) => private.into_inner(),
        Either::Lent(_) => panic!("lent memory"),
    }
}

fn open(machine: &Machine, features: Features, config: Config) -> (HostDisk<Domain>, Running) {
    let guest = machine.domain("guest");
    let backend = Backend::new(machine, "backend", &guest, 4 * MIB, features);
    let running = Running::start(backend);
    assert_eq!(find::wait(&guest, Some("xvda"), PATIENCE).unwrap(), VDEV);
    let disk = HostDisk::open(guest, DIRECTORY, config).unwrap();
    disk.wait(PATIENCE).unwrap();
    (disk, running)
}

#[test]
fn several_threads_use_several_queues() {
    let machine = Machine::new();
    let mut config = Config::default();
    config.queues = 3;
    let (disk, running) = open(&machine, Features::default(), config);
    assert_eq!(disk.status().queues, 3);
    std::thread::scope(|scope| {
        for number in 0..3_usize {
            let mut queue = disk.queue().expect("a queue for each");
            scope.spawn(move || {
                for round in 0..50 {
                    let offset = (number * MIB + round * 4096) as u64;
                    let data = vec![(number * 50 + round) as u8; 4096];
                    queue.run(Request::write(offset, private(data.clone()), 1)).unwrap();
                    let read = queue.run(Request::read(offset, private(vec![0; 4096]), 2)).unwrap();
                    assert_eq!(into_bytes(read), data);
                }
            });
        }
    });
    assert!(disk.counters().answered >= 300);
    disk.close();
    running.end();
}

#[test]
fn a_queue_belongs_to_one_and_can_be_given_back() {
    let machine = Machine::new();
    let (disk, running) = open(&machine, Features::default(), Config::default());
    let queue = disk.queue().unwrap();
    assert!(disk.queue().is_none());
    drop(queue);
    assert!(disk.queue().is_some());
    disk.close();
    running.end();
}

#[test]
fn backends_restart_under_load_and_nobody_notices() {
    let machine = Machine::new();
    let (disk, running) = open(&machine, Features::default(), Config::default());
    let mut queue = disk.queue().unwrap();
    running.restarts.store(5, Ordering::Relaxed);
    let mut done = Vec::new();
    let mut round = 0_usize;
    // Until every restart has happened, and for a while after.
    let mut after = 0;
    while after < 10 {
        for tag in 0..16_usize {
            let data = vec![(round + tag) as u8; 8192];
            queue.submit(Request::write((tag * 8192) as u64, private(data), tag as u64)).unwrap();
        }
        while queue.held() > 0 {
            queue.wait(&mut done, 1, None).unwrap();
        }
        for completion in done.drain(..) {
            assert_eq!(completion.result, Ok(()));
        }
        for tag in 0..16_usize {
            let read = queue.run(Request::read((tag * 8192) as u64, private(vec![0; 8192]), 0));
            assert_eq!(into_bytes(read.unwrap()), vec![(round + tag) as u8; 8192]);
        }
        round += 1;
        if running.restarts.load(Ordering::Relaxed) == 0 {
            after += 1;
        }
    }
    assert!(disk.status().connections > 5, "{:?}", disk.status());
    drop(queue);
    disk.close();
    running.end();
}

#[test]
fn a_detached_disk_ends_those_who_wait() {
    let machine = Machine::new();
    let guest = machine.domain("guest");
    let backend = Backend::new(&machine, "backend", &guest, 4 * MIB, Features::default());
    let mut backend = backend;
    let disk = HostDisk::open(guest, DIRECTORY, Config::default()).unwrap();
    while !backend.connect() {
        std::thread::yield_now();
    }
    disk.wait(PATIENCE).unwrap();
    let mut queue = disk.queue().unwrap();
    queue.set_polling(0);
    // Nobody answers this one, so its end can only come from the store.
    queue.submit(Request::read(0, private(vec![0; 512]), 7)).unwrap();
    let waiter = std::thread::spawn(move || {
        let mut done = Vec::new();
        queue.wait(&mut done, 1, None).unwrap();
        (queue, done)
    });
    let mut taken = Vec::new();
    while taken.is_empty() {
        taken = backend.take();
        std::thread::yield_now();
    }
    backend.say(&[("online", "0".to_owned())], State::Closing);
    let (mut queue, done) = waiter.join().unwrap();
    assert_eq!(done[0].result, Err(IoError::Detached));
    taken.into_iter().for_each(|taken| taken.slot.abandon());
    while disk.status().ending.is_none() {
        std::thread::yield_now();
    }
    assert_eq!(disk.status().ending, Some(Ending::Detached));
    let refused = queue.run(Request::read(0, private(vec![0; 512]), 8)).unwrap_err();
    assert!(refused.to_string().contains("detached"), "{refused}");
}

#[test]
fn a_detach_between_requests_is_seen() {
    let machine = Machine::new();
    let (disk, running) = open(&machine, Features::default(), Config::default());
    running.detach.store(true, Ordering::Relaxed);
    while disk.status().ending.is_none() {
        std::thread::yield_now();
    }
    assert!(disk.queue().unwrap().run(Request::read(0, private(vec![0; 512]), 1)).is_err());
    disk.close();
    running.end();
}

#[test]
fn waiting_is_bounded_and_says_what_is_missing() {
    let machine = Machine::new();
    let guest = machine.domain("guest");
    let soon = Duration::from_millis(50);
    let error = find::wait(&guest, Some("xvdb"), soon).unwrap_err().to_string();
    assert!(error.contains("xvdb") && error.contains("blkback"), "{error}");
    let error = find::wait(&guest, Some("floppy"), soon).unwrap_err().to_string();
    assert!(error.contains("floppy"), "{error}");
    let disk = HostDisk::open(guest, DIRECTORY, Config::default()).unwrap();
    assert!(matches!(disk.wait(soon), Err(OpenError::Late { .. })));
}

#[test]
fn memory_is_lent_to_nobody_whom_the_toolstack_calls_untrusted() {
    for (said, trusted) in [(None, true), (Some("1"), true), (Some("0"), false), (Some("?"), false)]
    {
        let machine = Machine::new();
        let guest = machine.domain("guest");
        let backend = Backend::new(&machine, "backend", &guest, 4 * MIB, Features::default());
        if let Some(said) = said {
            let key = format!("{DIRECTORY}/trusted");
            guest.write(Transaction::NONE, &key, said.as_bytes()).unwrap();
        }
        let running = Running::start(backend);
        let disk = HostDisk::open(guest.clone(), DIRECTORY, Config::default()).unwrap();
        disk.wait(PATIENCE).unwrap();
        assert_eq!(disk.status().trusted, trusted, "{said:?}");
        match disk.arena(1) {
            Ok(arena) => assert!(trusted && arena.close(&guest).is_ok(), "{said:?}"),
            Err(error) => {
                assert!(!trusted && error.to_string().contains("trusted=0"), "{said:?}: {error}");
            }
        }
        // What is copied needs no trust.
        let mut queue = disk.queue().unwrap();
        queue.run(Request::write(0, private(vec![1; 4096]), 1)).unwrap();
        drop(queue);
        disk.close();
        running.end();
    }
}
