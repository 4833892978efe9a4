//! `netfront info`.

use hypervisor::host::Domain;
use netfront::Offloads;
use serde::Serialize;

use crate::args::{Args, Info};
use crate::attach::{Joined, Shown, attach};

#[derive(Serialize)]
struct Report {
    interface: u32,
    domain: u16,
    backend: Option<u16>,
    mac: Option<String>,
    mtu: u32,
    carrier: bool,
    queues: usize,
    trusted: bool,
    offer: Option<Offer>,
}

#[derive(Serialize)]
struct Offer {
    queues: u32,
    sg: bool,
    checksum_v4: bool,
    checksum_v6: bool,
    gso_tcpv4: bool,
    gso_tcpv6: bool,
    split_event_channels: bool,
    multicast_control: bool,
    control_ring: bool,
    xdp_headroom: bool,
}

impl Offer {
    fn new(offer: &netfront::Offer) -> Self {
        let Offloads { sg, checksum_v4, checksum_v6, gso_tcpv4, gso_tcpv6, .. } = offer.offloads;
        Self {
            queues: offer.queues,
            sg,
            checksum_v4,
            checksum_v6,
            gso_tcpv4,
            gso_tcpv6,
            split_event_channels: offer.split_channels,
            multicast_control: offer.multicast_control,
            control_ring: offer.control_ring,
            xdp_headroom: offer.headroom,
        }
    }
}

pub(crate) fn run<D: Domain>(args: &Args, options: &Info, joined: Joined<D>) -> anyhow::Result<()> {
    let attached = attach(args, joined)?;
    let (info, status) = (&attached.info, attached.interface.status());
    let report = Report {
        interface: attached.number,
        domain: attached.domain.id().get(),
        backend: status.backend.map(hypervisor::DomId::get),
        mac: info.mac.map(|mac| Shown(mac).to_string()),
        mtu: info.mtu,
        carrier: info.carrier,
        queues: status.queues,
        trusted: status.trusted,
        offer: status.offer.as_ref().map(Offer::new),
    };
    attached.interface.close();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let yes = |what: bool| if what { "yes" } else { "no" };
    let both = |v4: bool, v6: bool| match (v4, v6) {
        (true, true) => "IPv4, IPv6",
        (true, false) => "IPv4",
        (false, true) => "IPv6",
        (false, false) => "no",
    };
    let backend = report.backend.map_or("none".to_owned(), |backend| backend.to_string());
    println!("interface           {}", report.interface);
    println!("address             {}", report.mac.as_deref().unwrap_or("none"));
    println!("MTU                 {}", report.mtu);
    println!("carrier             {}", yes(report.carrier));
    println!(
        "backend             domain {backend}{}",
        if report.trusted { "" } else { ", not to be trusted" }
    );
    let Some(offer) = &report.offer else { return Ok(()) };
    println!("queues              {} (the backend offers {})", report.queues, offer.queues);
    println!("packets over a page {}", yes(offer.sg));
    println!("blank checksums     {}", both(offer.checksum_v4, offer.checksum_v6));
    println!("large TCP packets   {}", both(offer.gso_tcpv4, offer.gso_tcpv6));
    println!("split channels      {}", yes(offer.split_event_channels));
    println!("multicast control   {}", yes(offer.multicast_control));
    println!("control ring        {}", yes(offer.control_ring));
    println!("XDP headroom        {}", yes(offer.xdp_headroom));
    Ok(())
}
