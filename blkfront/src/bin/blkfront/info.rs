//! `blkfront info`.

use hypervisor::host::Domain;
use hypervisor::size::Size;
use serde::Serialize;

use crate::args::{Args, Info};
use crate::attach::{Joined, attach};

#[derive(Serialize)]
struct Report {
    name: String,
    domain: u16,
    backend: Option<u16>,
    size: u64,
    sector_size: u32,
    physical_sector_size: u32,
    read_only: bool,
    cdrom: bool,
    removable: bool,
    flush: bool,
    discard: Option<Discard>,
    queues: usize,
    ring_slots: u32,
    backend_queues: Option<u32>,
    backend_ring_page_order: Option<u32>,
    indirect_segments: Option<u32>,
    persistent_grants: Option<bool>,
    trusted: bool,
}

#[derive(Serialize)]
struct Discard {
    granularity: u32,
    alignment: u32,
    secure: bool,
}

pub(crate) fn run<D: Domain>(args: &Args, options: &Info, joined: Joined<D>) -> anyhow::Result<()> {
    let attached = attach(args, joined, 1)?;
    let (info, status) = (&attached.info, attached.disk.status());
    let report = Report {
        name: attached.name.clone(),
        domain: attached.domain.id().get(),
        backend: status.backend.map(hypervisor::DomId::get),
        size: info.size,
        sector_size: info.sector_size,
        physical_sector_size: info.physical_sector_size,
        read_only: info.read_only,
        cdrom: info.cdrom,
        removable: info.removable,
        flush: info.flush,
        discard: info.discard.map(|discard| Discard {
            granularity: discard.granularity,
            alignment: discard.alignment,
            secure: discard.secure,
        }),
        queues: status.queues,
        ring_slots: status.slots,
        backend_queues: status.offer.map(|offer| offer.queues),
        backend_ring_page_order: status.offer.map(|offer| offer.ring_order),
        indirect_segments: status.offer.map(|offer| offer.indirect_segments),
        persistent_grants: status.offer.map(|offer| offer.persistent),
        trusted: status.trusted,
    };
    attached.disk.close();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let yes = |what: bool| if what { "yes" } else { "no" };
    let or_none = |what: Option<u32>| what.map_or("none".to_owned(), |what| what.to_string());
    println!("disk                {}", report.name);
    println!("size                {} ({} bytes)", Size(report.size), report.size);
    println!(
        "sector size         {} (physical {})",
        report.sector_size, report.physical_sector_size
    );
    println!("read-only           {}", yes(report.read_only));
    println!("flush               {}", yes(report.flush));
    match &report.discard {
        Some(discard) => println!(
            "discard             in units of {}{}",
            Size(discard.granularity.into()),
            if discard.secure { ", also secure" } else { "" }
        ),
        None => println!("discard             no"),
    }
    println!(
        "backend             domain {}{}",
        or_none(report.backend.map(u32::from)),
        if report.trusted { "" } else { ", not to be trusted" }
    );
    println!(
        "queues              {} (the backend offers {})",
        report.queues,
        or_none(report.backend_queues)
    );
    println!("requests on a ring  {}", report.ring_slots);
    println!("indirect segments   {}", or_none(report.indirect_segments));
    println!("persistent grants   {}", yes(report.persistent_grants == Some(true)));
    Ok(())
}
