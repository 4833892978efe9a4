//! A connected interface as a guest without manners has it.
//!
//! Nothing here checks what is written. Source: io/netif.h, RELEASE-4.17; RFC 826.

use std::collections::VecDeque;

use anyhow::{Context as _, Result, ensure};
use hypervisor::embedded::{EventChannel, Pages};
use hypervisor::event::{Channel as _, Events as _};
use hypervisor::memory::{Access, Memory as _};
use hypervisor::xenbus::State;
use hypervisor::{GrantRef, PAGE_SIZE};
use ring::Front;
use ring::layout::Word;
use ring::wire::netif::collect::Collect;
use ring::wire::netif::tx::{Flags, Request, Response, Slot};
use ring::wire::netif::{Control, Rx, Status, Tx, rx};

use crate::hostile::Guest;
use crate::hostile::guest::wait_for;

/// Pages for what is sent; as many come after them for what is received.
pub const DATA: usize = 32;
/// Whom the host's bridge is, and who we are.
const HOST: [u8; 4] = [10, 77, 0, 1];
const OURS: [u8; 4] = [10, 77, 0, 99];
const ARP: usize = 42;

/// A connected interface.
pub struct Interface<'a> {
    guest: &'a Guest,
    /// Our end of the ring on which we send.
    pub tx: Front<Tx, Pages>,
    /// Our end of the ring on which we receive.
    pub rx: Front<Rx, Pages>,
    /// Our end of the control ring.
    pub control: Front<Control, Pages>,
    /// Our ends of their channels.
    pub channels: [EventChannel; 3],
    /// Granted pages.
    pub data: Pages,
    /// Their references.
    pub grefs: Vec<GrantRef>,
    /// Our address.
    pub mac: [u8; 6],
    /// What is posted, in order: pages of ours, or of nobody's.
    posted: VecDeque<Option<usize>>,
    /// Packets of which the backend said that they could not be copied.
    pub failed: u64,
    collect: Collect,
    id: u16,
}

impl<'a> Interface<'a> {
    /// Connects as an honest frontend does.
    ///
    /// # Errors
    ///
    /// The backend does not follow.
    pub fn connect(guest: &'a Guest) -> Result<Self> {
        guest.begin()?;
        let interface = Self::publish(guest)?;
        guest.say(State::Connected)?;
        guest.until(&[State::Connected])?;
        Ok(interface)
    }

    /// Writes the keys of an honest frontend, all but the state.
    ///
    /// # Errors
    ///
    /// The store or the hypervisor refuses.
    pub fn publish(guest: &'a Guest) -> Result<Self> {
        let ring = || -> Result<(Pages, GrantRef)> {
            let (page, grefs) = guest.grant(1, Access::ReadWrite)?;
            Ok((page, *grefs.first().context("a grant")?))
        };
        let ((tx, tx_gref), (rx, rx_gref), (control, control_gref)) = (ring()?, ring()?, ring()?);
        let (data, grefs) = guest.grant(2 * DATA, Access::ReadWrite)?;
        let channel = || guest.domain.allocate(guest.backend);
        let channels = [channel()?, channel()?, channel()?];
        let [tx_port, rx_port, control_port] =
            channels.each_ref().map(|channel| channel.port().to_string());
        for (key, value) in [
            ("tx-ring-ref", tx_gref.to_string()),
            ("rx-ring-ref", rx_gref.to_string()),
            ("ctrl-ring-ref", control_gref.to_string()),
            ("event-channel-tx", tx_port),
            ("event-channel-rx", rx_port),
            ("event-channel-ctrl", control_port),
            ("request-rx-copy", "1".to_owned()),
            ("feature-rx-notify", "1".to_owned()),
            ("feature-sg", "1".to_owned()),
            ("feature-gso-tcpv4", "1".to_owned()),
        ] {
            guest.write(key, value)?;
        }
        let init = "a ring of one page";
        Ok(Self {
            guest,
            tx: Front::init(tx).context(init)?,
            rx: Front::init(rx).context(init)?,
            control: Front::init(control).context(init)?,
            channels,
            data,
            grefs,
            mac: mac(&guest.read("mac")?)?,
            posted: VecDeque::new(),
            failed: 0,
            collect: Collect::new(),
            id: 0,
        })
    }

    /// A request about `size` bytes of data page `page`.
    ///
    /// # Errors
    ///
    /// There is no such page.
    pub fn request(
        &mut self,
        page: usize,
        offset: u16,
        size: u16,
        flags: Flags,
    ) -> Result<Request> {
        self.id = self.id.wrapping_add(1);
        let gref = *self.grefs.get(page).context("no such page")?;
        Ok(Request { gref, offset, flags, id: self.id, size })
    }

    /// Puts slots on the ring as they are, and shows them.
    ///
    /// # Errors
    ///
    /// There is no room.
    pub fn put(&mut self, slots: &[Slot]) -> Result<()> {
        for slot in slots {
            self.tx.push(slot).map_err(|_| anyhow::anyhow!("the ring is full"))?;
        }
        let _ = self.tx.publish();
        Ok(self.channels[0].notify()?)
    }

    /// Waits until so many slots are answered, and gives the answers.
    ///
    /// # Errors
    ///
    /// They never are.
    pub fn answers(&mut self, many: usize) -> Result<Vec<Response>> {
        let mut answers = Vec::new();
        wait_for("answer what was sent", || {
            while let Some(answer) = self.tx.take_response().map_err(|f| anyhow::anyhow!("{f}"))? {
                answers.push(answer);
            }
            Ok(answers.len() >= many)
        })?;
        ensure!(answers.len() == many, "{} answers to {many} slots", answers.len());
        Ok(answers)
    }

    /// Sends slots that are one packet, and says how the first was answered.
    ///
    /// # Errors
    ///
    /// They are not answered, or not each.
    pub fn send(&mut self, slots: &[Slot]) -> Result<Status> {
        self.put(slots)?;
        Ok(self.answers(slots.len())?.first().context("an answer")?.status)
    }

    /// Writes a packet over data pages from the first on, and sends it in pieces of these sizes.
    ///
    /// # Errors
    ///
    /// They are more than there is, or not answered.
    pub fn send_pieces(&mut self, packet: &[u8], sizes: &[usize]) -> Result<Status> {
        let (mut slots, mut rest): (Vec<Slot>, _) = (Vec::new(), packet);
        for (page, size) in sizes.iter().enumerate() {
            let (piece, after) = rest.split_at_checked(*size).context("larger than the packet")?;
            self.data.write_at(page.wrapping_mul(PAGE_SIZE), piece)?;
            let last = page.wrapping_add(1) == sizes.len();
            let flags = if last { Flags::NONE } else { Flags::MORE_DATA };
            let len = if page == 0 { packet.len() } else { piece.len() };
            slots.push(self.request(page, 0, u16::try_from(len)?, flags)?.into());
            rest = after;
        }
        self.send(&slots)
    }

    /// Posts pages of our own, from the receiving half, for what comes.
    ///
    /// # Errors
    ///
    /// The backend cannot be told.
    pub fn post(&mut self) -> Result<()> {
        for page in DATA..DATA.wrapping_mul(2) {
            if self.posted.contains(&Some(page)) || self.rx.free() == 0 {
                continue;
            }
            let gref = *self.grefs.get(page).context("no such page")?;
            let id = u16::try_from(page)?;
            self.rx.push(&rx::Request { id, gref }).map_err(|_| anyhow::anyhow!("full"))?;
            self.posted.push_back(Some(page));
        }
        let _ = self.rx.publish();
        Ok(self.channels[1].notify()?)
    }

    /// Posts a page that is none.
    ///
    /// # Errors
    ///
    /// The backend cannot be told.
    pub fn post_none(&mut self, gref: GrantRef) -> Result<()> {
        if self.rx.free() > 0 && self.rx.push(&rx::Request { id: 0xFFF, gref }).is_ok() {
            self.posted.push_back(None);
        }
        let _ = self.rx.publish();
        Ok(self.channels[1].notify()?)
    }

    /// Sends an event on each channel.
    ///
    /// # Errors
    ///
    /// It cannot be sent.
    pub fn ring_all(&self) -> Result<()> {
        for channel in &self.channels {
            channel.notify()?;
        }
        Ok(())
    }

    /// The first bytes of each packet that came.
    ///
    /// # Errors
    ///
    /// The backend broke the protocol.
    pub fn received(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut packets = Vec::new();
        while let Some(slot) = self.rx.take_response().map_err(|f| anyhow::anyhow!("{f}"))? {
            let Some(arrival) = self.collect.feed(&slot).map_err(|f| anyhow::anyhow!("{f}"))?
            else {
                continue;
            };
            let slots = arrival.slots();
            ensure!(slots <= self.posted.len(), "{slots} pages are answered and were not posted");
            let pages: Vec<Option<usize>> = self.posted.drain(..slots).collect();
            if arrival.packet().is_err() {
                self.failed = self.failed.wrapping_add(1);
            } else if let Some(piece) = arrival.pieces().next() {
                let page = pages.get(piece.slot).copied().flatten();
                let page = page.context("a packet in a page that is none")?;
                let mut bytes = vec![0; piece.size.into()];
                let at = page.wrapping_mul(PAGE_SIZE).wrapping_add(piece.offset.into());
                self.data.read_at(at, &mut bytes)?;
                packets.push(bytes);
            }
        }
        Ok(packets)
    }

    /// Asks the host for its address, until it answers.
    ///
    /// # Errors
    ///
    /// It never does.
    pub fn ask(&mut self) -> Result<()> {
        let question = self.question();
        wait_for("bring an answer", || {
            self.post()?;
            let sent = self.send_pieces(&question, &[ARP])?;
            ensure!(sent == Status::OKAY, "an honest packet: {sent}");
            let answers = |packet: &Vec<u8>| {
                packet.get(12..14) == Some(&[8, 6])
                    && packet.get(20..22) == Some(&[0, 2])
                    && packet.get(28..32) == Some(&HOST)
            };
            Ok(self.received()?.iter().any(answers))
        })
    }

    /// ARP: who has the host's address?
    #[must_use]
    pub fn question(&self) -> Vec<u8> {
        let mut packet = vec![0xFF; 6];
        packet.extend(self.mac);
        packet.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        packet.extend(self.mac);
        packet.extend(OURS);
        packet.extend([0; 6]);
        packet.extend(HOST);
        packet
    }

    /// TCP over IPv4 to the host, with so much payload: nobody listens, but it is all there.
    ///
    /// # Errors
    ///
    /// It is more than IP holds.
    pub fn tcp(&self, payload: usize) -> Result<Vec<u8>> {
        let mut packet = vec![0xFF; 6];
        packet.extend(self.mac);
        packet.extend([8, 0, 0x45, 0]);
        packet.extend(u16::try_from(payload.wrapping_add(40))?.to_be_bytes());
        packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
        packet.extend(OURS);
        packet.extend(HOST);
        packet.extend([0, 9, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 16, 0, 0, 0, 0, 0]);
        packet.resize(packet.len().wrapping_add(payload), 7);
        Ok(packet)
    }

    /// Shows a producer's index of the sending ring that we never came to.
    ///
    /// # Errors
    ///
    /// There is no such word.
    pub fn show_tx(&self, index: u32) -> Result<()> {
        self.tx.memory().write_at(Word::RequestProducer.offset(), &index.to_le_bytes())?;
        Ok(self.channels[0].notify()?)
    }

    /// The same of the receiving ring.
    ///
    /// # Errors
    ///
    /// There is no such word.
    pub fn show_rx(&self, index: u32) -> Result<()> {
        self.rx.memory().write_at(Word::RequestProducer.offset(), &index.to_le_bytes())?;
        Ok(self.channels[1].notify()?)
    }

    /// The same of the control ring.
    ///
    /// # Errors
    ///
    /// There is no such word.
    pub fn show_control(&self, index: u32) -> Result<()> {
        self.control.memory().write_at(Word::RequestProducer.offset(), &index.to_le_bytes())?;
        Ok(self.channels[2].notify()?)
    }

    /// Closes as an honest frontend does.
    ///
    /// # Errors
    ///
    /// The backend does not follow.
    pub fn close(self) -> Result<()> {
        self.guest.say(State::Closing)?;
        self.guest.until(&[State::Closing, State::Closed])?;
        self.guest.say(State::Closed)?;
        self.guest.until(&[State::Closed])
    }
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("mac {text}"))?;
    bytes.try_into().ok().with_context(|| format!("mac {text}"))
}
