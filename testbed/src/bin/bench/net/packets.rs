//! Packets of the least size, by sockets in both namespaces: how long there and back, and how many.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};
use testbed::network::{Namespace, v4};

use super::way::Way;

/// What is left of a frame of 64 bytes behind Ethernet's, IP's and UDP's headers.
const PAYLOAD: usize = 64 - 14 - 20 - 8;
const PORT: u16 = 7000;
/// A packet that took longer is lost.
const LOST: Duration = Duration::from_millis(200);
/// Packets that are sent between two looks at the clock.
const BATCH: usize = 64;
/// Room for what a receiver did not take yet, so that none is lost in its own socket.
const ROOM: usize = 32 << 20;

/// One at a time, there and back.
pub(crate) struct Trips {
    /// Microseconds; half of them took less.
    pub(crate) median: f64,
    /// 99 of 100 took less.
    pub(crate) most: f64,
    /// Of 100, those that never came back.
    pub(crate) lost: f64,
}

/// As many as are sent.
pub(crate) struct Flood {
    /// Received in a second.
    pub(crate) rate: f64,
    /// Of 100 sent.
    pub(crate) lost: f64,
}

fn socket(at: &Namespace, number: u8, port: u16) -> Result<UdpSocket> {
    at.enter(|| {
        let socket = UdpSocket::bind((v4(number), port))?;
        socket.set_read_timeout(Some(LOST))?;
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
        Ok(socket)
    })
}

/// From the guest to the host and back, one after the other.
pub(crate) fn round_trips(way: &Way, seconds: u32) -> Result<Trips> {
    let (host, guest) = (socket(&way.host, 1, PORT)?, socket(&way.guest, 2, 0)?);
    guest.connect((v4(1), PORT))?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| echo(&host, &over));
        let asked = ask(&guest, Duration::from_secs(seconds.into()));
        over.store(true, Ordering::Relaxed);
        asked
    })
}

/// Sends everything back.
fn echo(socket: &UdpSocket, over: &AtomicBool) {
    let mut packet = [0; PAYLOAD];
    while !over.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut packet) {
            // What cannot be sent is lost, and noticed where it is missed.
            let _ = socket.send_to(packet.get(..len).unwrap_or_default(), from);
        }
    }
}

fn ask(socket: &UdpSocket, long: Duration) -> Result<Trips> {
    let (began, mut took) = (Instant::now(), Vec::new());
    let (mut sent, mut packet) = (0_u64, [0; PAYLOAD]);
    while began.elapsed() < long {
        sent = sent.saturating_add(1);
        if let Some(number) = packet.first_chunk_mut() {
            *number = sent.to_be_bytes();
        }
        let asked = Instant::now();
        socket.send(&packet)?;
        let mut answer = [0; PAYLOAD];
        // What was given up comes late, if ever.
        while socket.recv(&mut answer).is_ok() {
            if answer == packet {
                took.push(asked.elapsed());
                break;
            }
        }
    }
    took.sort_unstable();
    let at = |percent: usize| {
        let place = took.len().saturating_mul(percent) / 100;
        let took = took.get(place).context("no packet came back")?;
        Ok::<_, anyhow::Error>(took.as_secs_f64() * 1e6)
    };
    let lost = sent.saturating_sub(took.len() as u64) as f64 * 100.0 / sent.max(1) as f64;
    Ok(Trips { median: at(50)?, most: at(99)?, lost })
}

/// As many as one thread can send, to the host or to the guest.
pub(crate) fn flood(way: &Way, to_guest: bool, seconds: u32) -> Result<Flood> {
    let (host, guest) = ((&way.host, 1), (&way.guest, 2));
    let (from, to) = if to_guest { (host, guest) } else { (guest, host) };
    let (sender, receiver) = (socket(from.0, from.1, 0)?, socket(to.0, to.1, PORT)?);
    sender.connect((v4(to.1), PORT))?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| count(&receiver, &over));
        let sent = send(&sender, Duration::from_secs(seconds.into()));
        over.store(true, Ordering::Relaxed);
        let counted = counting.join().map_err(|_| anyhow!("the receiver panicked"))?;
        let (sent, (received, took)) = (sent?, counted);
        let lost = sent.saturating_sub(received) as f64 * 100.0 / sent.max(1) as f64;
        Ok(Flood { rate: received as f64 / took.as_secs_f64().max(1e-9), lost })
    })
}

/// Says how many were sent.
fn send(socket: &UdpSocket, long: Duration) -> Result<u64> {
    let (began, mut sent) = (Instant::now(), 0_u64);
    while began.elapsed() < long {
        for _ in 0..BATCH {
            socket.send(&[0; PAYLOAD])?;
            sent = sent.saturating_add(1);
        }
    }
    Ok(sent)
}

/// Says how many came, and in which time the last of them had come.
fn count(socket: &UdpSocket, over: &AtomicBool) -> (u64, Duration) {
    let (began, mut last, mut received) = (Instant::now(), Duration::ZERO, 0_u64);
    let mut packet = [0; PAYLOAD];
    loop {
        if socket.recv(&mut packet).is_ok() {
            received = received.saturating_add(1);
            if received.is_multiple_of(BATCH as u64) {
                last = began.elapsed();
            }
        } else if over.load(Ordering::Relaxed) {
            return (received, last);
        }
    }
}
