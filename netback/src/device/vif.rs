//! A network interface: what outlives its connections, and how one begins.
//!
//! Its uplink, its rates and what was counted outlive connections; rings, threads and ports do not.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hypervisor::backend::{Guest, Key, Kind, Platform, Service, Waker};
use hypervisor::event::Channel;
use hypervisor::memory::{Memory, Using};
use hypervisor::store::{Store, Transaction};
use hypervisor::xenbus::{Seat, State};
use hypervisor::{ConfigError, DomId, Error, HostError};
use ring::Waiting;
use ring::wire::netif::keys;

use crate::connect::xenbus::{self, Offer};
use crate::credit::Rate;
use crate::ctl::{Counters, Ring};
use crate::device::queues::{self, Queues};
use crate::device::uplink::{Open, Uplink};
use crate::device::{KIND, Link};
use crate::filter::{Mac, Sources};
use crate::memo::Memo;
use crate::queue::Serving;
use crate::stats::{Snapshot, Stats};

/// The kernel needs some milliseconds to let go of what a killed process had.
const PATIENCE: Duration = Duration::from_secs(5);

/// How an interface is to be served.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Policy {
    /// Where its packets go.
    pub uplink: Uplink,
    /// The guest's address, where it is said.
    pub mac: Option<Mac>,
    /// Whom the guest may send as.
    pub sources: Sources,
    /// The largest payload of a packet, where it is said.
    pub mtu: Option<u16>,
    /// How much the guest may send.
    pub tx: Option<Rate>,
    /// How much it may receive.
    pub rx: Option<Rate>,
    /// How queues wait for work.
    pub waiting: Waiting,
    /// Where packets are written down.
    pub pcap: Option<PathBuf>,
}

impl Policy {
    /// By `uplink`, without any limit.
    #[must_use]
    pub fn new(uplink: Uplink) -> Self {
        Self {
            uplink,
            mac: None,
            sources: Sources::default(),
            mtu: None,
            tx: None,
            rx: None,
            waiting: Waiting::default(),
            pcap: None,
        }
    }
}

/// An interface and those who serve it.
#[derive(Debug)]
pub struct Vif {
    policy: Policy,
    /// Where what the guest says is kept for the next process, if it is.
    folder: Option<PathBuf>,
    pub(super) standing: Arc<Standing>,
}

/// What is shared with whoever serves a connection.
#[derive(Debug)]
pub(super) struct Standing(Mutex<Inner>);

/// How the interface is now.
#[derive(Debug)]
pub(super) struct Inner {
    /// Where packets go; there once the device is.
    pub(super) uplink: Option<Arc<Open>>,
    /// What the queues share, while there are any.
    pub(super) serving: Option<Arc<Serving>>,
    /// The rates that hold.
    pub(super) tx: Option<Rate>,
    pub(super) rx: Option<Rate>,
    /// What the toolstack last said of the first: only what it says anew holds.
    pub(super) said: Option<Result<Option<Rate>, ConfigError>>,
    /// Whether these rates are from the process before this one.
    pub(super) restored: bool,
    /// Whether the guest is told that its link is up.
    up: bool,
    /// Since when nobody serves it, where another process did before.
    since: Option<Instant>,
    /// Connections that were gone on with after another process had served them.
    resumed: u64,
    /// How long the last of them was served by nobody.
    pause: Option<Duration>,
    /// Where what the guest says is kept.
    memo: Option<PathBuf>,
    /// The queues of the connection that is served.
    pub(super) now: Vec<Arc<Stats>>,
    /// What all earlier ones counted.
    pub(super) before: Snapshot,
}

impl Standing {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Counts a connection that another process served before.
    fn count_resumed(&mut self) {
        let Some(since) = self.since.take() else { return };
        let pause = since.elapsed();
        tracing::info!(pause_ms = pause.as_millis(), "going on with another process's rings");
        self.resumed = self.resumed.saturating_add(1);
        self.pause = Some(pause);
    }

    /// A connection is served: its queues share `serving`.
    pub(super) fn serve(&mut self, serving: &Arc<Serving>) {
        serving.limits.tx.set(self.tx);
        serving.limits.rx.set(self.rx);
        self.serving = Some(Arc::clone(serving));
        self.now.clear();
    }

    /// It is served no more: what its queues counted is kept.
    pub(super) fn serve_no_more(&mut self) {
        self.serving = None;
        for stats in std::mem::take(&mut self.now) {
            self.before.merge(&stats.snapshot());
        }
    }

    /// One of its queues is served no more.
    pub(super) fn count_no_more(&mut self, stats: &Arc<Stats>) {
        self.now.retain(|each| !Arc::ptr_eq(each, stats));
        self.before.merge(&stats.snapshot());
    }

    /// Lets the guest send, or receive, so much from now on.
    pub(super) fn set_rates(&mut self, tx: Option<Rate>, rx: Option<Rate>) {
        if let Some(serving) = &self.serving {
            for (limit, old, new) in
                [(&serving.limits.tx, self.tx, tx), (&serving.limits.rx, self.rx, rx)]
            {
                if old != new {
                    limit.set(new);
                }
            }
        }
        (self.tx, self.rx) = (tx, rx);
    }
}

impl Vif {
    /// One that is served as `policy` says.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let inner = Inner {
            uplink: None,
            serving: None,
            tx: policy.tx,
            rx: policy.rx,
            said: None,
            restored: false,
            up: true,
            since: None,
            resumed: 0,
            pause: None,
            memo: None,
            now: Vec::new(),
            before: Snapshot::default(),
        };
        Self { policy, folder: None, standing: Arc::new(Standing(Mutex::new(inner))) }
    }

    /// Nobody has served the device since `since`.
    #[must_use]
    pub fn unserved(self, since: Instant) -> Self {
        self.standing.lock().since = Some(since);
        self
    }

    /// Keeps what the guest says in `folder`, for the process after this one.
    #[must_use]
    pub fn keeping(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Sees to it that what the guest said goes with its device.
    pub fn forget_words(&self) {
        if let Some(path) = self.standing.lock().memo.take() {
            // Gone already is as good.
            let _ = fs::remove_file(path);
        }
    }

    /// Has what the frontend at `seat` says kept, and what it said to a process before this one set again where `goes_on`:
    /// that of the connection whose first ring is `ring`.
    fn keep<U: Using, M: Memory>(
        &self,
        (domain, seat): (&U, &Seat),
        ring: &M,
        serving: &Serving,
        goes_on: bool,
    ) {
        let Some(folder) = &self.folder else {
            if goes_on {
                serving.groups.forget_list();
            }
            return;
        };
        let path = Memo::path(folder, seat);
        self.standing.lock().memo = Some(path.clone());
        if goes_on {
            match Memo::find(&path, seat, ring) {
                Ok(Some(memo)) => {
                    if !memo.restore(domain, seat.peer, serving) {
                        serving.groups.forget_list();
                    }
                    serving.keep(Arc::new(memo));
                    return;
                }
                Ok(None) => {}
                Err(why) => tracing::warn!("what the guest said before is not known: {why}"),
            }
            serving.groups.forget_list();
        }
        match Memo::begin(&path, seat, ring, !goes_on) {
            Ok(memo) => serving.keep(Arc::new(memo)),
            Err(error) => tracing::warn!("what the guest says is not kept: {error}"),
        }
    }

    /// How many connections were gone on with after another process had served them, and for how long the
    /// last of them was served by nobody.
    #[must_use]
    pub fn resumed(&self) -> (u64, Option<Duration>) {
        let inner = self.standing.lock();
        (inner.resumed, inner.pause)
    }

    /// How it is to be served.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Makes its uplink, for device `number` of `guest`.
    ///
    /// # Errors
    ///
    /// There is none to be had.
    pub fn open(&self, guest: DomId, number: u32) -> Result<(), Error> {
        let Policy { uplink, mtu, pcap, .. } = &self.policy;
        // One of the same name, for a guest that is no more, goes first.
        self.standing.lock().uplink = None;
        let open = uplink.open(guest, number, *mtu, pcap.as_ref())?;
        tracing::info!(interface = %open.name(), "uplink made");
        self.standing.lock().uplink = Some(Arc::new(open));
        Ok(())
    }

    /// The host's interface, once there is one.
    #[must_use]
    pub fn interface(&self) -> Option<String> {
        self.standing.lock().uplink.as_ref().map(|open| open.name().to_string())
    }

    /// Sees to it that the host's interface goes with this process.
    pub fn forget(&self) {
        if let Some(open) = &self.standing.lock().uplink {
            open.forget();
        }
    }

    /// The rates that hold: of what the guest sends, and of what it receives.
    #[must_use]
    pub fn rates(&self) -> (Option<Rate>, Option<Rate>) {
        let inner = self.standing.lock();
        (inner.tx, inner.rx)
    }

    /// Changes them. Whoever does has the queues [woken](hypervisor::backend::Running::wake).
    pub fn set_rates(&self, tx: Option<Rate>, rx: Option<Rate>) {
        self.standing.lock().set_rates(tx, rx);
    }

    /// Whether the guest is told that its link is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.standing.lock().up
    }

    /// Has the guest told so; says whether its link is up. Whoever calls it sees to the telling.
    pub fn set_link(&self, Link { up }: Link) -> bool {
        let mut inner = self.standing.lock();
        if let Some(up) = up {
            inner.up = up;
        }
        inner.up
    }

    /// Whether the guest posts nothing, so that the host's side of its link is down.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.standing.lock().serving.as_ref().is_some_and(|serving| serving.is_stalled())
    }

    /// Everything counted, over all connections and queues.
    #[must_use]
    pub fn ever(&self) -> Snapshot {
        self.counters().ever
    }

    /// What was counted of the connection that is served, queue by queue, and of all.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let (queues, mut ever) = {
            let inner = self.standing.lock();
            let now = inner.now.iter().map(|stats| stats.snapshot());
            (now.collect::<Vec<Snapshot>>(), inner.before.clone())
        };
        let mut total = Snapshot::default();
        for queue in &queues {
            total.merge(queue);
        }
        ever.merge(&total);
        Counters::new(queues, total, ever)
    }

    /// Where the rings' indexes are.
    #[must_use]
    pub fn rings(&self) -> Vec<Ring> {
        let inner = self.standing.lock();
        let now = inner.now.iter().zip(0..);
        now.flat_map(|(stats, queue)| Ring::both(queue, &stats.snapshot())).collect()
    }

    /// What so many queues are to share.
    pub(super) fn new_serving(&self, queues: u16) -> Serving {
        let mut serving = Serving::new(queues, self.policy.sources.clone());
        serving.waiting = self.policy.waiting;
        serving
    }

    /// Its uplink, once there is one.
    pub(super) fn uplink(&self) -> Option<Arc<Open>> {
        self.standing.lock().uplink.clone()
    }

    /// Queues in use.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.standing.lock().now.len()
    }
}

impl<H> Service<H> for Vif
where
    H: Platform + Clone + Send + 'static,
    H::Mapping: Memory + Send + 'static,
    H::Channel: Channel + AsFd + Send + 'static,
{
    const KIND: &'static Kind = KIND;

    type Offer = Offer;
    type Running = Queues;
    type Change = Link;
    type Changed = bool;

    fn prepare(&self, guest: &Guest, number: u32) -> Result<(), Error> {
        self.open(guest.id, number)
    }

    fn stay(&self) {
        if let Some(open) = &self.standing.lock().uplink {
            open.keep();
        }
    }

    fn changed(&self) -> Option<String> {
        let (tx, rx) = self.rates();
        let [tx, rx] = [tx, rx].map(|rate| rate.map_or("-".to_owned(), |rate| rate.to_string()));
        Some(format!("{tx} {rx}"))
    }

    fn restore(&self, changed: &str) {
        let rate = |text: &str| match text {
            "-" => Some(None),
            text => Rate::parse(text).ok(),
        };
        if let Some((Some(tx), Some(rx))) =
            changed.split_once(' ').map(|(tx, rx)| (rate(tx), rate(rx)))
        {
            let mut inner = self.standing.lock();
            inner.set_rates(tx, rx);
            // What the toolstack says is older, until it says something else.
            inner.restored = true;
        }
    }

    fn release(&self) {
        self.forget();
        self.forget_words();
        self.standing.lock().uplink = None;
    }

    fn connect<S: Store + ?Sized>(
        &self,
        domain: &H,
        seat: &Seat,
        store: &S,
        offer: &Offer,
        waker: Waker,
    ) -> Result<Queues, Error> {
        let Some(open) = self.standing.lock().uplink.clone() else {
            return Err(HostError::new("serve an interface without an uplink", libc::ENODEV).into());
        };
        let transport = xenbus::read(seat, store, offer)?;
        queues::reread_rate(&self.standing, seat, store)?;
        // Whoever served it before us may have been killed: after publishing and before saying so, or so
        // lately that the kernel is not done with what it had.
        let goes_on = seat.own_state(store, Transaction::NONE)? == State::Connected;
        let patience = if goes_on { PATIENCE } else { Duration::ZERO };
        let connection = xenbus::connect(seat, domain, &transport, patience)?;
        if goes_on {
            connection.tell()?;
        }
        tracing::debug!(domain = %seat.peer, queues = transport.queues.len(),
            control = transport.control.is_some(), "connecting");
        let queues = u16::try_from(connection.queues.len()).unwrap_or(u16::MAX);
        let serving = self.new_serving(queues);
        serving.groups.choose(connection.features.multicast_control);
        if let Some(link) = connection.queues.first() {
            self.keep((domain, seat), &link.tx, &serving, goes_on);
        }
        let standing = Arc::clone(&self.standing);
        let queues = Queues::start(standing, domain, connection, open, serving, &waker)?;
        if goes_on {
            self.standing.lock().count_resumed();
        }
        Ok(queues.of(transport, *offer))
    }

    fn describe(&self, _: &Offer) -> Vec<Key> {
        vec![(keys::CARRIER.name, u8::from(self.is_up()).to_string())]
    }

    fn change(&self, link: Link) -> Result<bool, Error> {
        Ok(self.set_link(link))
    }
}
