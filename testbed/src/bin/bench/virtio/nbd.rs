//! A client of NBD servers, which has as much to say in one call as there is to be said.
//!
//! Source: the NBD protocol (NetworkBlockDevice/nbd, doc/proto.md). Numbers are big-endian.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{BLOCK, Offsets, Turn};

const GREETING: u64 = 0x4e42_444d_4147_4943;
const OPTIONS: u64 = 0x4948_4156_454f_5054;
/// `NBD_FLAG_C_FIXED_NEWSTYLE`, `NBD_FLAG_C_NO_ZEROES`.
const CLIENT_FLAGS: u32 = 3;
const EXPORT_NAME: u32 = 1;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
/// Bytes in front of a reply's data.
const REPLY_HEAD: usize = 16;

/// A disk of an NBD server.
pub(super) struct Client {
    replies: BufReader<UnixStream>,
    socket: UnixStream,
    offsets: Offsets,
    /// Requests that are yet to be sent.
    unsent: Vec<u8>,
    block: Vec<u8>,
}

impl Client {
    /// The export without a name of the server at `path`.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let mut socket = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        ensure!(u64_of(&mut socket)? == GREETING, "no NBD server");
        ensure!(u64_of(&mut socket)? == OPTIONS, "an NBD server of old");
        socket.read_exact(&mut [0; 2])?;
        let mut said = CLIENT_FLAGS.to_be_bytes().to_vec();
        said.extend(OPTIONS.to_be_bytes());
        said.extend(EXPORT_NAME.to_be_bytes());
        said.extend(0_u32.to_be_bytes());
        socket.write_all(&said)?;
        let size = u64_of(&mut socket)?;
        socket.read_exact(&mut [0; 2])?;
        let replies = BufReader::with_capacity(256 << 10, socket.try_clone()?);
        let (offsets, block) = (Offsets::of(size), vec![0xA5; BLOCK]);
        Ok(Self { replies, socket, offsets, unsent: Vec::new(), block })
    }

    fn ask(&mut self, write: bool) {
        let kind = if write { WRITE } else { READ };
        self.unsent.extend(REQUEST.to_be_bytes());
        self.unsent.extend(0_u16.to_be_bytes());
        self.unsent.extend(kind.to_be_bytes());
        self.unsent.extend(0_u64.to_be_bytes());
        self.unsent.extend(self.offsets.next().to_be_bytes());
        self.unsent.extend((BLOCK as u32).to_be_bytes());
        if write {
            self.unsent.extend(&self.block);
        }
    }

    fn send(&mut self) -> Result<()> {
        self.socket.write_all(&self.unsent).context("send requests")?;
        self.unsent.clear();
        Ok(())
    }

    fn reply(&mut self, write: bool) -> Result<()> {
        let mut head = [0; REPLY_HEAD];
        self.replies.read_exact(&mut head).context("read a reply")?;
        let magic = head.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        let error = head.get(4..8).unwrap_or_default();
        ensure!(magic == Some(REPLY) && error == [0; 4], "an NBD request failed: {head:?}");
        if !write {
            self.replies.read_exact(&mut self.block).context("read data")?;
        }
        Ok(())
    }

    /// Keeps `depth` requests under way for `time`, and waits for the last of them.
    pub(super) fn drive(&mut self, write: bool, depth: usize, time: Duration) -> Result<Turn> {
        let begun = Instant::now();
        (0..depth).for_each(|_| self.ask(write));
        let (mut under_way, mut requests) = (depth, 0_u64);
        let whole = if write { REPLY_HEAD } else { REPLY_HEAD.saturating_add(BLOCK) };
        while under_way > 0 {
            self.send()?;
            self.replies.fill_buf().context("wait for a reply")?;
            let goes_on = begun.elapsed() < time;
            loop {
                self.reply(write)?;
                requests = requests.saturating_add(1);
                match goes_on {
                    true => self.ask(write),
                    false => under_way = under_way.saturating_sub(1),
                }
                if self.replies.buffer().len() < whole {
                    break;
                }
            }
        }
        Ok(Turn { requests, took: begun.elapsed() })
    }
}

fn u64_of(socket: &mut UnixStream) -> Result<u64> {
    let mut bytes = [0; 8];
    socket.read_exact(&mut bytes).context("an NBD server's greeting")?;
    Ok(u64::from_be_bytes(bytes))
}
