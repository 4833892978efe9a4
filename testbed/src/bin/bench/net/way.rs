//! The ways that lead from a guest's namespace to the bridge of its host.

use anyhow::Result;
use testbed::network::{Namespace, v4};
use testbed::scene::{Process, Scene};

const BRIDGE: &str = "br0";

/// A guest whose `eth0` leads to a bridge. The host's address ends in 1, the guest's in 2.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) host: Namespace,
    pub(crate) guest: Namespace,
    made: Made,
    /// Serves iperf3 on the host.
    server: Process,
}

/// What a way is made of.
#[derive(Default)]
struct Made {
    /// Frontend and backend, in the order in which they are to end.
    pair: Vec<Process>,
    /// What has no end of its own.
    _forward: Option<Process>,
}

/// All of them; the first is what the others are compared with.
pub(crate) fn all(scene: &Scene) -> Result<Vec<Way>> {
    let forward = |name, headers: &'static [&str]| {
        Way::new(scene, name, |host, guest| {
            let arguments = [headers, &[guest.name(), "eth0", host.name(), "tap0"]].concat();
            let mut forward = scene.start("testbed", "forward", arguments)?;
            forward.line_with("ready")?;
            host.ip(["link", "set", "tap0", "master", BRIDGE, "up"])?;
            guest.ip(["link", "set", "eth0", "up"])?;
            Ok(Made { _forward: Some(forward), ..Made::default() })
        })
    };
    Ok(vec![
        Way::new(scene, "veth", |host, guest| {
            let ends = ["link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns"];
            host.ip(ends.into_iter().chain([guest.name()]))?;
            host.ip(["link", "set", "veth0", "master", BRIDGE, "up"])?;
            guest.ip(["link", "set", "eth0", "up"])?;
            Ok(Made::default())
        })?,
        Way::new(scene, "netfront and netback", |host, guest| {
            let mut netback = host.start(scene, "netback", ["--bridge", BRIDGE])?;
            netback.line_with("ready")?;
            let mut netfront =
                scene.start("netfront", "netfront", ["tap", "--netns", guest.name()])?;
            netfront.line_with("is eth0")?;
            Ok(Made { pair: vec![netfront, netback], ..Made::default() })
        })?,
        forward("two TAPs, with headers", &[])?,
        forward("two TAPs, without", &["--plain"])?,
    ])
}

impl Way {
    fn new(
        scene: &Scene,
        name: &'static str,
        join: impl FnOnce(&Namespace, &Namespace) -> Result<Made>,
    ) -> Result<Self> {
        let (host, guest) = (Namespace::new()?, Namespace::new()?);
        host.bridge(BRIDGE)?;
        host.address(BRIDGE, 1)?;
        let made = join(&host, &guest)?;
        guest.until_up("eth0")?;
        guest.address("eth0", 2)?;
        guest.until_answered(&v4(1), 1472)?;
        let server = host.iperf3_server(scene)?;
        Ok(Self { name, host, guest, made, server })
    }

    /// Ends it in order.
    pub(crate) fn end(self) -> Result<()> {
        drop(self.server);
        self.made.pair.into_iter().try_for_each(|process| process.end().map(drop))
    }
}
