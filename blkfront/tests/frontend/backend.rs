//! A backend that does what a test tells it to.

use std::collections::HashMap;

use blkfront::{Completion, Config, Disk, Private, Request};
use hypervisor::embedded::Domain;
use hypervisor::event::{Channel, Events};
use hypervisor::memory::{Access, Granting, Memory, Using};
use hypervisor::store::{Store, Transaction};
use hypervisor::testing::Machine;
use hypervisor::xenbus::{End, Pair, Published, Seat, State};
use hypervisor::{EventPort, GrantRef};
use ring::wire::blkif::{Blkif, Kind, Response, Segment, Status, segments};
use ring::{Back, ResponseSlot};

pub(crate) const VDEV: u32 = 51712;
pub(crate) const DIRECTORY: &str = "device/vbd/51712";
pub(crate) const SECTOR: usize = 512;

type Mapping = <Domain as Using>::Mapping;
pub(crate) type Pages = <Domain as Granting>::Memory;
pub(crate) type Buffer = Private<Vec<u8>, Pages>;
pub(crate) type TestDisk = Disk<Domain, Buffer>;

/// What a backend offers.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    pub(crate) queues: u32,
    pub(crate) ring_order: u32,
    pub(crate) indirect: u32,
    pub(crate) persistent: bool,
    pub(crate) sector_size: u32,
    pub(crate) info: u32,
    pub(crate) discard_granularity: Option<u32>,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            queues: 4,
            ring_order: 2,
            indirect: 256,
            persistent: true,
            sector_size: 512,
            info: 0,
            discard_granularity: Some(4096),
        }
    }
}

struct Queue {
    ring: Back<Blkif, Mapping>,
    channel: <Domain as Events>::Channel,
}

/// A request that was taken and not answered.
pub(crate) struct Taken {
    pub(crate) queue: usize,
    pub(crate) request: ring::wire::blkif::Request,
    pub(crate) slot: ResponseSlot,
}

pub(crate) struct Backend {
    pub(crate) domain: Domain,
    pub(crate) seat: Seat,
    pub(crate) features: Features,
    pub(crate) disk: Vec<u8>,
    queues: Vec<Queue>,
    maps: HashMap<GrantRef, Mapping>,
    /// Pages that stay mapped after their request.
    pub(crate) hoard: bool,
    /// Every operation that was done, in order.
    pub(crate) log: Vec<(u8, u64, usize)>,
}

impl Backend {
    /// Gives `guest` a disk of `size` bytes, as a toolstack does, and begins to serve it.
    pub(crate) fn new(
        machine: &Machine,
        name: &str,
        guest: &Domain,
        size: usize,
        features: Features,
    ) -> Self {
        let domain = machine.domain(name);
        let control = domain.open_control_store().unwrap();
        let pair = Pair::new("vbd", VDEV, guest.id(), domain.id());
        pair.create(&control, &[], &[]).unwrap();
        let seat = pair.seat(End::Back);
        let mut backend = Self {
            domain,
            seat,
            features,
            disk: vec![0; size],
            queues: Vec::new(),
            maps: HashMap::new(),
            hoard: false,
            log: Vec::new(),
        };
        backend.offer();
        backend
    }

    pub(crate) fn say(&self, keys: &[(&str, String)], state: State) {
        let said = self.seat.publish(&self.domain, keys, state).unwrap();
        assert_eq!(said, Published::Done);
    }

    /// Publishes what is offered.
    pub(crate) fn offer(&mut self) {
        let f = &self.features;
        self.say(
            &[
                ("multi-queue-max-queues", f.queues.to_string()),
                ("max-ring-page-order", f.ring_order.to_string()),
                ("feature-max-indirect-segments", f.indirect.to_string()),
                ("feature-persistent", u8::from(f.persistent).to_string()),
            ],
            State::InitWait,
        );
    }

    /// Says what the disk is, and that it is connected.
    pub(crate) fn describe(&self) {
        let f = &self.features;
        let mut keys = vec![
            ("sectors", (self.disk.len() / SECTOR).to_string()),
            ("sector-size", f.sector_size.to_string()),
            ("info", f.info.to_string()),
            ("feature-flush-cache", "1".to_owned()),
        ];
        if let Some(granularity) = f.discard_granularity {
            keys.push(("feature-discard", "1".to_owned()));
            keys.push(("discard-granularity", granularity.to_string()));
        }
        self.say(&keys, State::Connected);
    }

    fn front_key(&self, key: &str) -> Option<u32> {
        let path = format!("{}/{key}", self.seat.opposite);
        let value = self.domain.read(Transaction::NONE, &path).ok()?;
        Some(String::from_utf8(value).unwrap().parse().unwrap())
    }

    pub(crate) fn front_state(&self) -> State {
        self.seat.peer_state(&self.domain).unwrap()
    }

    /// Maps and binds what the frontend published, if it has; follows one that closes and begins anew.
    pub(crate) fn connect(&mut self) -> bool {
        let own = self.seat.own_state(&self.domain, Transaction::NONE).unwrap();
        match (own, self.front_state()) {
            (State::InitWait, State::Initialised) => {}
            (State::InitWait, State::Closed) => {
                self.say(&[], State::Closed);
                return false;
            }
            (State::Closed, State::Initialising) => {
                self.offer();
                return false;
            }
            _ => return false,
        }
        let count = self.front_key("multi-queue-num-queues").unwrap_or(1);
        let order = self.front_key("ring-page-order").unwrap_or(0);
        for number in 0..count {
            let at = if count > 1 { format!("queue-{number}/") } else { String::new() };
            let grefs: Vec<GrantRef> = match order {
                0 => vec![self.front_key(&format!("{at}ring-ref")).unwrap()],
                order => (0..1 << order)
                    .map(|page| self.front_key(&format!("{at}ring-ref{page}")).unwrap())
                    .collect(),
            }
            .into_iter()
            .map(GrantRef)
            .collect();
            let memory =
                self.domain.map(self.seat.peer, &grefs, Access::ReadWrite).expect("the ring maps");
            let port = EventPort(self.front_key(&format!("{at}event-channel")).unwrap());
            let channel = self.domain.bind(self.seat.peer, port).unwrap();
            self.queues.push(Queue { ring: Back::attach(memory).unwrap(), channel });
        }
        self.describe();
        true
    }

    pub(crate) fn queues(&self) -> usize {
        self.queues.len()
    }

    pub(crate) fn slots(&self) -> u32 {
        self.queues[0].ring.slots()
    }

    /// Takes what is on the rings.
    pub(crate) fn take(&mut self) -> Vec<Taken> {
        let mut all = Vec::new();
        for (number, queue) in self.queues.iter_mut().enumerate() {
            while let Some((request, slot)) = queue.ring.take_request().unwrap() {
                all.push(Taken { queue: number, request, slot });
            }
        }
        all
    }

    /// Answers one request with anything.
    pub(crate) fn answer(&mut self, queue: usize, slot: ResponseSlot, response: &Response) {
        let queue = &mut self.queues[queue];
        queue.ring.respond(slot, response);
        if queue.ring.publish().is_needed() {
            queue.channel.notify().unwrap();
        }
    }

    /// Does one request and answers it.
    pub(crate) fn serve(&mut self, taken: Taken) {
        let status = self.execute(&taken.request);
        let response = Response::to(&taken.request, status);
        self.answer(taken.queue, taken.slot, &response);
    }

    /// Takes and does everything; says how much that was.
    pub(crate) fn poll(&mut self) -> usize {
        let all = self.take();
        let count = all.len();
        all.into_iter().for_each(|taken| self.serve(taken));
        for queue in &mut self.queues {
            let _ = queue.ring.rearm().unwrap();
        }
        count
    }

    pub(crate) fn execute(&mut self, request: &ring::wire::blkif::Request) -> Status {
        match &request.kind {
            Kind::Read(data) => self.transfer(false, data.sector, data.segments.get().unwrap()),
            Kind::Write(data) => self.transfer(true, data.sector, data.segments.get().unwrap()),
            Kind::Indirect(indirect) => {
                let most = u16::try_from(self.features.indirect).unwrap();
                let pages = indirect.pages(most).unwrap().to_vec();
                let mut list = Vec::new();
                for gref in pages {
                    let mut bytes = vec![0; 4096];
                    self.page(gref).read_at(0, &mut bytes).unwrap();
                    list.extend(segments(&bytes));
                }
                list.truncate(usize::from(indirect.count));
                self.transfer(indirect.is_write().unwrap(), indirect.sector, &list)
            }
            Kind::Flush(_) => {
                self.log.push((3, 0, 0));
                Status::OKAY
            }
            Kind::Discard(discard) => {
                let (first, len) =
                    (discard.sector as usize * SECTOR, discard.sectors as usize * SECTOR);
                self.disk[first..first + len].fill(0);
                self.log.push((5, discard.sector, len));
                Status::OKAY
            }
            _ => Status::NOT_SUPPORTED,
        }
    }

    fn page(&mut self, gref: GrantRef) -> &Mapping {
        let (domain, peer) = (&self.domain, self.seat.peer);
        self.maps
            .entry(gref)
            .or_insert_with(|| domain.map(peer, &[gref], Access::ReadWrite).expect("a page maps"))
    }

    fn transfer(&mut self, write: bool, sector: u64, list: &[Segment]) -> Status {
        let sector_size = self.features.sector_size as usize;
        let mut at = sector as usize * SECTOR;
        let from = at;
        for segment in list {
            let offset = usize::from(segment.first) * SECTOR;
            assert!(segment.first <= segment.last && segment.last < 8, "{segment:?}");
            let len = (usize::from(segment.last) + 1) * SECTOR - offset;
            assert_eq!((offset % sector_size, len % sector_size, at % sector_size), (0, 0, 0));
            let mut bytes = vec![0; len];
            if write {
                self.page(segment.gref).read_at(offset, &mut bytes).unwrap();
                self.disk[at..at + len].copy_from_slice(&bytes);
            } else {
                bytes.copy_from_slice(&self.disk[at..at + len]);
                self.page(segment.gref).write_at(offset, &bytes).unwrap();
            }
            at += len;
            if !self.features.persistent && !self.hoard {
                self.maps.remove(&segment.gref);
            }
        }
        self.log.push((u8::from(write), sector, at - from));
        Status::OKAY
    }

    /// Lets go of everything but the store, as a killed process would.
    pub(crate) fn drop_rings(&mut self) {
        self.queues.clear();
        if !self.hoard {
            self.maps.clear();
        }
    }

    /// Lets go of hoarded pages.
    pub(crate) fn let_go(&mut self) {
        self.maps.clear();
    }
}

/// A disk of `guest`, not connected yet.
pub(crate) fn disk(guest: &Domain, config: Config) -> TestDisk {
    Disk::new(guest.clone(), DIRECTORY, config)
}

/// Polls both ends until the disk is connected.
pub(crate) fn connect(disk: &mut TestDisk, backend: &mut Backend) {
    for _ in 0..20 {
        disk.poll().unwrap();
        if backend.queues() == 0 {
            backend.connect();
        }
        if !disk.queues().is_empty() && disk.queues()[0].is_linked() {
            return;
        }
    }
    panic!("not connected: {:?}, {:?}", disk.phase(), disk.ending());
}

/// A machine with a connected disk of `size` bytes.
pub(crate) fn scene(
    size: usize,
    features: Features,
    config: Config,
) -> (Machine, Domain, TestDisk, Backend) {
    let machine = Machine::new();
    let guest = machine.domain("guest");
    let mut backend = Backend::new(&machine, "backend", &guest, size, features);
    let mut disk = disk(&guest, config);
    connect(&mut disk, &mut backend);
    (machine, guest, disk, backend)
}

/// Does one request with both ends in turn.
pub(crate) fn run(
    disk: &mut TestDisk,
    backend: &mut Backend,
    request: Request<Buffer>,
) -> Completion<Buffer> {
    disk.run(request, || {
        backend.poll();
    })
    .unwrap()
    .expect("the request is taken")
}

pub(crate) fn bytes(len: usize, seed: u8) -> Buffer {
    let bytes = (0..len).map(|i| (i / 7 + i % 251) as u8 ^ seed).collect();
    Private::new(bytes)
}

pub(crate) fn zeroes(len: usize) -> Buffer {
    Private::new(vec![0; len])
}
