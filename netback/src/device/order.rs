//! The keys of an interface that we make ourselves, as libxl writes them for those it makes.
//!
//! Source: `libxl_nic.c` (`libxl__set_xenstore_nic`), RELEASE-4.17.

use hypervisor::backend::Order;
use ring::wire::netif::keys;

use crate::credit::Rate;
use crate::device::mac::Shown;
use crate::filter::Mac;
use crate::port::interface::Name;

/// Interface `number` with the address `mac`, served by a backend of kind `backend`: `vif`, or another
/// where `vif` is the kernel's.
#[must_use]
pub fn vif(
    backend: &'static str,
    number: u32,
    mac: Mac,
    mtu: Option<u16>,
    rate: Option<Rate>,
    bridge: Option<&Name>,
) -> Order {
    let mac = Shown(mac).to_string();
    let both = [(keys::HANDLE.name, number.to_string()), (keys::MAC.name, mac)];
    let (mut front, mut back) = (both.to_vec(), both.to_vec());
    if let Some(mtu) = mtu {
        front.push((keys::MTU.name, mtu.to_string()));
        back.push((keys::MTU.name, mtu.to_string()));
    }
    if let Some(rate) = rate {
        back.push((keys::RATE.name, rate.to_string()));
    }
    if let Some(bridge) = bridge {
        back.push((keys::BRIDGE.name, bridge.to_string()));
    }
    Order { backend, number, front, back }
}
