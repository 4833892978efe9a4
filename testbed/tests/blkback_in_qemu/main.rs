//! blkback over vhost-user: a stock kernel's virtio driver in QEMU, and QEMU's own end of the protocol.

mod served;

mod boot;
mod change;
mod kill;
mod use_it;
