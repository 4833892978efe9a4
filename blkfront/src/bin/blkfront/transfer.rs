//! `blkfront read` and `blkfront write`: bytes between the disk and a file, in order, several pieces
//! at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use blkfront::buffer::{Buffer as _, Either};
use blkfront::host::{HostBuffer, HostQueue};
use blkfront::{Completion, Private, Request};
use hypervisor::host::Domain;
use hypervisor::size::Size;

use crate::args::{self, Args};
use crate::attach::{Attached, Joined, attach};

/// Bytes in a piece.
const PIECE: u64 = 1 << 20;
/// Pieces under way at a time.
const DEPTH: u32 = 8;

pub(crate) fn read<D: Domain>(
    args: &Args,
    options: &args::Read,
    joined: Joined<D>,
) -> anyhow::Result<()> {
    let attached = attach(args, joined, DEPTH)?;
    let length = match options.length {
        Some(length) => length.0,
        None => attached.info.size.saturating_sub(options.offset.0),
    };
    check(&attached, options.offset, length)?;
    let mut output: Box<dyn std::io::Write> = match &options.output {
        Some(path) => Box::new(File::create(path).with_context(|| path.display().to_string())?),
        None => Box::new(std::io::stdout().lock()),
    };
    let mut queue = take(&attached)?;
    let mut asked = 0_u64;
    let mut written = 0_u64;
    let mut early = BTreeMap::new();
    let mut done = Vec::new();
    while written < length {
        if attached.stop.asked() {
            bail!("stopped after {written} of {length} bytes");
        }
        while asked < length && queue.held() < DEPTH as usize {
            let piece = length.saturating_sub(asked).min(PIECE);
            let buffer = private(vec![0; usize::try_from(piece)?]);
            submit(&queue, Request::read(options.offset.0.saturating_add(asked), buffer, asked))?;
            asked = asked.saturating_add(piece);
        }
        queue.wait(&mut done, 1, None)?;
        for completion in done.drain(..) {
            let at = completion.request.tag;
            early.insert(at, bytes(&queue, completion)?);
        }
        while let Some(bytes) = early.remove(&written) {
            output.write_all(&bytes).context("write what was read")?;
            written = written.saturating_add(bytes.len() as u64);
        }
    }
    output.flush().context("write what was read")?;
    drop(queue);
    attached.disk.close();
    Ok(())
}

pub(crate) fn write<D: Domain>(
    args: &Args,
    options: &args::Write,
    joined: Joined<D>,
) -> anyhow::Result<()> {
    let mut input: Box<dyn std::io::Read> = match &options.input {
        Some(path) if path != Path::new("-") => {
            Box::new(File::open(path).with_context(|| path.display().to_string())?)
        }
        _ => Box::new(std::io::stdin().lock()),
    };
    let attached = attach(args, joined, DEPTH)?;
    if attached.info.read_only {
        bail!("disk {} is read-only", attached.name);
    }
    if let Some(length) = options.length {
        check(&attached, options.offset, length.0)?;
    }
    let mut queue = take(&attached)?;
    let sector = u64::from(attached.info.sector_size);
    let mut offset = options.offset.0;
    let mut left = options.length.map_or(u64::MAX, |length| length.0);
    let mut done = Vec::new();
    let mut ended = false;
    while !ended || queue.held() > 0 {
        if attached.stop.asked() {
            bail!("stopped at byte {offset} of the disk");
        }
        while !ended && queue.held() < DEPTH as usize {
            let mut piece = Vec::new();
            let most = left.min(PIECE);
            input
                .by_ref()
                .take(most)
                .read_to_end(&mut piece)
                .context("read what is to be written")?;
            let len = piece.len() as u64;
            ended = len < PIECE;
            if len == 0 {
                break;
            }
            if !len.is_multiple_of(sector) {
                bail!(
                    "the input ends in the middle of a sector: {len} bytes at byte {offset} are no \
                     multiple of {sector}"
                );
            }
            submit(&queue, Request::write(offset, private(piece), offset))?;
            offset = offset.saturating_add(len);
            left = left.saturating_sub(len);
            ended |= left == 0;
        }
        queue.wait(&mut done, 1, None)?;
        for completion in done.drain(..) {
            bytes(&queue, completion)?;
        }
    }
    if options.length.is_some() && left > 0 {
        bail!("the input is {left} bytes shorter than --length");
    }
    queue.run(Request::flush(private(Vec::new()), 0)).map_err(|error| anyhow!("flush: {error}"))?;
    drop(queue);
    attached.disk.close();
    Ok(())
}

/// Whether the range is on the disk, in whole sectors.
pub(crate) fn check<D: Domain>(
    attached: &Attached<D>,
    offset: Size,
    length: u64,
) -> anyhow::Result<()> {
    let (size, sector) = (attached.info.size, attached.info.sector_size);
    for (what, value) in [("--offset", offset.0), ("--length", length)] {
        if !value.is_multiple_of(sector.into()) {
            bail!("{what} {value}: is no multiple of the disk's sectors of {sector} bytes");
        }
    }
    match offset.0.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => bail!("{length} bytes at byte {} reach past the end of the disk at {size}", offset.0),
    }
}

pub(crate) fn take<D: Domain>(attached: &Attached<D>) -> anyhow::Result<HostQueue<D>> {
    attached.disk.queue().context("the disk has no free queue")
}

pub(crate) fn private<M>(bytes: Vec<u8>) -> Either<Vec<u8>, M> {
    Either::Private(Private::new(bytes))
}

fn submit<D: Domain>(queue: &HostQueue<D>, request: Request<HostBuffer<D>>) -> anyhow::Result<()> {
    let (offset, len) = (request.offset, request.buffer.len());
    queue.submit(request).map_err(|rejected| match queue.ending() {
        Some(ending) => anyhow!("{ending}"),
        None => anyhow!("{len} bytes at byte {offset}: {}", rejected.reason),
    })
}

/// What a completed request moved.
fn bytes<D: Domain>(
    queue: &HostQueue<D>,
    completion: Completion<HostBuffer<D>>,
) -> anyhow::Result<Vec<u8>> {
    let offset = completion.request.offset;
    if let Err(error) = completion.result {
        match queue.ending() {
            Some(ending) => bail!("at byte {offset}: {ending}"),
            None => bail!("at byte {offset}: {error}"),
        }
    }
    match completion.request.buffer {
        Either::Private(private) => Ok(private.into_inner()),
        Either::Lent(_) => bail!("at byte {offset}: lent memory came back where none was given"),
    }
}
