//! What a guest says beside its packets, and a backend that is killed at every point of answering it.

use std::path::Path;
use std::sync::Arc;

use hypervisor::GrantRef;
use hypervisor::memory::{Access, Granting, Memory};
use hypervisor::xenbus::{End, Seat};
use netback::control::round;
use netback::filter::Sources;
use netback::memo::Memo;
use netback::queue::Serving;
use ring::layout::MARK;
use ring::wire::netif::Control;
use ring::wire::netif::chain::Multicast;
use ring::wire::netif::control::{
    Algorithm, Gref, GrefList, HashTypes, Operation, Request, Response, Status,
};
use ring::{Back, RingIndex};

use super::scene::Scene;

const QUEUES: u16 = 3;

/// Where a backend is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    /// After doing a request, before anything says so.
    Done,
    /// After that was kept, before the answer was written.
    Kept,
    /// After the answer was written over the request, before it was published.
    Answered,
    /// Not at all.
    Never,
}

fn seat(scene: &Scene) -> Seat {
    let (own, opposite) = ("/local/domain/1/backend/vif/2/0", "/local/domain/2/device/vif/0");
    Seat::new(End::Back, own.to_owned(), opposite.to_owned(), scene.guest.id())
}

/// What the next process serves by.
fn next(scene: &Scene, path: &Path, first: GrantRef) -> Arc<Serving> {
    let memo = Memo::find(path, &seat(scene), &scene.map(first)).unwrap().unwrap();
    let serving = Arc::new(Serving::new(QUEUES, Sources::default()));
    assert!(memo.restore(&scene.back, scene.guest.id(), &serving), "the list is known");
    serving.keep(Arc::new(memo));
    serving
}

#[test]
fn what_is_said_is_kept_and_answered_once_wherever_a_backend_is_killed() {
    for killed in [Killed::Done, Killed::Kept, Killed::Answered, Killed::Never] {
        let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
        let path = Memo::path(folder.path(), &seat(&scene));
        assert!(path.ends_with("netback-vif-2-0.memo"), "{}", path.display());
        // Stands for the first ring on which the guest sends.
        let (_first, first) = scene.ring::<ring::wire::netif::Tx>(0);
        let (mut front, gref) = scene.ring::<Control>(u32::MAX - 3);
        let peer = scene.guest.id();
        let memory = Granting::allocate(&scene.guest, 3, scene.back.id()).unwrap();
        let mut grefs = [GrantRef(0); 3];
        scene.guest.grant(&memory, 0, Access::ReadWrite, &mut grefs).unwrap();
        let [page, kept, other] = grefs;
        let write = |bytes: &[u8]| memory.write_at(0, bytes).unwrap();
        let list = |grefs: &[GrantRef]| {
            let named = |gref: &GrantRef| Gref { gref: *gref, flags: 0, status: 9 }.encode();
            write(&grefs.iter().flat_map(named).collect::<Vec<u8>>());
            GrefList { queue: 1, gref: page, entries: u32::try_from(grefs.len()).unwrap() }
        };
        let table: Vec<u8> = [2_u32, 1, 0].iter().flat_map(|queue| queue.to_le_bytes()).collect();
        type Prepare<'a> = &'a dyn Fn() -> Operation;
        let asked: [(Prepare<'_>, u32); 8] = [
            (&|| Operation::SetHashAlgorithm(Algorithm::TOEPLITZ), 0),
            (&|| Operation::SetHashFlags(HashTypes::IPV4_TCP), 0),
            (&|| (write(&[5; 40]), Operation::SetHashKey { gref: page, size: 40 }).1, 0),
            (&|| Operation::SetHashMappingSize { entries: 3 }, 0),
            (
                &|| {
                    write(&table);
                    Operation::SetHashMapping { gref: page, entries: 3, offset: 0 }
                },
                0,
            ),
            (&|| Operation::AddGrefMapping(list(&[kept, other])), 0),
            (&|| Operation::DelGrefMapping(list(&[other])), 1),
            (&|| Operation::GetHashFlags, HashTypes::ALL.0),
        ];

        let memo = Memo::begin(&path, &seat(&scene), &scene.map(first), true).unwrap();
        let mut serving = Arc::new(Serving::new(QUEUES, Sources::default()));
        serving.keep(Arc::new(memo));
        for (id, (prepare, data)) in (7_u16..).zip(asked) {
            let operation = prepare();
            front.push(&Request { id, operation }).unwrap();
            let _ = front.publish();
            let mut back = Back::<Control, _>::attach(scene.map(gref)).unwrap();
            let index = back.taken();
            match killed {
                Killed::Done | Killed::Kept => {
                    // As on a ring that nobody looks at; and of the first, whatever it did goes with it.
                    let (mut aside, aside_gref) = scene.ring::<Control>(index.0);
                    aside.push(&Request { id, operation }).unwrap();
                    let _ = aside.publish();
                    let mut aside = Back::<Control, _>::attach(scene.map(aside_gref)).unwrap();
                    let forgetful = Serving::new(QUEUES, Sources::default());
                    let by = if killed == Killed::Done { &forgetful } else { &*serving };
                    assert!(round(&mut aside, peer, &scene.back, by).unwrap());
                }
                Killed::Answered | Killed::Never => {
                    assert!(round(&mut back, peer, &scene.back, &serving).unwrap());
                }
            }
            if killed == Killed::Never {
                let _ = back.publish();
            } else {
                drop(back);
                serving = next(&scene, &path, first);
                let mut back = Back::<Control, _>::attach(scene.map(gref)).unwrap();
                assert_eq!(back.taken(), index);
                assert!(round(&mut back, peer, &scene.back, &serving).unwrap());
                let _ = back.publish();
                assert!(!round(&mut back, peer, &scene.back, &serving).unwrap());
            }
            let answer = front.take_response().unwrap().unwrap();
            let wanted = Response { id, kind: operation.number(), status: Status::SUCCESS, data };
            assert_eq!(answer, wanted, "killed {killed:?}");
            assert_eq!(front.take_response(), Ok(None));
        }

        let serving = next(&scene, &path, first);
        serving.steer(|steering| {
            let settings = steering.settings();
            assert_eq!(settings.algorithm, Algorithm::TOEPLITZ);
            assert_eq!((settings.types, settings.key), (HashTypes::IPV4_TCP, &[5; 40][..]));
            assert_eq!(settings.mapping, [2, 1, 0]);
        });
        let named: Vec<GrantRef> =
            serving.kept(1).unwrap().list().iter().map(|entry| entry.gref).collect();
        assert_eq!(named, [kept], "killed {killed:?}");
        assert!(serving.kept(0).unwrap().is_empty());
    }
}

#[test]
fn a_multicast_list_outlives_who_was_told_it() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let path = Memo::path(folder.path(), &seat(&scene));
    let (_first, first) = scene.ring::<ring::wire::netif::Tx>(0);
    let group = |n: u8| [1, 0, 0x5E, 0, 0, n];
    let packet = |n: u8| [&group(n)[..], &[0; 54]].concat();
    let begin = |known| {
        let memo = Memo::begin(&path, &seat(&scene), &scene.map(first), known).unwrap();
        let serving = Serving::new(QUEUES, Sources::default());
        serving.groups.choose(true);
        serving.keep(Arc::new(memo));
        serving
    };
    let mut serving = Arc::new(begin(true));
    for (n, change) in [
        Multicast::Add(group(1)),
        Multicast::Add(group(2)),
        Multicast::Add(group(2)),
        Multicast::Delete(group(1)),
        Multicast::Add(group(3)),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(serving.groups.change(change), "{n}");
        serving = next(&scene, &path, first);
        serving.groups.choose(true);
    }
    let wanted = [1, 2, 3, 4].map(|n| serving.groups.wants(&packet(n)));
    assert_eq!(wanted, [false, true, true, false]);
    // Of one that was never known as a whole, what is told now is no list.
    let serving = begin(false);
    assert!(serving.groups.change(Multicast::Add(group(1))));
    let memo = Memo::find(&path, &seat(&scene), &scene.map(first)).unwrap().unwrap();
    assert!(!memo.restore(&scene.back, scene.guest.id(), &serving));
}

#[test]
fn what_another_connection_said_is_not_taken_for_this_ones() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let path = Memo::path(folder.path(), &seat(&scene));
    let (_first, first) = scene.ring::<ring::wire::netif::Tx>(0);
    assert!(Memo::find(&path, &seat(&scene), &scene.map(first)).unwrap().is_none());
    let memo = Memo::begin(&path, &seat(&scene), &scene.map(first), true).unwrap();
    assert_eq!(memo.recall(RingIndex(0)), None);
    let why = |seat: &Seat, gref| Memo::find(&path, seat, &scene.map(gref)).unwrap_err();
    // The guest made its rings anew: in other pages, and in the same.
    let (_second, second) = scene.ring::<ring::wire::netif::Tx>(0);
    assert!(why(&seat(&scene), second).contains("another connection"));
    let mut other = seat(&scene);
    other.own.push('1');
    assert!(why(&other, first).contains("another connection"));
    scene.map(first).write_at(MARK, &[0; 8]).unwrap();
    assert!(why(&seat(&scene), first).contains("another connection"));
    std::fs::write(&path, b"{\"version\":2}").unwrap();
    assert!(why(&seat(&scene), first).contains("netback-vif-2-0.memo"));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
