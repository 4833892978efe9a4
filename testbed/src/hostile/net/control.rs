//! Nonsense on the control ring.

use anyhow::{Context as _, Result, ensure};
use hypervisor::GrantRef;
use hypervisor::memory::Memory as _;
use ring::wire::netif::control::{
    Algorithm, Gref, GrefList, HashTypes, Operation, Request, Response, Status,
};

use super::{Interface, ends, with};
use crate::hostile::Case;
use crate::hostile::guest::wait_for;

/// See [`Case`].
pub const CASES: &[Case] = &[
    Case {
        name: "net-control-nonsense",
        about: "asks the control ring for what cannot be",
        counted: &["tx_packets"],
        play: |stage| with(stage, nonsense),
    },
    Case {
        name: "net-control-kept",
        about: "has pages kept that are another's, none, or its own rings, again and again",
        counted: &["tx_packets"],
        play: |stage| with(stage, kept),
    },
    Case {
        name: "net-control-producer",
        about: "claims questions that are not there",
        counted: &["request_producer"],
        play: |stage| {
            let show =
                |index: u32| move |interface: &mut Interface<'_>| interface.show_control(index);
            ends(stage, &[&show(200), &show(1 << 30), &show(u32::MAX - 3)])
        },
    },
];

fn ask(interface: &mut Interface<'_>, operation: Operation) -> Result<Response> {
    let request = Request { id: 9, operation };
    interface.control.push(&request).map_err(|_| anyhow::anyhow!("the ring is full"))?;
    let _ = interface.control.publish();
    interface.ring_all()?;
    let mut answer = None;
    wait_for("answer on the control ring", || {
        answer = interface.control.take_response().map_err(|f| anyhow::anyhow!("{f}"))?;
        Ok(answer.is_some())
    })?;
    let answer = answer.context("an answer")?;
    ensure!((answer.id, answer.kind) == (9, operation.number()), "{answer:?}");
    Ok(answer)
}

fn nonsense(interface: &mut Interface<'_>) -> Result<()> {
    let own = *interface.grefs.first().context("a grant")?;
    for kind in [0, 11, 0x100, u16::MAX] {
        let answer = ask(interface, Operation::Unknown(kind))?;
        ensure!(answer.status == Status::NOT_SUPPORTED, "operation {kind}: {answer:?}");
    }
    for operation in [
        Operation::SetHashAlgorithm(Algorithm(77)),
        Operation::SetHashFlags(HashTypes(u32::MAX)),
        Operation::SetHashKey { gref: own, size: 41 },
        Operation::SetHashKey { gref: own, size: u32::MAX },
        Operation::SetHashKey { gref: GrantRef(60_000), size: 40 },
        Operation::SetHashMappingSize { entries: u32::MAX },
        Operation::SetHashMapping { gref: own, entries: u32::MAX, offset: u32::MAX },
        Operation::SetHashMapping { gref: GrantRef(60_000), entries: 1, offset: 0 },
        Operation::GetGrefMappingSize { queue: u32::MAX },
    ] {
        let answer = ask(interface, operation)?;
        ensure!(answer.status != Status::SUCCESS, "{operation:?} was done");
    }
    Ok(())
}

fn kept(interface: &mut Interface<'_>) -> Result<()> {
    let page = *interface.grefs.first().context("a grant")?;
    let other = *interface.grefs.get(1).context("a grant")?;
    let list = |queue, entries| GrefList { queue, gref: page, entries };
    for bad in [list(7, 1), list(0, 513), list(0, u32::MAX)] {
        for operation in [Operation::AddGrefMapping(bad), Operation::DelGrefMapping(bad)] {
            let answer = ask(interface, operation)?;
            ensure!(answer.status == Status::INVALID_PARAMETER, "{operation:?}: {answer:?}");
        }
    }
    let write = |interface: &Interface<'_>, grefs: &[GrantRef]| -> Result<u32> {
        let entry = |gref: &GrantRef| Gref { gref: *gref, flags: 0, status: 0 }.encode();
        let bytes: Vec<u8> = grefs.iter().flat_map(entry).collect();
        interface.data.write_at(0, &bytes)?;
        Ok(u32::try_from(grefs.len())?)
    };
    for grefs in [vec![GrantRef(60_000)], vec![other, GrantRef(u32::MAX)], vec![other; 512]] {
        let entries = write(interface, &grefs)?;
        let answer = ask(interface, Operation::AddGrefMapping(list(0, entries)))?;
        ensure!(answer.status == Status::INVALID_PARAMETER, "{entries} entries: {answer:?}");
    }
    // The list itself among what is kept, and sent from; kept and given up as fast as that goes.
    for _ in 0..200 {
        let entries = write(interface, &[page, other])?;
        let add = ask(interface, Operation::AddGrefMapping(list(0, entries)))?;
        ensure!(add.status == Status::SUCCESS, "{add:?}");
        let question = interface.question();
        interface.send_pieces(&question, &[20, question.len().saturating_sub(20)])?;
        write(interface, &[page, other])?;
        let del = ask(interface, Operation::DelGrefMapping(list(0, entries)))?;
        ensure!((del.status, del.data) == (Status::SUCCESS, 2), "{del:?}");
    }
    let entries = write(interface, &[page, other])?;
    let add = ask(interface, Operation::AddGrefMapping(list(0, entries)))?;
    ensure!(add.status == Status::SUCCESS, "left kept: {add:?}");
    Ok(())
}
