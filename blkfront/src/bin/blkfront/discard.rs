//! `blkfront discard`.

use anyhow::{anyhow, bail};
use blkfront::Request;
use hypervisor::host::Domain;

use crate::args::{self, Args};
use crate::attach::{Joined, attach};
use crate::transfer::{check, private, take};

/// Bytes in a request: a backend may take long for one, and until it is done nobody can stop us.
const PIECE: u64 = 1 << 30;

pub(crate) fn run<D: Domain>(
    args: &Args,
    options: &args::Discard,
    joined: Joined<D>,
) -> anyhow::Result<()> {
    let attached = attach(args, joined, 1)?;
    if attached.info.discard.is_none() {
        bail!("disk {}: its backend does not discard", attached.name);
    }
    let length = options.length.0;
    check(&attached, options.offset, length)?;
    let mut queue = take(&attached)?;
    let mut done = 0_u64;
    while done < length {
        if attached.stop.asked() {
            bail!("stopped after {done} of {length} bytes");
        }
        let at = options.offset.0.saturating_add(done);
        let piece = length.saturating_sub(done).min(PIECE);
        let request = Request::discard(at, piece, private(Vec::new()), done);
        queue.run(request).map_err(|error| anyhow!("{piece} bytes at byte {at}: {error}"))?;
        done = done.saturating_add(piece);
    }
    drop(queue);
    attached.disk.close();
    Ok(())
}
