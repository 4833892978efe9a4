//! Both ends of a queue in one process: a guest that the test drives, and a backend's queue.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use blkback::acquire::{Hold, InFlight, InPage};
use blkback::connect::{Features, Layout, Link};
use blkback::engine::Engine;
use blkback::engine::memory::{Disk, Memory as MemoryEngine};
use blkback::queue::{Command, Ended, Handle, Parts, Serving, spawn};
use blkback::stats::{Snapshot, Stats};
use hypervisor::embedded::Domain;
use hypervisor::event::{Channel, Events};
use hypervisor::memory::{Access, Granting, Memory, Revoked, Using};
use hypervisor::testing::Machine;
use hypervisor::{GrantRef, HostError, PAGE_SIZE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring::Front;
use ring::wire::blkif::{
    Abi, Blkif, Discard, Indirect, Layout as RingLayout, Native, Request, Response, Segment,
    Segments, Status, Transfer,
};

/// How long anything may take before a test gives it up: long, since machines may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Mapping = <Domain as Using>::Mapping;
pub(crate) type Pages = <Domain as Granting>::Memory;
pub(crate) type GuestChannel = <Domain as Events>::Channel;
pub(crate) type T = InFlight<Hold<Mapping>, InPage>;

/// Two domains on a machine.
pub(crate) struct Scene {
    pub(crate) guest: Domain,
    pub(crate) back: Domain,
    _machine: Machine,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let machine = Machine::new();
        Self { guest: machine.domain("guest"), back: machine.domain("back"), _machine: machine }
    }

    /// A guest's queue with `1 << order` ring pages and `pages` granted data pages.
    pub(crate) fn guest<L: RingLayout>(&self, order: u32, pages: usize) -> Guest<L> {
        let (guest, peer) = (self.guest.clone(), self.back.id());
        let ring_pages = 1usize << order;
        let memory = Granting::allocate(&guest, ring_pages, peer).unwrap();
        let mut ring = vec![GrantRef(0); ring_pages];
        guest.grant(&memory, 0, Access::ReadWrite, &mut ring).unwrap();
        let front = Front::init(memory).unwrap();
        let data = Granting::allocate(&guest, pages, peer).unwrap();
        let mut grefs = vec![GrantRef(0); pages];
        guest.grant(&data, 0, Access::ReadWrite, &mut grefs).unwrap();
        let channel = Events::allocate(&guest, peer).unwrap();
        Guest { front, channel, data, grefs, ring, next: 0, domain: guest }
    }

    /// Starts a queue for `guest` over whatever `engine` makes.
    pub(crate) fn serve<L, E>(
        &self,
        guest: &Guest<L>,
        serving: &Arc<Serving>,
        persistent: bool,
        engine: impl FnOnce() -> Result<E, HostError> + Send + 'static,
    ) -> Served
    where
        L: RingLayout,
        E: Engine<T>,
    {
        let peer = self.guest.id();
        let ring = self.back.map(peer, &guest.ring, Access::ReadWrite).unwrap();
        let channel = self.back.bind(peer, guest.channel.port()).unwrap();
        let layout = match L::ABI {
            Abi::X86_32 => Layout::X86_32,
            _ => Layout::X86_64,
        };
        let stats = Arc::new(Stats::default());
        let ends = Arc::new(AtomicUsize::new(0));
        let at_end = Arc::clone(&ends);
        let parts = Parts {
            name: "queue-under-test".to_owned(),
            peer,
            layout,
            features: Features::new(persistent),
            link: Link::new(ring, channel),
            journal: None,
            domain: self.back.clone(),
            serving: Arc::clone(serving),
            stats,
        };
        let handle = spawn(parts, engine, move |_| {
            at_end.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
        Served { handle: Some(handle), ends }
    }

    /// Starts a queue over `disk`.
    pub(crate) fn serve_memory<L: RingLayout>(
        &self,
        guest: &Guest<L>,
        serving: &Arc<Serving>,
        persistent: bool,
        disk: &Arc<Disk>,
    ) -> Served {
        let disk = Arc::clone(disk);
        self.serve(guest, serving, persistent, move || Ok(MemoryEngine::new(disk, 512)))
    }
}

/// A queue that was started; stopped when dropped.
pub(crate) struct Served {
    pub(crate) handle: Option<Handle>,
    ends: Arc<AtomicUsize>,
}

impl Served {
    pub(crate) fn tell(&self, command: Command) {
        self.handle.as_ref().unwrap().tell(command);
    }

    pub(crate) fn wake(&self) {
        self.handle.as_ref().unwrap().wake();
    }

    pub(crate) fn stats(&self) -> Snapshot {
        self.handle.as_ref().unwrap().stats().snapshot()
    }

    /// Waits until the counters say what `wanted` asks for.
    pub(crate) fn until(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let began = Instant::now();
        loop {
            let snapshot = self.stats();
            if wanted(&snapshot) {
                return snapshot;
            }
            assert!(began.elapsed() < PATIENCE, "never: {what}: {snapshot:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the queue's own end.
    pub(crate) fn ended(mut self) -> Ended {
        let handle = self.handle.take().unwrap();
        let began = Instant::now();
        while !handle.is_over() {
            assert!(began.elapsed() < PATIENCE, "the queue does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        let ended = handle.join();
        assert_eq!(self.ends.load(Ordering::SeqCst), 1, "told of its end once");
        ended
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.tell(Command::Stop);
            let _ = handle.join();
        }
    }
}

/// A guest's end of a queue.
pub(crate) struct Guest<L: RingLayout = Native> {
    pub(crate) front: Front<Blkif<L>, Pages>,
    pub(crate) channel: GuestChannel,
    pub(crate) data: Pages,
    pub(crate) grefs: Vec<GrantRef>,
    pub(crate) ring: Vec<GrantRef>,
    pub(crate) domain: Domain,
    next: u64,
}

impl<L: RingLayout> Guest<L> {
    pub(crate) fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whole pages of the guest's data from `first` on, as segments.
    pub(crate) fn segments(&self, first: usize, count: usize) -> Vec<Segment> {
        (first..first + count)
            .map(|page| Segment { gref: self.grefs[page], first: 0, last: 7 })
            .collect()
    }

    pub(crate) fn transfer(sector: u64, segments: &[Segment]) -> Transfer {
        Transfer { sector, segments: Segments::new(segments).unwrap() }
    }

    pub(crate) fn read(&mut self, sector: u64, segments: &[Segment]) -> Request {
        Request::read(self.id(), Self::transfer(sector, segments))
    }

    pub(crate) fn write(&mut self, sector: u64, segments: &[Segment]) -> Request {
        Request::write(self.id(), Self::transfer(sector, segments))
    }

    pub(crate) fn barrier(&mut self, sector: u64, segments: &[Segment]) -> Request {
        Request::barrier(self.id(), Self::transfer(sector, segments))
    }

    pub(crate) fn flush(&mut self) -> Request {
        Request::flush(self.id())
    }

    pub(crate) fn discard(&mut self, sector: u64, sectors: u64, secure: bool) -> Request {
        Request::discard(self.id(), Discard { sector, sectors, secure })
    }

    /// An indirect request whose list is put into data page `list`.
    pub(crate) fn indirect(
        &mut self,
        operation: u8,
        sector: u64,
        segments: &[Segment],
        list: usize,
    ) -> Request {
        let mut bytes = vec![0; PAGE_SIZE];
        ring::wire::blkif::encode_segments(segments, &mut bytes);
        self.data.write_at(list * PAGE_SIZE, &bytes).unwrap();
        let mut grefs = [GrantRef(0); 8];
        grefs[0] = self.grefs[list];
        let count = u16::try_from(segments.len()).unwrap();
        Request::indirect(self.id(), Indirect { operation, sector, count, grefs })
    }

    /// Puts a request on the ring without showing it.
    pub(crate) fn push(&mut self, request: &Request) {
        self.front.push(request).unwrap();
    }

    /// Shows what was put on the ring, and says so if the backend asked for it.
    pub(crate) fn publish(&mut self) {
        if self.front.publish().is_needed() {
            self.channel.notify().unwrap();
        }
    }

    /// Puts a request on the ring and shows it.
    pub(crate) fn submit(&mut self, request: &Request) {
        self.push(request);
        self.publish();
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> Response {
        self.answer_before(Instant::now() + PATIENCE).expect("no answer")
    }

    /// The next answer, if one comes before `deadline`.
    pub(crate) fn answer_before(&mut self, deadline: Instant) -> Option<Response> {
        loop {
            if let Some(response) = self.front.take_response().unwrap() {
                return Some(response);
            }
            if self.front.rearm().unwrap().is_more() {
                continue;
            }
            let now = Instant::now();
            if now >= deadline {
                return None;
            }
            self.channel.unmask();
            let left = u16::try_from((deadline - now).as_millis().min(1000)).unwrap();
            let mut fds = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(left.max(1)));
            self.channel.take();
        }
    }

    /// Asks and waits for the answer.
    pub(crate) fn ask(&mut self, request: &Request) -> Status {
        self.submit(request);
        let response = self.answer();
        assert_eq!(response.id, request.id);
        response.status
    }

    /// Fills data page `page` with bytes that depend on `seed`.
    pub(crate) fn fill(&self, page: usize, seed: u8) {
        let bytes: Vec<u8> = (0..PAGE_SIZE).map(|n| seed ^ (n as u8) ^ ((n >> 8) as u8)).collect();
        self.data.write_at(page * PAGE_SIZE, &bytes).unwrap();
    }

    pub(crate) fn bytes(&self, page: usize) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_SIZE];
        self.data.read_at(page * PAGE_SIZE, &mut bytes).unwrap();
        bytes
    }

    /// Takes back the grant of a data page, which the backend must not have mapped any more.
    pub(crate) fn revoke(&self, page: usize) -> Revoked {
        self.domain.revoke(self.grefs[page])
    }
}

/// A disk of that many MiB in memory, and what serves it.
pub(crate) fn disk(mib: u64, rules: blkback::validate::Rules) -> (Arc<Disk>, Serving) {
    let disk = Disk::new(mib << 20, rules.sector_size).unwrap();
    (Arc::new(disk), Serving::new(rules, mib << 11))
}
