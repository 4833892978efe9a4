//! One connection to a monitor: what was said so far, and the queues that run by it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};

use super::bell::{Bell, ring};
use super::inflight::{About, Notes};
use super::message::{Announced, CONFIG_CHANGED, Fields, fault, protocol, request};
use super::vring::{Addresses, Vring};
use super::{LOG_ALL, Log, PROTOCOL_FEATURES, Region, Socket, Span, TRANSPORT, Table, VERSION_1};
use crate::{Error, HostError};

/// The most regions of memory that a machine may have.
const MOST_REGIONS: usize = 256;
/// The most bytes of a configuration (`VHOST_USER_MAX_CONFIG_SIZE`).
const MOST_CONFIGURATION: u32 = 256;
/// Says that there is no descriptor, in what is beside a queue's number.
const NO_DESCRIPTOR: u64 = 1 << 8;
/// `DEVICE_NEEDS_RESET`, in a device's status (virtio 1.2, 2.1): it is of no use before the driver has reset it.
const NEEDS_RESET: u64 = 64;
/// An answer to whoever asked to be told whether it was done.
const DONE: u64 = 0;
const NOT_DONE: u64 = 1;

/// A device, as the sessions that it is used by see it.
pub trait Device {
    /// A queue that runs.
    type Queue: Queue;

    /// What it can do, beside [`TRANSPORT`].
    fn features(&self) -> u64;

    /// The most queues that it can have.
    fn queues(&self) -> u16;

    /// The bytes of its configuration, as they are now.
    fn configuration(&self) -> Vec<u8>;

    /// What its kind has of the protocol (`VHOST_USER_PROTOCOL_F_*`), beside what every device has.
    fn protocol(&self) -> u64 {
        0
    }

    /// Does what a message of its kind says. `false` where it knows of no such message.
    ///
    /// # Errors
    ///
    /// It makes no sense, or cannot be done.
    fn told(&self, what: u32, payload: &[u8]) -> Result<bool, Error> {
        let _ = (what, payload);
        Ok(false)
    }

    /// Whether machines may use it now. While they may not, no monitor is let in, and one that cannot be told of
    /// a change of the configuration is let go: that is a cable which is pulled out.
    fn is_plugged(&self) -> bool {
        true
    }

    /// Starts a queue.
    ///
    /// # Errors
    ///
    /// The queue cannot be as it is said to be, or the host cannot.
    fn start(&self, parts: Parts) -> Result<Self::Queue, Error>;
}

/// A queue that runs. One that is dropped is stopped.
pub trait Queue {
    /// Answers what is under way and ends. Says how many requests were taken, as the ring counts them.
    fn stop(self) -> u16;

    /// Why it has ended by itself, if it has.
    fn failed(&mut self) -> Option<Error>;

    /// Makes it look at limits that were changed.
    fn wake(&self);
}

/// What a queue is made of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Parts {
    /// Its number.
    pub number: u16,
    /// Its entries.
    pub size: u32,
    /// What the driver and the device have agreed on.
    pub features: u64,
    /// How many requests were taken so far, as the ring counts them.
    pub taken: u16,
    /// Its descriptors.
    pub descriptors: Span,
    /// Its available ring.
    pub available: Span,
    /// Its used ring.
    pub used: Span,
    /// The machine's address of the used ring, where what is written there is to be noted in the table's log.
    pub noted: Option<u64>,
    /// Where to note what is under way.
    pub inflight: Option<Span>,
    /// By which the two ends tell each other.
    pub bell: Bell,
    /// The machine's memory.
    pub memory: Arc<Table>,
}

/// A connection to a monitor.
pub struct Session<'a, D: Device> {
    device: &'a D,
    socket: Socket,
    /// Where we ask the monitor for something.
    backend: Option<Socket>,
    features: u64,
    protocol: u64,
    status: u64,
    table: Arc<Table>,
    log: Option<Arc<Log>>,
    notes: Option<Notes>,
    vrings: Vec<Vring<D::Queue>>,
    faults: Vec<Error>,
}

/// What a message is answered by.
enum Reply {
    Nothing,
    With(Vec<u8>),
    Beside(Vec<u8>, OwnedFd),
}

impl Reply {
    fn number(number: u64) -> Self {
        Self::With(number.to_ne_bytes().to_vec())
    }
}

impl<'a, D: Device> Session<'a, D> {
    /// A session of `device` with the monitor at the other end of `socket`.
    pub fn new(device: &'a D, socket: Socket) -> Self {
        let vrings = (0..device.queues()).map(|_| Vring::default()).collect();
        Self {
            device,
            socket,
            backend: None,
            features: 0,
            protocol: 0,
            status: 0,
            table: Arc::default(),
            log: None,
            notes: None,
            vrings,
            faults: Vec::new(),
        }
    }

    /// Takes one message and does what it says. `false` where the connection has ended. To be called once the
    /// socket is readable.
    ///
    /// # Errors
    ///
    /// The monitor broke the protocol, or the host cannot: the session is to be given up.
    pub fn turn(&mut self) -> Result<bool, Error> {
        let Some(message) = self.socket.receive()? else { return Ok(false) };
        let header = message.header;
        let asked = header.wants_reply() && self.protocol & protocol::REPLY_ACK != 0;
        let done = self.act(header.request, &message.payload, message.beside);
        self.settle();
        match done {
            Ok(Reply::With(bytes)) => self.socket.answer(header.request, &bytes, None)?,
            Ok(Reply::Beside(bytes, fd)) => {
                self.socket.answer(header.request, &bytes, Some(fd.as_fd()))?;
            }
            Ok(Reply::Nothing) if asked => {
                self.socket.answer(header.request, &DONE.to_ne_bytes(), None)?;
            }
            Ok(Reply::Nothing) => {}
            Err(error) if asked => {
                self.socket.answer(header.request, &NOT_DONE.to_ne_bytes(), None)?;
                self.faults.push(error);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Looks for queues that ended by themselves. What is wrong with them, or was refused since this was last
    /// asked, comes back; the session goes on.
    pub fn tend(&mut self) -> Vec<Error> {
        let mut broken = false;
        for vring in &mut self.vrings {
            let Some(running) = &mut vring.running else { continue };
            if let Some(error) = running.failed() {
                self.faults.push(error);
                give_up(vring);
                broken = true;
            }
        }
        if broken {
            self.break_down();
        }
        std::mem::take(&mut self.faults)
    }

    /// Shows the driver that the device is of no use before it is reset, where there is a way to tell.
    fn break_down(&mut self) {
        if self.features & VERSION_1 == 0 || self.protocol & protocol::STATUS == 0 {
            return;
        }
        self.status |= NEEDS_RESET;
        if let Err(error) = self.configuration_changed() {
            self.faults.push(error.into());
        }
    }

    /// How many queues run.
    pub fn running(&self) -> usize {
        self.vrings.iter().filter(|vring| vring.running.is_some()).count()
    }

    /// Makes the queues look at limits that were changed.
    pub fn wake(&self) {
        self.vrings.iter().filter_map(|vring| vring.running.as_ref()).for_each(Queue::wake);
    }

    /// Tells the machine that the device's configuration is another. Says whether it can be told.
    ///
    /// # Errors
    ///
    /// The monitor cannot be reached.
    pub fn configuration_changed(&self) -> Result<bool, HostError> {
        match &self.backend {
            Some(backend) if self.protocol & protocol::CONFIG != 0 => {
                backend.ask(CONFIG_CHANGED, &[]).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    fn act(&mut self, what: u32, payload: &[u8], mut beside: Vec<OwnedFd>) -> Result<Reply, Error> {
        let mut fields = Fields::new(payload);
        match what {
            request::GET_FEATURES => return Ok(Reply::number(self.offered())),
            request::SET_FEATURES => {
                let features = fields.u64()?;
                if features & !self.offered() != 0 {
                    return Err(fault("features_not_offered", format!("{features:#x}")).into());
                }
                if features != self.features {
                    self.stop_all();
                    self.features = features;
                    self.remember_log();
                }
            }
            request::GET_PROTOCOL_FEATURES => {
                return Ok(Reply::number(protocol::OFFERED | self.device.protocol()));
            }
            request::SET_PROTOCOL_FEATURES => {
                let features = fields.u64()?;
                if features & !(protocol::OFFERED | self.device.protocol()) != 0 {
                    let value = format!("{features:#x}");
                    return Err(fault("protocol_features_not_offered", value).into());
                }
                self.protocol = features;
            }
            request::SET_OWNER | request::SET_LOG_FD => {}
            request::RESET_OWNER | request::RESET_DEVICE => self.reset(),
            request::GET_QUEUE_NUM => return Ok(Reply::number(self.device.queues().into())),
            request::SET_MEM_TABLE => self.set_table(&mut fields, beside)?,
            request::GET_MAX_MEM_SLOTS => return Ok(Reply::number(MOST_REGIONS as u64)),
            request::ADD_MEM_REG => {
                let _padding = fields.u64()?;
                let file = one(&mut beside, "memory_descriptors")?;
                let new = Announced::parse(&mut fields)?;
                // QEMU (7.2) says each region once for every pair of queues of a network device.
                if !self.table.has(new) {
                    let table = self.table_with(new, file, &self.table)?;
                    self.change_table(table);
                }
            }
            request::REM_MEM_REG => {
                let _padding = fields.u64()?;
                let Announced { guest, len, user, .. } = Announced::parse(&mut fields)?;
                let mut table = Table::clone(&self.table);
                if !table.remove(guest, user, len) {
                    let value = format!("{len} bytes at {guest:#x}");
                    return Err(fault("memory_not_there", value).into());
                }
                self.change_table(table);
            }
            request::SET_LOG_BASE => {
                let (len, offset) = (fields.u64()?, fields.u64()?);
                let file = File::from(one(&mut beside, "log_descriptors")?);
                let log = Log::of(&file, offset, len)?;
                self.stop_all();
                self.log = Some(Arc::new(log));
                self.remember_log();
                return Ok(Reply::number(DONE));
            }
            request::GET_CONFIG => return self.configuration(&mut fields),
            request::SET_CONFIG => {
                // Whatever can be changed there has a feature, and none of those is offered.
                let (offset, len) = (fields.u32()?, fields.u32()?);
                let value = format!("{len} bytes at {offset}");
                return Err(fault("configuration_not_writable", value).into());
            }
            request::SET_BACKEND_REQ_FD => {
                let stream = UnixStream::from(one(&mut beside, "backend_descriptors")?);
                self.backend = Some(Socket::new(stream)?);
            }
            request::GET_INFLIGHT_FD => {
                let about = About::parse(payload)?;
                let have = self.device.queues();
                if about.queues > have {
                    let value = format!("{} queues where there are {have}", about.queues);
                    return Err(fault("inflight_size", value).into());
                }
                self.stop_all();
                let (notes, about, file) = Notes::create(about)?;
                self.notes = Some(notes);
                return Ok(Reply::Beside(about.bytes(payload), file));
            }
            request::SET_INFLIGHT_FD => {
                let about = About::parse(payload)?;
                self.stop_all();
                self.notes = Some(Notes::of(about, one(&mut beside, "inflight_descriptors")?)?);
            }
            request::SET_STATUS => match fields.u64()? {
                0 => self.reset(),
                // A driver does not take away what the device has set.
                status => self.status = status | (self.status & NEEDS_RESET),
            },
            request::GET_STATUS => return Ok(Reply::number(self.status)),
            _ => return self.act_on_queue(what, payload, beside),
        }
        Ok(Reply::Nothing)
    }

    fn act_on_queue(
        &mut self,
        what: u32,
        payload: &[u8],
        mut beside: Vec<OwnedFd>,
    ) -> Result<Reply, Error> {
        let mut fields = Fields::new(payload);
        match what {
            request::SET_VRING_NUM => {
                let (number, size) = (fields.u32()?, fields.u32()?);
                self.changed(number)?.size = size;
            }
            request::SET_VRING_ADDR => {
                let (number, addresses) = Addresses::parse(payload)?;
                let vring = self.changed(number)?;
                vring.addresses = Some(addresses);
            }
            request::SET_VRING_BASE => {
                let (number, taken) = (fields.u32()?, fields.u32()?);
                let Ok(taken) = u16::try_from(taken) else {
                    return Err(fault("queue_base", format!("queue {number}: {taken}")).into());
                };
                self.changed(number)?.taken = taken;
            }
            request::GET_VRING_BASE => {
                let number = fields.u32()?;
                let vring = self.changed(number)?;
                (vring.kick, vring.broken) = (None, false);
                let taken = u32::from(vring.taken);
                return Ok(Reply::With([number.to_ne_bytes(), taken.to_ne_bytes()].concat()));
            }
            request::SET_VRING_ENABLE => {
                let (number, enabled) = (fields.u32()?, fields.u32()? != 0);
                if self.vring(number)?.enabled != enabled {
                    self.changed(number)?.enabled = enabled;
                }
            }
            request::SET_VRING_KICK => {
                let (number, file) = descriptor(&mut fields, &mut beside)?;
                let Some(file) = file else {
                    return Err(fault("queue_without_kick", format!("queue {number}")).into());
                };
                nonblocking(&file)?;
                let vring = self.changed(number)?;
                (vring.kick, vring.broken) = (Some(file), false);
            }
            request::SET_VRING_CALL => {
                let (number, file) = descriptor(&mut fields, &mut beside)?;
                // One that is full must not hold a queue up.
                file.as_ref().map(nonblocking).transpose()?;
                let vring = self.vring(number)?;
                // What was answered while nobody could be told is told now.
                file.as_ref().map(ring).transpose()?;
                *vring.call.lock().unwrap_or_else(PoisonError::into_inner) = file;
            }
            request::SET_VRING_ERR => {
                let (number, file) = descriptor(&mut fields, &mut beside)?;
                file.as_ref().map(nonblocking).transpose()?;
                self.vring(number)?.error = file;
            }
            _ if self.device.told(what, payload)? => {}
            _ => return Err(fault("message_unknown", what).into()),
        }
        Ok(Reply::Nothing)
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT
    }

    fn vring(&mut self, number: u32) -> Result<&mut Vring<D::Queue>, Error> {
        let have = self.vrings.len();
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        let missing = || fault("queue_number", format!("{number} of {have}"));
        Ok(self.vrings.get_mut(at).ok_or_else(missing)?)
    }

    /// A queue that is about to be changed: it is stopped.
    fn changed(&mut self, number: u32) -> Result<&mut Vring<D::Queue>, Error> {
        let vring = self.vring(number)?;
        stop(vring);
        Ok(vring)
    }

    fn stop_all(&mut self) {
        self.vrings.iter_mut().for_each(stop);
    }

    fn reset(&mut self) {
        self.stop_all();
        for vring in &mut self.vrings {
            (vring.kick, vring.broken, vring.enabled) = (None, false, false);
            (vring.addresses, vring.taken) = (None, 0);
        }
        // What the driver has let go of is not to be begun anew.
        let queues = self.vrings.len();
        self.notes.iter().for_each(|notes| notes.clear(queues));
        self.status = 0;
    }

    fn set_table(&mut self, fields: &mut Fields<'_>, beside: Vec<OwnedFd>) -> Result<(), Error> {
        let (count, _padding) = (fields.u32()?, fields.u32()?);
        if beside.len() != count as usize {
            let value = format!("{} for {count} regions", beside.len());
            return Err(fault("memory_descriptors", value).into());
        }
        let mut table = Table::default();
        for file in beside {
            table = self.table_with(Announced::parse(fields)?, file, &table)?;
        }
        self.change_table(table);
        Ok(())
    }

    /// `table` and one region more.
    fn table_with(&self, new: Announced, file: OwnedFd, table: &Table) -> Result<Table, Error> {
        let value = || format!("{} bytes at {:#x}", new.len, new.guest);
        if table.overlaps(new.guest, new.len) {
            return Err(fault("memory_overlaps", value()).into());
        }
        if table.regions().len() >= MOST_REGIONS {
            return Err(fault("memory_regions", value()).into());
        }
        let mut table = table.clone();
        table.add(Region::of(&File::from(file), new)?);
        Ok(table)
    }

    fn change_table(&mut self, table: Table) {
        self.stop_all();
        self.table = Arc::new(table);
        self.remember_log();
    }

    /// Notes what is written, from now on, if that is asked for.
    fn remember_log(&mut self) {
        let log = self.log.clone().filter(|_| self.features & LOG_ALL != 0);
        let mut table = Table::clone(&self.table);
        table.log = log;
        self.table = Arc::new(table);
    }

    fn configuration(&self, fields: &mut Fields<'_>) -> Result<Reply, Error> {
        let (offset, len, flags) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if offset.checked_add(len).is_none_or(|end| end > MOST_CONFIGURATION) {
            let value = format!("{len} bytes at {offset}");
            return Err(fault("configuration_length", value).into());
        }
        // What a device does not have reads as zero: a newer driver knows of more.
        let mut all = self.device.configuration();
        all.resize(MOST_CONFIGURATION as usize, 0);
        let mut bytes = Vec::with_capacity(12_usize.saturating_add(len as usize));
        [offset, len, flags].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes.extend(all.iter().skip(offset as usize).take(len as usize));
        Ok(Reply::With(bytes))
    }

    /// Starts every queue of which all is known.
    fn settle(&mut self) {
        let plain = self.features & PROTOCOL_FEATURES == 0;
        for number in 0..self.vrings.len() {
            let Some(vring) = self.vrings.get(number) else { continue };
            let wanted = vring.kick.is_some() && (vring.enabled || plain) && !vring.broken;
            if vring.running.is_some() || !wanted || vring.addresses.is_none() {
                continue;
            }
            let started = self.parts(number).and_then(|parts| self.device.start(parts));
            let Some(vring) = self.vrings.get_mut(number) else { continue };
            match started {
                Ok(queue) => vring.running = Some(queue),
                Err(error) => {
                    self.faults.push(error);
                    give_up(vring);
                    self.break_down();
                }
            }
        }
    }

    fn parts(&self, number: usize) -> Result<Parts, Error> {
        let missing = || fault("queue_number", number);
        let vring = self.vrings.get(number).ok_or_else(missing)?;
        let (Some(addresses), Some(kick)) = (vring.addresses, &vring.kick) else {
            return Err(missing().into());
        };
        let number = u16::try_from(number).map_err(|_| missing())?;
        let size = vring.size as usize;
        let span = |what: &str, at: u64, len: usize| -> Result<Span, Error> {
            let value = || format!("queue {number}: {len} bytes of {what} at {at:#x}");
            Ok(self.table.user(at, len).ok_or_else(|| fault("queue_outside_memory", value()))?)
        };
        // Two bytes behind each ring are for events (virtio 1.2, 2.7).
        let (available, used) = (size.saturating_mul(2), size.saturating_mul(8));
        let kick = kick.try_clone().map_err(|e| HostError::from_io("take a queue's kick", &e))?;
        Ok(Parts {
            number,
            size: vring.size,
            features: self.features,
            taken: vring.taken,
            descriptors: span("descriptors", addresses.descriptors, size.saturating_mul(16))?,
            available: span("available ring", addresses.available, available.saturating_add(6))?,
            used: span("used ring", addresses.used, used.saturating_add(6))?,
            noted: addresses.noted(),
            inflight: self.notes.as_ref().and_then(|notes| notes.part(number)),
            bell: Bell { number, kick: Arc::new(kick), call: Arc::clone(&vring.call) },
            memory: Arc::clone(&self.table),
        })
    }
}

impl<D: Device> AsFd for Session<'_, D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn stop<Q: Queue>(vring: &mut Vring<Q>) {
    if let Some(queue) = vring.running.take() {
        vring.taken = queue.stop();
    }
}

/// Serves a queue no more, and says so.
fn give_up<Q: Queue>(vring: &mut Vring<Q>) {
    stop(vring);
    vring.broken = true;
    if let Some(error) = &vring.error {
        // Whoever does not listen there finds a queue that does not answer.
        let _ = ring(error);
    }
}

/// A queue's number, and the descriptor that came with it.
fn descriptor(
    fields: &mut Fields<'_>,
    beside: &mut Vec<OwnedFd>,
) -> Result<(u32, Option<OwnedFd>), Error> {
    let about = fields.u64()?;
    let number = u32::try_from(about & 0xff).unwrap_or(u32::MAX);
    if about & NO_DESCRIPTOR != 0 {
        return Ok((number, None));
    }
    Ok((number, Some(one(beside, "queue_descriptors")?)))
}

/// The one descriptor that there has to be.
fn one(beside: &mut Vec<OwnedFd>, what: &'static str) -> Result<OwnedFd, Error> {
    match (beside.pop(), beside.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(fault(what, "none where one is needed").into()),
        (Some(_), more) => {
            Err(fault(what, format!("{} where one is needed", more.saturating_add(1))).into())
        }
    }
}

fn nonblocking(file: &OwnedFd) -> Result<(), HostError> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let failed = |errno: nix::errno::Errno| HostError::new("set up a queue's event", errno as i32);
    let flags = fcntl(file, FcntlArg::F_GETFL).map_err(failed)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(file, FcntlArg::F_SETFL(flags)).map(drop).map_err(failed)
}
