//! Telling a backend how to spread packets.

use hypervisor::event::Channel as _;
use hypervisor::memory::Memory as _;
use netfront::{Config, Ending, HashSetup, HashState};
use ring::packet::steering::Steering;
use ring::wire::netif::control::{HashTypes, Operation, Response, Status};

use crate::backend::{Backend, Features, scene};

fn config() -> Config {
    let mut config = Config::default();
    config.queues = 2;
    config.hash = Some(HashSetup {
        types: HashTypes::ALL,
        key: (1..=40).collect(),
        mapping: vec![1, 0, 1, 1],
    });
    config
}

/// Answers all that is asked, as a backend does; says what was asked.
fn answer(backend: &mut Backend, steering: &mut Steering) -> Vec<u16> {
    let (mut ring, channel) = backend.control.take().expect("a control ring");
    let mut asked = Vec::new();
    while let Some((request, slot)) = ring.take_request().unwrap() {
        asked.push(request.operation.number());
        let page = |gref: hypervisor::GrantRef, len: u32| {
            let mut bytes = vec![0; len as usize];
            let mapped = backend.domain.clone();
            let access = hypervisor::memory::Access::ReadOnly;
            let page = hypervisor::memory::Using::map(&mapped, backend.seat.peer, &[gref], access);
            page.unwrap().read_at(0, &mut bytes).unwrap();
            bytes
        };
        let status = match request.operation {
            Operation::SetHashAlgorithm(algorithm) => steering.set_algorithm(algorithm),
            Operation::SetHashFlags(types) => steering.set_types(types),
            Operation::SetHashKey { gref, size } => steering.set_key(&page(gref, size)),
            Operation::SetHashMappingSize { entries } => steering.set_mapping_size(entries),
            Operation::SetHashMapping { gref, entries, offset } => {
                steering.set_mapping(offset, &page(gref, entries * 4))
            }
            _ => Status::NOT_SUPPORTED,
        };
        ring.respond(slot, &Response::to(&request, status, 0));
        if ring.publish().is_needed() {
            channel.notify().unwrap();
        }
    }
    let _ = ring.rearm().unwrap();
    backend.control = Some((ring, channel));
    asked
}

#[test]
fn a_backend_is_told_step_by_step() {
    let (_machine, _guest, mut interface, mut backend) = scene(Features::default(), config());
    let mut steering = Steering::new(2);
    let mut asked = Vec::new();
    assert_eq!(interface.hash_state(), HashState::Setting);
    for _ in 0..10 {
        asked.extend(answer(&mut backend, &mut steering));
        interface.poll().unwrap();
    }
    assert_eq!(interface.hash_state(), HashState::Set);
    // And then for pages to be kept, which this one does not do.
    assert_eq!(asked, [7, 2, 3, 5, 6, 8]);
    assert_eq!(interface.kept(), 0);
    assert_eq!(steering.types(), (Status::SUCCESS, HashTypes::ALL));
}

#[test]
fn a_backend_that_will_not_is_no_fault() {
    let (_machine, _guest, mut interface, mut backend) = scene(Features::default(), config());
    // One queue only, so a mapping to the second makes no sense to it.
    let mut steering = Steering::new(1);
    for _ in 0..10 {
        answer(&mut backend, &mut steering);
        interface.poll().unwrap();
    }
    assert_eq!(interface.hash_state(), HashState::Refused(6, Status::INVALID_PARAMETER));
    assert!(interface.ending().is_none());
}

#[test]
fn without_a_control_ring_nobody_is_told() {
    let features = Features { control: false, ..Features::default() };
    let (_machine, _guest, mut interface, backend) = scene(features, config());
    interface.poll().unwrap();
    assert_eq!(interface.hash_state(), HashState::Unset);
    assert!(backend.control.is_none());
}

#[test]
fn answers_to_questions_that_were_not_asked() {
    for (id, kind) in [(1_u16, 0_u16), (0, 1), (0x100, 0), (0, 7)] {
        let (_machine, _guest, mut interface, mut backend) = scene(Features::default(), config());
        let (ring, _) = backend.control.as_mut().unwrap();
        let (request, slot) = ring.take_request().unwrap().unwrap();
        let mut response = Response::to(&request, Status::SUCCESS, 0);
        response.id ^= id;
        response.kind ^= kind;
        ring.respond(slot, &response);
        let _ = ring.publish();
        interface.poll().unwrap();
        let Some(Ending::Fault(fault)) = interface.ending() else {
            panic!("{id} {kind}: {:?}", interface.ending());
        };
        assert!(fault.to_string().contains("control response to no request"), "{fault}");
    }
}
