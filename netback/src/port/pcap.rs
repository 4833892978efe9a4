//! A port that writes down what passes it, for tcpdump and its like to read.
//!
//! Packets are written as they pass: what the guest leaves to others is not done yet there, so that
//! checksums may be wrong and packets larger than a network takes. A file that cannot be written any
//! more ends the writing, not the port.
//!
//! ```text
//!  file:    magic  version 2.4  0  0  largest packet  link type 1 (Ethernet)
//!  packet:  seconds  nanoseconds  bytes written  bytes there were  | bytes
//! ```
//!
//! Every number has 32 bits but the two of the version, and is little-endian. Source:
//! `pcap-savefile(5)` of libpcap; the magic is that of times in nanoseconds.

use std::collections::VecDeque;
use std::io::{BufWriter, Write};
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hypervisor::HostError;

use super::{Port, Readable, Turned};
use crate::buffer::{Buffer, Pool};

const MAGIC: u32 = 0xA1B2_3C4D;
const VERSION: [u16; 2] = [2, 4];
const LARGEST: u32 = 262_144;
const ETHERNET: u32 = 1;

/// A port, and where what passes it is written.
pub struct Pcap<P, W: Write> {
    port: P,
    /// `None` after it failed.
    file: Option<BufWriter<W>>,
}

impl<P: Port, W: Write> Pcap<P, W> {
    /// Writes what passes `port` to `file`, from its beginning.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn new(port: P, file: W) -> Result<Self, HostError> {
        let mut file = BufWriter::new(file);
        start(&mut file)
            .and_then(|()| file.flush())
            .map_err(|error| HostError::from_io("begin a file of packets", &error))?;
        Ok(Self { port, file: Some(file) })
    }

    /// The same, at the end of a `file` that was begun before.
    #[must_use]
    pub fn resume(port: P, file: W) -> Self {
        Self { port, file: Some(BufWriter::new(file)) }
    }

    fn note(&mut self, packet: &[u8]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.write(|file| record(file, now, packet));
    }

    fn write(&mut self, write: impl FnOnce(&mut BufWriter<W>) -> std::io::Result<()>) {
        if let Some(file) = &mut self.file
            && let Err(error) = write(file)
        {
            tracing::warn!(%error, "packets are not written down any more");
            self.file = None;
        }
    }
}

fn start(file: &mut impl Write) -> std::io::Result<()> {
    file.write_all(&MAGIC.to_le_bytes())?;
    file.write_all(VERSION.map(u16::to_le_bytes).as_flattened())?;
    file.write_all([0, 0, LARGEST, ETHERNET].map(u32::to_le_bytes).as_flattened())
}

fn record(file: &mut impl Write, at: Duration, packet: &[u8]) -> std::io::Result<()> {
    let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
    // At most 64 KiB and some.
    let len = u32::try_from(packet.len()).unwrap_or(LARGEST);
    let head = [seconds, at.subsec_nanos(), len, len].map(u32::to_le_bytes);
    file.write_all(head.as_flattened())?;
    file.write_all(packet)
}

impl<P: Port, W: Write> Port for Pcap<P, W> {
    fn room(&self) -> usize {
        self.port.room()
    }

    fn send(&mut self, packet: Buffer) {
        self.note(packet.packet());
        self.port.send(packet);
    }

    fn turn(
        &mut self,
        pool: &mut Pool,
        most: usize,
        into: &mut VecDeque<Buffer>,
    ) -> Result<Turned, HostError> {
        let before = into.len();
        let turned = self.port.turn(pool, most, into)?;
        for buffer in into.iter().skip(before) {
            self.note(buffer.packet());
        }
        Ok(turned)
    }

    fn wait(
        &mut self,
        watched: &[BorrowedFd<'_>],
        receive: bool,
        timeout: Option<Duration>,
    ) -> Result<Readable, HostError> {
        // Whoever reads along sees what passed as soon as nothing more does.
        self.write(Write::flush);
        self.port.wait(watched, receive, timeout)
    }

    fn carrier(&mut self, up: bool) -> Result<(), HostError> {
        self.port.carrier(up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memory::pair;
    use crate::vnet::Header;

    #[test]
    fn both_ways_are_written_as_they_pass() {
        let (near, mut far) = pair(4).unwrap();
        let mut written = Vec::new();
        let mut port = Pcap::new(near, &mut written).unwrap();
        let (mut pool, mut into) = (Pool::new(4), VecDeque::new());
        let mut buffer = pool.take().unwrap();
        buffer.fill(&Header::default(), &[1; 60]);
        port.send(buffer);
        assert!(far.put(&Header::default(), &[2; 70]));
        port.turn(&mut pool, 4, &mut into).unwrap();
        assert_eq!(into.len(), 1);
        drop(port);
        let (head, records) = written.split_at(24);
        assert_eq!(head[..8], [0x4D, 0x3C, 0xB2, 0xA1, 2, 0, 4, 0]);
        assert_eq!(head[16..], [0, 0, 4, 0, 1, 0, 0, 0]);
        let (one, other) = records.split_at(16 + 60);
        assert_eq!((&one[8..16], &one[16..]), (&[60, 0, 0, 0, 60, 0, 0, 0][..], &[1; 60][..]));
        assert_eq!((&other[8..16], &other[16..]), (&[70, 0, 0, 0, 70, 0, 0, 0][..], &[2; 70][..]));
    }

    /// A file that takes so many bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_ends_the_writing_and_not_the_port() {
        let (near, mut far) = pair(200).unwrap();
        let mut port = Pcap::new(near, Full(24)).unwrap();
        let (mut pool, mut into) = (Pool::new(200), VecDeque::new());
        for _ in 0..200 {
            assert!(far.put(&Header::default(), &[2; 70]));
        }
        port.turn(&mut pool, 200, &mut into).unwrap();
        assert_eq!((into.len(), port.file.is_none()), (200, true));
    }
}
