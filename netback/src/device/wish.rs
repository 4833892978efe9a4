//! What is to be served at a device that a toolstack made.
//!
//! libxl writes, in the backend's directory, `mac`, `mtu`, `bridge`, `rate`, `script`, `ip` (the guest's
//! addresses, where its configuration has any) and `vifname` (what the host's interface is to be called). Its
//! script finds the interface as `vifDOMID.DEVID`, renames it and puts it where it belongs; where there
//! is none, that is done here.
//!
//! Before: `hypervisor::backend::adopt`. After: the uplink. Trust: these keys are the toolstack's, and
//! what is wrong with them is a [`ConfigError`] for whoever wrote the guest's configuration; of the
//! frontend nothing is read here. Source: `libxl_nic.c` (`libxl__set_xenstore_nic`),
//! `tools/hotplug/Linux/vif-common.sh`, RELEASE-4.17.

use std::net::IpAddr;

use hypervisor::backend::{Adopted, Hotplug};
use hypervisor::store::Store;
use hypervisor::{ConfigError, Error};
use ring::wire::netif::keys;

use crate::device::mac::Shown;
use crate::filter::Mac;
use crate::port::interface::Name;

/// What is to be served at a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wish {
    /// The guest's address.
    pub mac: Mac,
    /// The largest payload of a packet, where it is said.
    pub mtu: Option<u16>,
    /// What the host's interface is called, where not after guest and device: what was asked for, once
    /// whoever sees to that has done so.
    pub name: Option<Name>,
    /// The bridge, where it is for us to put the interface on it.
    pub bridge: Option<Name>,
    /// The IP addresses that the guest may use, where they are said.
    pub addresses: Option<Vec<IpAddr>>,
}

impl Wish {
    /// What is to be served at `device`.
    ///
    /// # Errors
    ///
    /// What the toolstack wrote cannot be served, or the store is gone.
    pub fn read<S>(store: &S, device: &Adopted) -> Result<Self, Error>
    where
        S: Store + ?Sized,
    {
        let read = |key: &str| Ok::<_, Error>(device.text(store, key)?.filter(|t| !t.is_empty()));
        let at = |key: &str| format!("{}/{key}", device.pair.back.directory);
        let refuse = |key: &str, value: &str, why: &'static str| {
            Error::from(ConfigError::new(at(key), value, why))
        };
        let name = |key: &str| match read(key)? {
            Some(text) => match Name::new(&text) {
                Ok(name) => Ok(Some(name)),
                Err(error) => Err(ConfigError::new(at(key), text, error.problem).into()),
            },
            None => Ok::<_, Error>(None),
        };
        let Some(mac) = read(keys::MAC.name)? else {
            return Err(refuse(keys::MAC.name, "", "is not there; every interface has an address"));
        };
        let mac = mac.parse::<Shown>().map_err(|error| {
            Error::from(ConfigError::new(at(keys::MAC.name), mac, error.problem))
        })?;
        let mtu = match read(keys::MTU.name)? {
            Some(text) => match text.parse() {
                Ok(mtu) if mtu >= 68 => Some(mtu),
                _ => return Err(refuse(keys::MTU.name, &text, "must be from 68 to 65535")),
            },
            None => None,
        };
        let bridge = match device.hotplug {
            Hotplug::None => name(keys::BRIDGE.name)?,
            Hotplug::Ours | Hotplug::Foreign => None,
        };
        let addresses = match read("ip")? {
            Some(text) => {
                let all: Result<Vec<IpAddr>, _> = text.split_whitespace().map(str::parse).collect();
                // To let through what cannot be checked is worse than to serve nothing.
                let why = "must be IPv4 or IPv6 addresses; networks are not taken";
                Some(all.map_err(|_| refuse("ip", &text, why))?)
            }
            None => None,
        };
        let called = name("vifname")?;
        // Stock scripts rename what they find under the usual name, and refuse what has the other one.
        let name = match device.hotplug {
            Hotplug::Foreign if Hotplug::is_awaited(&read("hotplug-status")?) => None,
            _ => called,
        };
        Ok(Self { mac: mac.0, mtu, name, bridge, addresses })
    }
}
