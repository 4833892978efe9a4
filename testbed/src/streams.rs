//! TCP between a guest and its host, both ways, with every byte compared.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::network::{Namespace, v4};
use crate::scene::until;

/// Bytes that are written and compared at a time.
const PIECE: usize = 1 << 16;
/// How much has to come for a stream to count as flowing.
const FLOWS: u64 = 100_000;
/// How long either end waits for the other: longer than anything that is waited for by tests.
const PATIENCE: Duration = Duration::from_secs(100);

/// A stream of bytes of which each eight say where in it they are, so that none can be lost, doubled or changed.
fn fill(piece: &mut [u8], at: u64) {
    for (word, chunk) in (at..).step_by(8).zip(piece.chunks_exact_mut(8)) {
        let word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        chunk.copy_from_slice(&word.to_le_bytes());
    }
}

/// One stream.
struct Way {
    /// Bytes that came and were compared.
    came: Arc<AtomicU64>,
    sends: JoinHandle<Result<u64>>,
    receives: JoinHandle<Result<u64>>,
}

/// Two streams, one each way, between a guest and its host.
pub struct Streams {
    stop: Arc<AtomicBool>,
    /// To the host, and to the guest.
    ways: [Way; 2],
}

impl Streams {
    /// Begins them, with the host's address that ends in 1.
    ///
    /// # Errors
    ///
    /// The guest cannot connect to its host.
    pub fn begin(host: &Namespace, guest: &Namespace) -> Result<Self> {
        let address = v4(1);
        let listener = host.enter(|| Ok(TcpListener::bind((address.as_str(), 7000))?))?;
        let stop = Arc::new(AtomicBool::new(false));
        let pair = || -> Result<(TcpStream, TcpStream)> {
            let far = guest.enter(|| Ok(TcpStream::connect((address.as_str(), 7000))?))?;
            Ok((far, listener.accept()?.0))
        };
        let (far, near) = pair()?;
        let to_host = Way::begin(far, near, &stop)?;
        let (far, near) = pair()?;
        let to_guest = Way::begin(near, far, &stop)?;
        Ok(Self { stop, ways: [to_host, to_guest] })
    }

    /// Waits until more has come both ways.
    ///
    /// # Errors
    ///
    /// Nothing comes any more.
    pub fn flow(&self, what: &str) -> Result<()> {
        let came = || self.ways.each_ref().map(|way| way.came.load(Ordering::Relaxed));
        let before = came();
        until(what, || {
            let grown = came().into_iter().zip(before);
            Ok(grown.into_iter().all(|(now, before)| now.saturating_sub(before) > FLOWS))
        })
    }

    /// Ends them, and says how many bytes went to the host and to the guest.
    ///
    /// # Errors
    ///
    /// What came is not what was sent.
    pub fn end(self) -> Result<[u64; 2]> {
        self.stop.store(true, Ordering::Relaxed);
        let [to_host, to_guest] = self.ways;
        Ok([to_host.end()?, to_guest.end()?])
    }
}

impl Way {
    fn begin(from: TcpStream, to: TcpStream, stop: &Arc<AtomicBool>) -> Result<Self> {
        for end in [&from, &to] {
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_write_timeout(Some(PATIENCE))?;
        }
        let came = Arc::new(AtomicU64::new(0));
        let (stop, comes) = (Arc::clone(stop), Arc::clone(&came));
        let sends = spawn(move || send(from, &stop));
        let receives = spawn(move || receive(to, &comes));
        Ok(Self { came, sends, receives })
    }

    fn end(self) -> Result<u64> {
        let over = |thread: JoinHandle<Result<u64>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of a stream panicked")))
        };
        let sent = over(self.sends);
        let came = over(self.receives)?;
        ensure!(sent? == came, "another number of bytes came than was sent: {came}");
        Ok(came)
    }
}

fn send(mut to: TcpStream, stop: &AtomicBool) -> Result<u64> {
    let (mut piece, mut at) = (vec![0; PIECE], 0_u64);
    while !stop.load(Ordering::Relaxed) {
        fill(&mut piece, at);
        to.write_all(&piece).with_context(|| format!("send after {at} bytes"))?;
        at = at.saturating_add(PIECE as u64);
    }
    to.shutdown(Shutdown::Write)?;
    Ok(at)
}

fn receive(mut from: TcpStream, came: &AtomicU64) -> Result<u64> {
    let (mut piece, mut expected, mut at) = (vec![0; PIECE], vec![0; PIECE], 0_u64);
    loop {
        match from.read_exact(&mut piece) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(at),
            Err(error) => return Err(error).with_context(|| format!("receive after {at} bytes")),
        }
        fill(&mut expected, at);
        if piece != expected {
            bail!("other bytes within {PIECE} of {at}");
        }
        at = at.saturating_add(PIECE as u64);
        came.store(at, Ordering::Relaxed);
    }
}
