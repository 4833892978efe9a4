//! An interface that is served, without a network: what the machine sends comes back to it.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypervisor::backend::{Board, Slot};
use hypervisor::vhost_user::{Door, EVENT_INDEX, INDIRECT, PROTOCOL_FEATURES, Serving, VERSION_1};
use hypervisor::{DomId, HostError};
use netback::device::{Link, MachineVif, Message, Policy, Uplink, Vif};
use netback::port::inner::Kind;
use netback::stats::Snapshot;
use ring::wire::virtio_net::feature;

use super::driver::Queue;
use super::monitor::{Memory, Monitor};

const PATIENCE: Duration = Duration::from_secs(60);

/// What every driver agrees on.
pub(crate) const USUAL: u64 = VERSION_1 | EVENT_INDEX | INDIRECT | PROTOCOL_FEATURES;
/// One that completes checksums, cuts segments, and takes packets in several buffers.
pub(crate) const ABLE: u64 = USUAL
    | feature::CSUM
    | feature::GUEST_CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::MRG_RXBUF;

/// The address that the machine has.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// An interface that is served.
pub(crate) struct Served {
    folder: tempfile::TempDir,
    pub(crate) vif: Arc<Vif>,
    board: Board,
    slot: Slot<Message>,
    thread: Option<JoinHandle<Result<(), HostError>>>,
}

impl Served {
    pub(crate) fn new() -> Self {
        Self::of(|_| {})
    }

    /// One whose policy is changed so.
    pub(crate) fn of(change: impl FnOnce(&mut Policy)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut policy = Policy::new(Uplink::Inner(Kind::Echo));
        change(&mut policy);
        let vif = Arc::new(Vif::new(policy));
        vif.open(DomId::ZERO, 0).unwrap();
        let serving = Serving::new(Door::listen(&folder.path().join("sock")).unwrap()).unwrap();
        let (board, slot) = (serving.board(), serving.slot());
        let device = MachineVif::new(Arc::clone(&vif), 2, serving.waker());
        let theirs = Arc::clone(&vif);
        let change = move |link: Link| Ok(theirs.set_link(link));
        let thread = Some(std::thread::spawn(move || serving.run(&device, change)));
        Self { folder, vif, board, slot, thread }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    /// What was counted, ever.
    pub(crate) fn counted(&self) -> Snapshot {
        self.vif.ever()
    }

    /// How many packets were lost for that reason.
    pub(crate) fn lost(&self, why: &str) -> u64 {
        self.counted().lost.get(why).copied().unwrap_or(0)
    }

    /// Waits until a fault of this name was counted.
    pub(crate) fn until_fault(&self, name: &str) {
        let faults = || self.board.read().history.faults;
        eventually(name, || faults().contains_key(name));
    }

    /// Takes the machine's link up or down.
    pub(crate) fn link(&self, up: bool) {
        let change = Link { up: Some(up) };
        let asked = self.slot.ask(PATIENCE, |reply| Message::Change { change, reply });
        assert_eq!(asked, Ok(up));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.slot.put(Message::Leave { force: false, reply: None });
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.unwrap().is_ok());
    }
}

/// A machine with one pair of queues in use.
pub(crate) struct Machine {
    pub(crate) monitor: Monitor,
    pub(crate) rx: Queue,
    pub(crate) tx: Queue,
}

impl Machine {
    pub(crate) fn new(served: &Served, features: u64) -> Self {
        Self::with(served, features, &Memory::new())
    }

    /// One whose memory, and so its queues, is from before.
    pub(crate) fn with(served: &Served, features: u64, memory: &Memory) -> Self {
        let mut monitor = Monitor::new(&served.path(), features, memory);
        let [rx, tx] = [0, 1].map(|number| Queue::new(&mut monitor, number));
        Self { monitor, rx, tx }
    }

    /// Sends a packet that claims nothing, and takes it back.
    pub(crate) fn there_and_back(&mut self, packet: &[u8]) {
        self.rx.post(0, 0x4000);
        self.tx.send(&[&[0; 12], packet].concat(), &[], false);
        assert_eq!(self.rx.receive()[12..], *packet);
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

/// TCP over IPv4 with so much payload and a right checksum of IP's, from [`MAC`].
pub(crate) fn tcp(payload: usize) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2];
    bytes.extend(MAC);
    bytes.extend([8, 0, 0x45, 0]);
    bytes.extend((40 + payload as u16).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = ring::packet::Sum::of(&bytes[14..34]).checksum();
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes.extend([0, 1, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    bytes.extend((0..payload).map(|n| n as u8));
    bytes
}
