//! An interface of a process: threads, sleeping, reconnection behind their backs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hypervisor::embedded::Domain;
use hypervisor::testing::Machine;
use hypervisor::xenbus::State;
use netfront::host::{HostInterface, HostQueue, OpenError, find};
use netfront::{Config, Ending, Offload, Refused};

use crate::backend::{Backend, DIRECTORY, Features, bytes};

const PATIENCE: Duration = Duration::from_secs(60);

/// A backend on a thread of its own that gives back what it is sent, on the same queue. A frontend that
/// is gone is given nothing.
pub(crate) struct Echo {
    stop: Arc<AtomicBool>,
    restart: Arc<AtomicBool>,
    detach: Arc<AtomicBool>,
    thread: Option<JoinHandle<Backend>>,
}

impl Echo {
    pub(crate) fn start(mut backend: Backend) -> Self {
        let [stop, restart, detach] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
        let (asked, again, away) = (Arc::clone(&stop), Arc::clone(&restart), Arc::clone(&detach));
        let thread = std::thread::spawn(move || {
            let mut held = std::collections::VecDeque::new();
            while !asked.load(Ordering::Relaxed) {
                if away.swap(false, Ordering::Relaxed) {
                    backend.say(&[("online", "0".to_owned())], State::Closing);
                }
                if again.swap(false, Ordering::Relaxed) {
                    held.clear();
                    backend.restart();
                }
                backend.live();
                for queue in 0..backend.queues.len() {
                    backend.take(queue, usize::MAX);
                    held.extend(backend.sent.drain(..).map(|packet| (queue, packet)));
                    let _ = backend.queues[queue].tx.rearm().unwrap();
                }
                while let Some((queue, packet)) = held.pop_front() {
                    if queue >= backend.queues.len() {
                        continue;
                    }
                    if !backend.give(queue, &packet) {
                        held.push_front((queue, packet));
                        break;
                    }
                }
                std::thread::yield_now();
            }
            backend
        });
        Self { stop, restart, detach, thread: Some(thread) }
    }

    pub(crate) fn end(mut self) -> Backend {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn open(machine: &Machine, config: Config) -> (HostInterface<Domain>, Echo) {
    let guest = machine.domain("guest");
    let backend = Backend::new(machine, "backend", guest.id(), Features::default());
    let echo = Echo::start(backend);
    assert_eq!(find::wait(&guest, Some(0), PATIENCE).unwrap(), 0);
    let interface = HostInterface::open(guest, DIRECTORY, config).unwrap();
    interface.wait(PATIENCE).unwrap();
    (interface, echo)
}

/// Sends a packet and waits for it to come back. It is sent again if its connection goes meanwhile.
fn round(queue: &mut HostQueue<Domain>, packet: &[u8], connections: impl Fn() -> u64) {
    let mut got = Vec::new();
    let mut sent = None;
    loop {
        let now = connections();
        if sent != Some(now) {
            let taken = queue.with(|queue| queue.send(&[packet], Offload::default())).unwrap();
            match taken {
                Ok(()) => sent = Some(now),
                Err(refused) => assert_eq!(refused, Refused::Unlinked),
            }
        }
        if queue.with(|queue| queue.receive_into(&mut got)).flatten().is_some() {
            queue.worked();
            if got == packet {
                return;
            }
        } else {
            queue.rest(false, &[], None).unwrap();
        }
    }
}

#[test]
fn several_threads_use_several_queues() {
    for polling in [0, 100_000] {
        let machine = Machine::new();
        let mut config = Config::default();
        config.queues = 3;
        let (interface, echo) = open(&machine, config);
        assert_eq!(interface.status().queues, 3);
        std::thread::scope(|scope| {
            for number in 0..3_usize {
                let mut queue = interface.queue().expect("a queue for each");
                queue.set_polling(polling);
                scope.spawn(move || {
                    for n in 0..100 {
                        round(&mut queue, &bytes(60 + n * 97, number), || 0);
                    }
                });
            }
        });
        assert_eq!(interface.counters().received, 300);
        interface.close();
        echo.end();
    }
}

#[test]
fn a_queue_belongs_to_one_and_can_be_given_back() {
    let machine = Machine::new();
    let (interface, echo) = open(&machine, Config::default());
    let queue = interface.queue().unwrap();
    assert!(interface.queue().is_none());
    drop(queue);
    assert!(interface.queue().is_some());
    interface.close();
    echo.end();
}

#[test]
fn backends_restart_and_packets_flow_on() {
    let machine = Machine::new();
    let (interface, echo) = open(&machine, Config::default());
    let mut queue = interface.queue().unwrap();
    for n in 0..5_u64 {
        for seed in 0..20 {
            round(&mut queue, &bytes(5000, seed), || interface.status().connections);
        }
        echo.restart.store(true, Ordering::Relaxed);
        while interface.status().connections < n + 2 {
            std::thread::yield_now();
        }
    }
    round(&mut queue, &bytes(100, 1), || interface.status().connections);
    drop(queue);
    interface.close();
    echo.end();
}

#[test]
fn a_detached_interface_wakes_those_who_wait() {
    let machine = Machine::new();
    let (interface, echo) = open(&machine, Config::default());
    let mut queue = interface.queue().unwrap();
    queue.set_polling(0);
    let waiter = std::thread::spawn(move || {
        while queue.ending().is_none() {
            queue.rest(false, &[], None).unwrap();
        }
        queue.ending()
    });
    echo.detach.store(true, Ordering::Relaxed);
    assert_eq!(waiter.join().unwrap(), Some(Ending::Detached));
    interface.close();
    echo.end();
}

#[test]
fn waiting_is_bounded_and_says_what_is_missing() {
    let machine = Machine::new();
    let guest = machine.domain("guest");
    let soon = Duration::from_millis(50);
    let error = find::wait(&guest, Some(3), soon).unwrap_err().to_string();
    assert!(error.contains("'3'") && error.contains("netback"), "{error}");
    let interface = HostInterface::open(guest, DIRECTORY, Config::default()).unwrap();
    assert!(matches!(interface.wait(soon), Err(OpenError::Late { .. })));
}
