//! Both ends of a queue in one process: a guest that the test drives, and a backend's queue whose port
//! has its other end here.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hypervisor::embedded::Domain;
use hypervisor::event::{Channel, Events};
use hypervisor::memory::{Access, Granting, Memory, Using};
use hypervisor::testing::Machine;
use hypervisor::{GrantRef, HostError, PAGE_SIZE};
use netback::connect::{Channels, Features, Link};
use netback::filter::Sources;
use netback::offload::Sums;
use netback::port::Port;
use netback::port::memory::{Memory as Far, pair};
use netback::queue::{Ended, Handle, Parts, Serving, spawn};
use netback::stats::{Snapshot, Stats};
use netback::tx::receive::Receive;
use netback::vnet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring::wire::netif::chain::Offload;
use ring::wire::netif::collect::Collect;
use ring::wire::netif::fit::Takes;
use ring::wire::netif::gather::Piece;
use ring::wire::netif::rx::Request;
use ring::wire::netif::split::Split;
use ring::wire::netif::{Rx, Status, Tx, tx};
use ring::{Front, Protocol, RingIndex};

/// How long anything may take before a test gives it up: long, since machines may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

type Pages = <Domain as Granting>::Memory;
type Mapping = <Domain as Using>::Mapping;
type GuestChannel = <Domain as Events>::Channel;

/// Pages for what the guest sends, and as many for what it receives.
const DATA: usize = 256;

/// Packets that the far end of the port holds.
const FAR: usize = 64;

/// Two domains on a machine.
pub(crate) struct Scene {
    pub(crate) guest: Domain,
    pub(crate) back: Domain,
    _machine: Machine,
}

/// What the guest takes, and how it is served.
pub(crate) struct Setting {
    pub(crate) features: Features,
    pub(crate) split: bool,
    pub(crate) serving: Serving,
}

impl Default for Setting {
    /// A guest that takes everything, as Linux's does.
    fn default() -> Self {
        let mut takes = Takes::default();
        (takes.sg, takes.gso_tcpv4, takes.gso_tcpv6) = (true, true, true);
        Self {
            features: Features::new(takes, Sums { v4: true, v6: true }),
            split: true,
            serving: Serving::new(1, Sources::default()),
        }
    }
}

impl Scene {
    pub(crate) fn new() -> Self {
        let machine = Machine::new();
        Self { guest: machine.domain("guest"), back: machine.domain("back"), _machine: machine }
    }

    /// A ring on which a guest sends, and its backend's first stage.
    pub(crate) fn sending(&self) -> (Front<Tx, Pages>, Receive<Mapping>) {
        let (front, gref) = self.ring(0);
        (front, Receive::attach(self.map(gref), self.guest.id()).unwrap())
    }

    /// A guest's ring that begins at `start`, and by what its backend reaches it.
    pub(crate) fn ring<P: Protocol>(&self, start: u32) -> (Front<P, Pages>, GrantRef) {
        let memory = Granting::allocate(&self.guest, 1, self.back.id()).unwrap();
        let mut gref = [GrantRef(0)];
        self.guest.grant(&memory, 0, Access::ReadWrite, &mut gref).unwrap();
        (Front::init_at(memory, RingIndex(start)).unwrap(), gref[0])
    }

    /// The backend's view of a guest's page.
    pub(crate) fn map(&self, gref: GrantRef) -> Mapping {
        self.back.map(self.guest.id(), &[gref], Access::ReadWrite).unwrap()
    }

    /// A guest whose rings begin at `start`, and a queue that serves it.
    pub(crate) fn serve(&self, start: u32, setting: Setting) -> (Guest, Served) {
        let (near, far) = pair(FAR).unwrap();
        self.serve_at(start, setting, far, move || Ok(near))
    }

    /// The same, with whatever `port` makes. Its other end, where it is not a memory port, is not `far`.
    pub(crate) fn serve_at<P: Port>(
        &self,
        start: u32,
        setting: Setting,
        far: Far,
        port: impl FnOnce() -> Result<P, HostError> + Send + 'static,
    ) -> (Guest, Served) {
        let (domain, peer) = (self.guest.clone(), self.back.id());
        let granted = |pages: usize| {
            let memory = Granting::allocate(&domain, pages, peer).unwrap();
            let mut grefs = vec![GrantRef(0); pages];
            domain.grant(&memory, 0, Access::ReadWrite, &mut grefs).unwrap();
            (memory, grefs)
        };
        let ((tx, tx_gref), (rx, rx_gref)) = (granted(1), granted(1));
        let (data, grefs) = granted(2 * DATA);
        let tx_channel = Events::allocate(&domain, peer).unwrap();
        let rx_channel = setting.split.then(|| Events::allocate(&domain, peer).unwrap());
        let guest = Guest {
            tx: Front::init_at(tx, RingIndex(start)).unwrap(),
            rx: Front::init_at(rx, RingIndex(start)).unwrap(),
            tx_channel,
            rx_channel,
            data,
            grefs,
            free: (0..DATA).collect(),
            sending: BTreeMap::new(),
            answers: VecDeque::new(),
            next: 0,
            unposted: (DATA..2 * DATA).collect(),
            posted: VecDeque::new(),
            collect: Collect::new(),
        };
        let ours = self.guest.id();
        let map = |gref: &[GrantRef]| self.back.map(ours, gref, Access::ReadWrite).unwrap();
        let tx = self.back.bind(ours, guest.tx_channel.port()).unwrap();
        let channels = match &guest.rx_channel {
            Some(rx) => Channels::Split { tx, rx: self.back.bind(ours, rx.port()).unwrap() },
            None => Channels::Both(tx),
        };
        let serving = Arc::new(setting.serving);
        let ends = Arc::new(AtomicUsize::new(0));
        let at_end = Arc::clone(&ends);
        let parts = Parts {
            name: "queue-under-test".to_owned(),
            number: 0,
            peer: ours,
            features: setting.features,
            link: Link::new(map(&tx_gref), map(&rx_gref), channels),
            domain: self.back.clone(),
            serving: Arc::clone(&serving),
            stats: Arc::new(Stats::default()),
        };
        let handle = spawn(parts, port, move |_| {
            at_end.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
        (guest, Served { handle: Some(handle), far, serving, ends })
    }
}

/// A queue that was started; stopped when dropped.
pub(crate) struct Served {
    handle: Option<Handle>,
    pub(crate) far: Far,
    pub(crate) serving: Arc<Serving>,
    ends: Arc<AtomicUsize>,
}

impl Served {
    pub(crate) fn handle(&self) -> &Handle {
        self.handle.as_ref().unwrap()
    }

    pub(crate) fn stats(&self) -> Snapshot {
        self.handle().stats().snapshot()
    }

    /// Waits until the counters say what `wanted` asks for.
    pub(crate) fn until(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let mut seen = Snapshot::default();
        eventually(what, || {
            seen = self.stats();
            wanted(&seen)
        });
        seen
    }

    /// The next packet that the guest sent.
    pub(crate) fn take(&mut self) -> (vnet::Header, Vec<u8>) {
        let mut taken = None;
        eventually("a packet from the guest", || {
            taken = self.far.take();
            taken.is_some()
        });
        taken.unwrap()
    }

    /// Sends a packet to the guest.
    pub(crate) fn put(&mut self, header: &vnet::Header, packet: &[u8]) {
        eventually("room at the port", || self.far.put(header, packet));
    }

    /// Waits for the queue's own end.
    pub(crate) fn ended(mut self) -> Ended {
        let handle = self.handle.take().unwrap();
        eventually("the queue's end", || handle.is_over());
        let ended = handle.join();
        assert_eq!(self.ends.load(Ordering::SeqCst), 1, "told of its end once");
        ended
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.stop();
            let _ = handle.join();
        }
    }
}

/// Waits for something that is looked for often.
pub(crate) fn eventually(what: &str, mut there: impl FnMut() -> bool) {
    let began = Instant::now();
    while !there() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A guest's end of a queue.
pub(crate) struct Guest {
    pub(crate) tx: Front<Tx, Pages>,
    pub(crate) rx: Front<Rx, Pages>,
    pub(crate) tx_channel: GuestChannel,
    pub(crate) rx_channel: Option<GuestChannel>,
    data: Pages,
    pub(crate) grefs: Vec<GrantRef>,
    /// Pages that hold nothing that is being sent.
    free: Vec<usize>,
    /// The page of each request that is not answered.
    sending: BTreeMap<u16, usize>,
    /// Answers to requests, in the order in which they came, without those to extras.
    pub(crate) answers: VecDeque<tx::Response>,
    next: u16,
    unposted: Vec<usize>,
    /// In the order of the ring, with the id each went by.
    posted: VecDeque<(u16, usize)>,
    collect: Collect,
}

impl Guest {
    fn ring_tx(&mut self) {
        if self.tx.publish().is_needed() {
            self.tx_channel.notify().unwrap();
        }
    }

    fn ring_rx(&mut self) {
        if self.rx.publish().is_needed() {
            self.rx_channel.as_ref().unwrap_or(&self.tx_channel).notify().unwrap();
        }
    }

    fn id(&mut self) -> u16 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// Takes in what was answered.
    pub(crate) fn reap(&mut self) {
        while let Some(response) = self.tx.take_response().unwrap() {
            if response.status == Status::NULL {
                continue;
            }
            let page = self.sending.remove(&response.id).expect("nobody sent that");
            self.free.push(page);
            self.answers.push_back(response);
        }
    }

    /// Puts a packet on the ring, cut into pieces of these sizes and then such as fill a page,
    /// without showing it; nothing where there is no room.
    pub(crate) fn push(&mut self, packet: &[u8], offload: Offload, sizes: &[u16]) -> bool {
        self.reap();
        let (mut rest, mut pieces, mut ids) = (packet, Vec::new(), Vec::new());
        let mut sizes = sizes.iter().map(|size| usize::from(*size)).chain([PAGE_SIZE].repeat(99));
        if self.free.len() < 19 || self.tx.free() < 24 {
            return false;
        }
        while !rest.is_empty() {
            let (now, after) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            let page = self.free.pop().unwrap();
            // Wherever it fits, a piece does not begin with its page.
            let offset = (PAGE_SIZE - now.len()).min(17);
            self.data.write_at(page * PAGE_SIZE + offset, now).unwrap();
            let (gref, id) = (self.grefs[page], self.id());
            pieces.push(Piece { gref, offset: offset as u16, size: now.len() as u16 });
            assert_eq!(self.sending.insert(id, page), None);
            ids.push(id);
            rest = after;
        }
        for slot in Split::new(&pieces, &ids, offload).unwrap().slots() {
            self.tx.push(&slot).unwrap();
        }
        true
    }

    /// Sends a packet, when there is room for it.
    pub(crate) fn send(&mut self, packet: &[u8], offload: Offload, sizes: &[u16]) {
        eventually("room on the ring", || self.push(packet, offload, sizes));
        self.ring_tx();
    }

    /// Puts slots on the ring as they are, and shows them.
    pub(crate) fn send_raw(&mut self, slots: &[tx::Slot]) {
        for slot in slots {
            self.tx.push(slot).unwrap();
        }
        self.ring_tx();
    }

    /// A request of whole claims, about a page of ours.
    pub(crate) fn request(&mut self, flags: tx::Flags, offset: u16, size: u16) -> tx::Request {
        let (page, id) = (self.free.pop().unwrap(), self.id());
        self.sending.insert(id, page);
        tx::Request { gref: self.grefs[page], offset, flags, id, size }
    }

    /// The status of the next request that is answered.
    pub(crate) fn answer(&mut self) -> Status {
        let mut status = None;
        eventually("an answer", || {
            self.reap();
            status = self.answers.pop_front().map(|answer| answer.status);
            status.is_some()
        });
        status.unwrap()
    }

    /// Posts up to `most` pages.
    pub(crate) fn post(&mut self, most: usize) {
        for _ in 0..most.min(self.rx.free() as usize) {
            let Some(page) = self.unposted.pop() else { break };
            let (id, gref) = (self.id(), self.grefs[page]);
            self.rx.push(&Request { id, gref }).unwrap();
            self.posted.push_back((id, page));
        }
        self.ring_rx();
    }

    /// The next packet that came, if one did.
    pub(crate) fn receive_now(&mut self) -> Option<(Vec<u8>, Offload)> {
        while let Some(slot) = self.rx.take_response().unwrap() {
            let Some(arrival) = self.collect.feed(&slot).unwrap() else { continue };
            let pages: Vec<_> = self.posted.drain(..arrival.slots()).collect();
            for (slot, id) in arrival.pages() {
                assert_eq!(pages[slot].0, id, "the response to another request");
            }
            self.unposted.extend(pages.iter().map(|(_, page)| page));
            let (size, offload) = arrival.packet().unwrap();
            let mut bytes = Vec::new();
            for piece in arrival.pieces() {
                let mut part = vec![0; usize::from(piece.size)];
                let at = pages[piece.slot].1 * PAGE_SIZE + usize::from(piece.offset);
                self.data.read_at(at, &mut part).unwrap();
                bytes.extend(part);
            }
            assert_eq!(bytes.len(), size);
            return Some((bytes, offload));
        }
        None
    }

    /// The next packet that came, with pages posted for it.
    pub(crate) fn receive(&mut self) -> (Vec<u8>, Offload) {
        let mut packet = None;
        eventually("a packet for the guest", || {
            self.post(DATA);
            packet = self.receive_now();
            packet.is_some()
        });
        packet.unwrap()
    }

    /// Waits until the backend notifies of what it published to the ring on which we receive.
    pub(crate) fn wait_rx(&mut self) {
        if self.rx.rearm().unwrap().is_more() {
            return;
        }
        let channel = self.rx_channel.as_ref().unwrap_or(&self.tx_channel);
        channel.unmask();
        let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut fds, patience), Ok(1), "no event for what was received");
        channel.take();
    }
}
