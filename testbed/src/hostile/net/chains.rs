//! Packets that no driver sends.
//!
//! Where nobody can tell any more where the next packet begins, the device is taken away; anything else
//! costs the packet and is counted, and what is sent properly after it goes out.

use anyhow::{Result, ensure};
use hypervisor::memory::Memory as _;
use hypervisor::{GrantRef, PAGE_SIZE};
use ring::wire::netif::Status;
use ring::wire::netif::extra::{Extra, Gso, Kind};
use ring::wire::netif::tx::{Flags, Slot};

use super::{Interface, ends, with};
use crate::hostile::Case;

/// See [`Case`].
pub const CASES: &[Case] = &[
    Case {
        name: "net-header-splitting",
        about: "cuts headers to pieces, wherever that can be",
        counted: &["tx_packets"],
        play: |stage| with(stage, header_splitting),
    },
    Case {
        name: "net-tiny-fragments",
        about: "sends packets in pieces of a byte",
        counted: &["tx_packets"],
        play: |stage| with(stage, tiny),
    },
    Case {
        name: "net-zero-length",
        about: "sends pieces of nothing, and packets of nothing",
        counted: &["too_short"],
        play: |stage| with(stage, zero),
    },
    Case {
        name: "net-oversize",
        about: "has pieces that are more than the whole",
        counted: &["too_large"],
        play: |stage| with(stage, oversize),
    },
    Case {
        name: "net-too-many-slots",
        about: "sends packets in more pieces than are taken",
        counted: &["too_many_slots"],
        play: |stage| with(stage, |interface| many(interface, 20)),
    },
    Case {
        name: "net-endless-chain",
        about: "sends a packet that has no end",
        counted: &["slot_count"],
        play: |stage| ends(stage, &[&|interface: &mut Interface<'_>| endless(interface)]),
    },
    Case {
        name: "net-endless-extra",
        about: "says more about a packet without end",
        counted: &["extra_twice"],
        play: |stage| {
            ends(stage, &[&|interface: &mut Interface<'_>| extras(interface, &headroom(true), 200)])
        },
    },
    Case {
        name: "net-extra-unknown",
        about: "says about packets what there is not to say",
        counted: &["extra_type", "gso_type", "gso_size"],
        play: |stage| {
            let gso = |size, protocol| {
                Slot::from(Extra {
                    more: false,
                    kind: Kind::Gso(Gso { size, protocol, features: 0 }),
                })
            };
            let unknown = Slot::from(Extra { more: false, kind: Kind::Unknown(9) });
            ends(
                stage,
                &[
                    &|interface: &mut Interface<'_>| extras(interface, &unknown, 1),
                    &|interface: &mut Interface<'_>| extras(interface, &gso(1448, 3), 1),
                    &|interface: &mut Interface<'_>| extras(interface, &gso(0, 1), 1),
                ],
            )
        },
    },
    Case {
        name: "net-past-page",
        about: "has pieces that go on behind their page",
        counted: &["crosses_page"],
        play: |stage| {
            let whole = |offset, size| {
                move |interface: &mut Interface<'_>| {
                    let slot = interface.request(0, offset, size, Flags::NONE)?.into();
                    interface.put(&[slot])
                }
            };
            ends(stage, &[&whole(4000, 200), &whole(4095, u16::MAX), &whole(u16::MAX, 60)])
        },
    },
    Case {
        name: "net-cut-short",
        about: "ends in the middle of a packet",
        counted: &["packet_cut"],
        play: |stage| {
            let cut = |flags| {
                move |interface: &mut Interface<'_>| {
                    let slot = interface.request(0, 0, 200, flags)?.into();
                    interface.put(&[slot])
                }
            };
            ends(stage, &[&cut(Flags::MORE_DATA), &cut(Flags::EXTRA_INFO)])
        },
    },
    Case {
        name: "net-producer",
        about: "claims slots that are not there",
        counted: &["request_producer"],
        play: |stage| {
            let show = |ahead: u32| move |interface: &mut Interface<'_>| interface.show_tx(ahead);
            ends(stage, &[&show(257), &show(1 << 30), &show(u32::MAX / 2), &show(u32::MAX - 3)])
        },
    },
    Case {
        name: "net-grants",
        about: "sends from pages that it has not granted",
        counted: &["tx_grant"],
        play: |stage| with(stage, grants),
    },
    Case {
        name: "net-claims",
        about: "leaves checksums and cuts to others where there is nothing of that kind",
        counted: &["no_transport", "headers", "segments"],
        play: |stage| with(stage, claims),
    },
    Case {
        name: "net-rewrites",
        about: "rewrites packets and slots while they are looked at",
        counted: &["tx_packets"],
        play: |stage| with(stage, rewrites),
    },
    Case {
        name: "net-spoof",
        about: "sends as somebody else",
        counted: &["source"],
        play: |stage| with(stage, spoof),
    },
];

fn header_splitting(interface: &mut Interface<'_>) -> Result<()> {
    let packet = interface.tcp(100)?;
    let blank = [Flags::NONE, Flags::CSUM_BLANK];
    for cut in 1..60 {
        ensure!(
            interface.send_pieces(&packet, &[cut, packet.len().saturating_sub(cut)])?
                == Status::OKAY
        );
        for flags in blank {
            // The same with something left to be done in the headers.
            let first = interface.request(
                0,
                0,
                u16::try_from(packet.len())?,
                flags.with(Flags::MORE_DATA),
            )?;
            let rest = u16::try_from(packet.len().saturating_sub(cut))?;
            let second = interface.request(1, 0, rest, Flags::NONE)?;
            ensure!(
                interface.send(&[first.into(), second.into()])? == Status::OKAY,
                "cut at {cut}"
            );
        }
    }
    let sizes = [1, 1, 10, 1, 1, 1, 19, 1, 3, 1, 1, 7, packet.len().saturating_sub(47)];
    ensure!(interface.send_pieces(&packet, &sizes)? == Status::OKAY);
    Ok(())
}

fn tiny(interface: &mut Interface<'_>) -> Result<()> {
    let packet = interface.tcp(0)?;
    for pieces in 15..=18 {
        let bytes = packet.get(..pieces).unwrap_or_default().to_vec();
        ensure!(interface.send_pieces(&bytes, &vec![1; pieces])? == Status::OKAY, "{pieces}");
    }
    Ok(())
}

fn zero(interface: &mut Interface<'_>) -> Result<()> {
    let packet = interface.question();
    ensure!(interface.send_pieces(&packet, &[0, packet.len()])? == Status::OKAY);
    ensure!(interface.send_pieces(&packet, &[packet.len(), 0])? == Status::OKAY);
    ensure!(
        interface.send_pieces(&packet, &[0, 20, 0, packet.len().saturating_sub(20), 0])?
            == Status::OKAY
    );
    for size in 0..14 {
        let slot = interface.request(0, 0, size, Flags::NONE)?.into();
        ensure!(interface.send(&[slot])? == Status::ERROR, "{size} bytes");
    }
    let nothing = vec![0; 18];
    ensure!(interface.send_pieces(&[], &nothing)? == Status::ERROR);
    Ok(())
}

fn oversize(interface: &mut Interface<'_>) -> Result<()> {
    for (whole, piece) in [(60, 61), (60, 4096), (200, 201), (4096, 4096), (0, 4096)] {
        let slots = [
            interface.request(0, 0, whole, Flags::MORE_DATA)?.into(),
            interface.request(1, 0, piece, Flags::MORE_DATA)?.into(),
            interface.request(2, 0, piece, Flags::NONE)?.into(),
        ];
        let status = interface.send(&slots)?;
        ensure!(status == Status::ERROR, "{whole} bytes of which {piece} are twice: {status}");
    }
    Ok(())
}

fn chain(interface: &mut Interface<'_>, slots: usize, more: Flags) -> Result<Vec<Slot>> {
    let mut chain = Vec::new();
    for n in 0..slots {
        let last = n.wrapping_add(1) == slots;
        let size = if n == 0 { u16::try_from(slots)?.wrapping_add(60) } else { 1 };
        let flags = if last { more } else { Flags::MORE_DATA };
        chain.push(interface.request(n % super::interface::DATA, 0, size, flags)?.into());
    }
    Ok(chain)
}

fn many(interface: &mut Interface<'_>, slots: usize) -> Result<()> {
    let slots = chain(interface, slots, Flags::NONE)?;
    let status = interface.send(&slots)?;
    ensure!(status == Status::ERROR, "{} slots: {status}", slots.len());
    Ok(())
}

fn endless(interface: &mut Interface<'_>) -> Result<()> {
    let slots = chain(interface, 250, Flags::MORE_DATA)?;
    interface.put(&slots)
}

fn headroom(more: bool) -> Slot {
    Extra { more, kind: Kind::Xdp { headroom: 0 } }.into()
}

fn extras(interface: &mut Interface<'_>, extra: &Slot, times: usize) -> Result<()> {
    let mut slots: Vec<Slot> = vec![interface.request(0, 0, 200, Flags::EXTRA_INFO)?.into()];
    slots.extend(vec![*extra; times]);
    interface.put(&slots)
}

fn grants(interface: &mut Interface<'_>) -> Result<()> {
    for gref in [0, 60_000, 65_536, u32::MAX] {
        let bad = ring::wire::netif::tx::Request {
            gref: GrantRef(gref),
            ..interface.request(0, 0, 100, Flags::NONE)?
        };
        ensure!(interface.send(&[bad.into()])? == Status::ERROR, "grant {gref}");
        // Only the last piece is.
        let first = interface.request(0, 0, 200, Flags::MORE_DATA)?.into();
        ensure!(interface.send(&[first, bad.into()])? == Status::ERROR, "grant {gref} at the end");
    }
    Ok(())
}

fn claims(interface: &mut Interface<'_>) -> Result<()> {
    let (arp, tcp) = (interface.question(), interface.tcp(100)?);
    let mut short = tcp.clone();
    short.truncate(40);
    let mut small = |packet: &[u8], size: u16, why: &str| -> Result<()> {
        interface.data.write_at(0, packet)?;
        let len = u16::try_from(packet.len())?;
        let flags = Flags::CSUM_BLANK.with(Flags::EXTRA_INFO);
        let request = interface.request(0, 0, len, flags)?.into();
        let gso = Gso { size, protocol: 1, features: 0 };
        let status =
            interface.send(&[request, Extra { more: false, kind: Kind::Gso(gso) }.into()])?;
        ensure!(status == Status::ERROR, "{why}: {status}");
        Ok(())
    };
    small(&arp, 1448, "ARP to be cut")?;
    small(&short, 1448, "a header that is not all there")?;
    small(&tcp, 1, "segments of a byte")?;
    let mut deep = tcp;
    if let Some(length) = deep.get_mut(14) {
        *length = 0x4F;
    }
    interface.data.write_at(0, &deep)?;
    let request = interface.request(0, 0, u16::try_from(deep.len())?, Flags::CSUM_BLANK)?;
    // Whatever becomes of it: the options that it claims are the rest of it.
    let _ = interface.send(&[request.into()])?;
    Ok(())
}

/// Flips what decides how a packet is read, for as long as it is being read.
fn rewrites(interface: &mut Interface<'_>) -> Result<()> {
    let packet = interface.tcp(1000)?;
    interface.data.write_at(0, &packet)?;
    let ring = interface.tx.memory().len();
    ensure!(ring == PAGE_SIZE, "a ring of {ring} bytes");
    for round in 0..2000_u32 {
        let flags = Flags::CSUM_BLANK;
        let request = interface.request(0, 0, u16::try_from(packet.len())?, flags)?;
        interface.put(&[request.into()])?;
        for _ in 0..8 {
            for (at, value) in
                [(14, 0x4F), (16, 0xFF), (23, 17), (46, 0xF0), (12, 0x81), (20, 0x20)]
            {
                interface.data.write_at(at, &[value])?;
            }
            interface.data.write_at(0, &packet)?;
        }
        let answers = interface.answers(1)?;
        ensure!(answers.iter().all(|answer| answer.id == request.id), "round {round}: {answers:?}");
    }
    Ok(())
}

fn spoof(interface: &mut Interface<'_>) -> Result<()> {
    let mut packet = interface.question();
    if let Some(address) = packet.get_mut(6..12) {
        address.copy_from_slice(&[2, 0, 0, 0, 0, 0x66]);
    }
    let status = interface.send_pieces(&packet, &[packet.len()])?;
    ensure!(status == Status::ERROR, "another's address: {status}");
    Ok(())
}
