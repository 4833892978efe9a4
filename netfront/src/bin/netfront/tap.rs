//! `netfront tap`.

use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use hypervisor::host::Domain;
use netfront::Ending;
use netfront::host::{Namespace, Pump, Pumped, Tap};

use crate::args::{self, Args};
use crate::attach::{Joined, Shown, attach};

pub(crate) fn run<D: Domain>(
    args: &Args,
    options: &args::Tap,
    joined: Joined<D>,
) -> anyhow::Result<()> {
    let namespace = match (&options.netns, options.pid) {
        (Some(name), _) => Namespace::Named(name.clone()),
        (None, Some(process)) => Namespace::Of(process),
        (None, None) => Namespace::Own,
    };
    let attached = attach(args, joined)?;
    let interface = &attached.interface;
    let queues = interface.status().queues;
    let tap = Tap::open(&options.name, &namespace, queues).with_context(|| {
        format!("make a TAP called {} (--name has another called otherwise)", options.name)
    })?;
    let mtu = options.mtu.unwrap_or(attached.info.mtu);
    tap.set_up(attached.info.mac, mtu)?;
    let place = match &namespace {
        Namespace::Named(name) => format!(" in namespace {name}"),
        Namespace::Of(process) => format!(" in the namespace of process {process}"),
        _ => String::new(),
    };
    let mac = attached.info.mac.map_or_else(String::new, |mac| format!(", {}", Shown(mac)));
    eprintln!(
        "netfront: interface {} is {}{place}{mac}, MTU {mtu}, {queues} queue{}",
        attached.number,
        tap.name(),
        if queues == 1 { "" } else { "s" }
    );
    let pumped = pump(&attached, &Arc::new(tap), queues)?;
    let (counters, ending) = (interface.counters(), interface.status().ending);
    attached.interface.close();
    eprintln!(
        "netfront: {} packets sent, {} received; {} could not be passed on",
        counters.sent,
        counters.received,
        pumped.unsent.saturating_add(pumped.undelivered).saturating_add(counters.unusable)
    );
    match ending {
        None | Some(Ending::Closed) => Ok(()),
        Some(ending) => bail!("{ending}"),
    }
}

/// One thread for each queue, until the end.
fn pump<D: Domain>(
    attached: &crate::attach::Attached<D>,
    tap: &Arc<Tap>,
    queues: usize,
) -> anyhow::Result<Pumped> {
    let stop = &attached.stop;
    let mut pumps = Vec::with_capacity(queues);
    for _ in 0..queues {
        let queue = attached.interface.queue().ok_or_else(|| anyhow!("a queue is missing"))?;
        pumps.push(Pump::new(queue, tap).ok_or_else(|| anyhow!("the TAP has no such queue"))?);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = pumps
            .into_iter()
            .map(|mut pump| {
                scope.spawn(move || {
                    let ended = pump.run(stop);
                    // Where one cannot go on, none does.
                    stop.now();
                    ended.map(|()| pump.pumped())
                })
            })
            .collect();
        let mut all = Pumped::default();
        for thread in threads {
            let pumped = thread.join().map_err(|_| anyhow!("a queue's thread panicked"))??;
            all.unsent = all.unsent.saturating_add(pumped.unsent);
            all.undelivered = all.undelivered.saturating_add(pumped.undelivered);
        }
        Ok(all)
    })
}
