//! What Dom0 and its guests are made of.

/// Packages of Dom0's root image, beside Xen's own. Those they depend on come along.
pub(super) const PACKAGES: [&str; 29] = [
    "xenstore-utils",
    "linux-image-amd64",
    "qemu-system-xen",
    "fio",
    "iperf3",
    "kmod",
    "e2fsprogs",
    "util-linux",
    "mount",
    "hostname",
    "bash",
    "coreutils",
    "diffutils",
    "grep",
    "sed",
    "gawk",
    "findutils",
    "tar",
    "gzip",
    "busybox-static",
    "iproute2",
    "bridge-utils",
    "iputils-ping",
    "ethtool",
    "tcpdump",
    "base-files",
    "procps",
    "strace",
    "psmisc",
];

/// What Dom0's initramfs loads to find its root image and the shared folder.
pub(super) const DOM0_MODULES: [&str; 6] =
    ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "9pnet_virtio", "9p"];

/// What a guest's initramfs loads.
pub(super) const GUEST_MODULES: [&str; 7] = [
    "xen_blkfront",
    "xen_netfront",
    "crc32c_generic",
    "ext4",
    "xen_evtchn",
    "xen_gntdev",
    "xen_gntalloc",
];

/// What else lies in a guest's /modules, for `insmod`.
pub(super) const GUEST_SPARE_MODULES: [&str; 4] = ["loop", "nbd", "tun", "8021q"];

/// The guest's programs, with the libraries that they load. All else is busybox's.
pub(super) const GUEST_PROGRAMS: [&str; 24] = [
    "bash",
    "fio",
    "mke2fs",
    "e2fsck",
    "lsblk",
    "blkid",
    "blkdiscard",
    "blockdev",
    "fstrim",
    "mount",
    "umount",
    "dmesg",
    "stty",
    "base64",
    "cksum",
    "dd",
    "cmp",
    "resize2fs",
    "tar",
    "kmod",
    "ip",
    "ping",
    "iperf3",
    "ethtool",
];
