//! Any packets, in any pieces, either way: they come out as they went in, in order, and what is left to
//! others of them is said such that doing it gives the packet that was meant.

use netback::offload::Sums;
use netback::vnet;
use proptest::prelude::*;
use ring::packet::transport::Checksum as Place;
use ring::wire::netif::chain::{Checksum, Offload};
use ring::wire::netif::extra::{Gso, GsoProtocol};

use super::packets::{Shape, checksum, complete};
use super::scene::{Guest, Scene, Served, Setting};

#[derive(Clone, Debug)]
struct Packet {
    shape: Shape,
    leave: Leave,
    sizes: Vec<u16>,
}

/// What is left to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Nothing,
    /// The checksum, with this in its place.
    Sum(u16),
    /// To cut it, if it is TCP and larger than that.
    Cut(u16),
}

fn shape() -> impl Strategy<Value = Shape> {
    let payload = prop_oneof![0_usize..64, 0_usize..1500, 0_usize..9000, 50_000_usize..65_000];
    (any::<(bool, bool, u8)>(), payload).prop_map(|((v6, tcp, seed), payload)| Shape {
        v6,
        tcp,
        payload,
        seed,
    })
}

fn packet() -> impl Strategy<Value = Packet> {
    let leave = prop_oneof![
        Just(Leave::Nothing),
        any::<u16>().prop_map(Leave::Sum),
        (500_u16..9000).prop_map(Leave::Cut),
    ];
    // After the first few, pieces fill pages, so that 18 are enough for anything.
    let sizes = prop::collection::vec(prop_oneof![0_u16..4, 1_u16..100, 0_u16..=4096], 0..2);
    (shape(), leave, sizes).prop_map(|(shape, leave, sizes)| Packet { shape, leave, sizes })
}

impl Packet {
    fn gso(&self) -> Option<Gso> {
        let protocol = if self.shape.v6 { GsoProtocol::TcpV6 } else { GsoProtocol::TcpV4 };
        match self.leave {
            Leave::Cut(size) if self.shape.tcp && self.shape.payload > usize::from(size) => {
                Some(Gso::new(protocol, size))
            }
            _ => None,
        }
    }

    /// As the guest sends it.
    fn sent_by_guest(&self) -> (Vec<u8>, Offload) {
        let mut bytes = self.shape.bytes();
        let at = self.shape.sum_at();
        let checksum = match (self.leave, self.gso()) {
            (Leave::Sum(junk), _) => {
                bytes[at..at + 2].copy_from_slice(&junk.to_be_bytes());
                Checksum::Blank
            }
            (_, Some(_)) => {
                bytes[at..at + 2].fill(0xAA);
                Checksum::Blank
            }
            _ => Checksum::Unchecked,
        };
        (bytes, Offload { checksum, gso: self.gso(), hash: None })
    }

    /// That the port's side makes of it what was meant.
    fn check_at_port(&self, (header, mut bytes): (vnet::Header, Vec<u8>)) {
        let kind = match self.gso().map(|gso| gso.protocol().unwrap()) {
            Some(GsoProtocol::TcpV4) => vnet::gso::TCPV4,
            Some(_) => vnet::gso::TCPV6,
            None => vnet::gso::NONE,
        };
        assert_eq!((header.gso_type, header.gso_size), (kind, self.gso().map_or(0, |g| g.size)));
        let blank = self.gso().is_some() || matches!(self.leave, Leave::Sum(_));
        assert_eq!(header.flags, if blank { vnet::flags::NEEDS_CSUM } else { 0 });
        if blank {
            assert_eq!(usize::from(header.csum_start), self.shape.transport());
            complete(&mut bytes, header.csum_start.into(), header.csum_offset.into());
        }
        assert!(bytes == self.shape.bytes(), "another packet than was sent");
    }

    /// As it comes from the port.
    fn at_port(&self) -> (vnet::Header, Vec<u8>) {
        let mut bytes = self.shape.bytes();
        let blank = self.gso().is_some() || matches!(self.leave, Leave::Sum(_));
        let mut header = vnet::Header::default();
        if blank {
            Place::find(&bytes).unwrap().leave_blank(&mut bytes);
            header.flags = vnet::flags::NEEDS_CSUM;
            header.csum_start = self.shape.transport() as u16;
            header.csum_offset = (self.shape.sum_at() - self.shape.transport()) as u16;
        }
        if let Some(gso) = self.gso() {
            header.gso_type = if self.shape.v6 { vnet::gso::TCPV6 } else { vnet::gso::TCPV4 };
            (header.gso_size, header.hdr_len) = (gso.size, self.shape.headers() as u16);
        }
        (header, bytes)
    }

    /// That the guest receives what was meant: in one piece, or in segments.
    fn check_at_guest(&self, guest: &mut Guest, takes_cut: bool, sums: Sums) {
        let whole = self.shape.bytes();
        let taken = if self.shape.v6 { sums.v6 } else { sums.v4 };
        let mut next = || {
            let (mut bytes, offload) = guest.receive();
            if offload.checksum == Checksum::Blank {
                assert!(taken || offload.gso.is_some(), "a blank checksum that it does not take");
                Place::find(&bytes).unwrap().complete(&mut bytes);
            }
            (bytes, offload)
        };
        let Some(gso) = self.gso().filter(|_| !takes_cut) else {
            let (bytes, offload) = next();
            assert_eq!(offload.gso, self.gso());
            assert!(bytes == whole, "another packet than was sent");
            return;
        };
        let (front, mut payload) = (self.shape.headers(), Vec::<u8>::new());
        while payload.len() < self.shape.payload {
            let (bytes, offload) = next();
            assert_eq!(offload.gso, None);
            assert!(bytes.len() - front <= gso.size.into());
            assert!(Place::find(&bytes).unwrap().is_right(&bytes), "a segment's checksum");
            if !self.shape.v6 {
                // Over a header with its own checksum, the sum's complement is zero; here 0xFFFF.
                assert_eq!(checksum(&bytes[14..34]), 0xFFFF, "a segment's IPv4 checksum");
            }
            let at = self.shape.transport() + 4;
            let sequence = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(sequence.wrapping_sub(0xFFFF_FF00) as usize, payload.len());
            let last = payload.len() + bytes.len() - front == self.shape.payload;
            let flags = 0x10 | if payload.is_empty() { 0x80 } else { 0 };
            let flags = flags | if last { 0x09 } else { 0 };
            assert_eq!(bytes[self.shape.transport() + 13], flags, "FIN, PSH, ACK and CWR");
            payload.extend(&bytes[front..]);
        }
        assert!(payload == whole[front..], "other bytes than were sent");
    }
}

fn through(guest: &mut Guest, served: &mut Served, packets: &[Packet]) {
    let mut sent = packets.iter();
    for packet in packets {
        let (bytes, offload) = packet.sent_by_guest();
        // What the far end holds is taken when nothing more fits.
        let began = std::time::Instant::now();
        while !guest.push(&bytes, offload, &packet.sizes) {
            guest.send_raw(&[]);
            if let Some(came) = served.far.take() {
                sent.next().unwrap().check_at_port(came);
            }
            assert!(began.elapsed() < super::scene::PATIENCE, "the ring is stuck");
        }
    }
    guest.send_raw(&[]);
    for packet in sent {
        packet.check_at_port(served.take());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_a_guest_sends_comes_out_of_the_port(
        start: u32,
        split: bool,
        packets in prop::collection::vec(packet(), 1..150),
    ) {
        let scene = Scene::new();
        let setting = Setting { split, ..Setting::default() };
        let (mut guest, mut served) = scene.serve(start, setting);
        through(&mut guest, &mut served, &packets);
        let stats = served.until("all counted", |stats| stats.tx_packets == packets.len() as u64);
        prop_assert!(stats.lost.is_empty(), "{:?}", stats.lost);
    }

    #[test]
    fn what_comes_into_the_port_reaches_the_guest(
        start: u32,
        split: bool,
        (gso, v4, v6) in any::<(bool, bool, bool)>(),
        headroom in prop_oneof![Just(0_u16), Just(256)],
        packets in prop::collection::vec(packet(), 1..60),
    ) {
        let scene = Scene::new();
        let mut setting = Setting { split, ..Setting::default() };
        setting.features.takes.gso_tcpv4 = gso;
        setting.features.takes.gso_tcpv6 = gso;
        setting.features.takes.headroom = headroom;
        setting.features.sums = Sums { v4, v6 };
        let sums = setting.features.sums;
        let (mut guest, mut served) = scene.serve(start, setting);
        // 17 pages less headroom have not room for everything.
        let fits = |packet: &&Packet| headroom == 0 || packet.shape.payload < 60_000;
        for some in packets.iter().filter(fits).collect::<Vec<_>>().chunks(8) {
            for packet in some {
                let (header, bytes) = packet.at_port();
                served.put(&header, &bytes);
            }
            for packet in some {
                packet.check_at_guest(&mut guest, gso, sums);
            }
        }
        prop_assert!(served.stats().lost.is_empty(), "{:?}", served.stats().lost);
    }
}
