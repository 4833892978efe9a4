//! The names of the keys by which the two ends of a device find each other and agree, with who
//! writes them, what their values may be, and what it means where there is none.
//!
//! This is data: reading, range checks included, is for whoever negotiates. A peer's keys hold
//! anything at all until then.
//!
//! Source: io/netif.h (RELEASE-4.17) and `docs/misc/xenstore-paths.pandoc` beside it; for the rest
//! what Linux's xen-netback and xen-netfront are seen to read and write (v6.1).

/// Who writes a key, and so in whose directory it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Writer {
    /// The backend, into its own directory.
    Backend,
    /// The frontend, into its own directory.
    Frontend,
    /// Each end, into its own directory: what it is able to receive.
    Both,
    /// The frontend, beside the device's other keys where there is one queue, and into `queue-N`
    /// where there are more.
    Queue,
    /// The toolstack, into the backend's directory.
    ToolstackForBackend,
    /// The toolstack, into the frontend's directory.
    ToolstackForFrontend,
    /// The hotplug script, into the backend's directory.
    Script,
}

/// What a value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    /// `0` or `1`.
    Flag {
        /// What it means that the key is not there.
        absent: bool,
    },
    /// A decimal number.
    Number {
        /// The least.
        least: u64,
        /// The most.
        most: u64,
        /// What it means that the key is not there; `None` where it must be there.
        absent: Option<u64>,
    },
    /// Text.
    Text,
}

/// A key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Who writes it.
    pub writer: Writer,
    /// What it holds.
    pub value: Value,
    /// What it says.
    pub meaning: &'static str,
}

/// `XEN_NETIF_MAX_XDP_HEADROOM`, in bytes.
pub const MAX_XDP_HEADROOM: u64 = 0x7FFF;

/// The most that IP can say of a packet's length.
const MAX_MTU: u64 = 65_535;

const NO: Value = Value::Flag { absent: false };
const YES: Value = Value::Flag { absent: true };
const TEXT: Value = Value::Text;
/// A grant reference or an event channel.
const REFERENCE: Value = Value::Number { least: 0, most: u32::MAX as u64, absent: None };

macro_rules! keys {
    ($($constant:ident = $name:literal, $writer:ident, $value:expr, $meaning:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $meaning, ".")]
            pub const $constant: Key =
                Key { name: $name, writer: Writer::$writer, value: $value, meaning: $meaning };
        )*

        /// Every key of the network protocol.
        pub const ALL: &[Key] = &[$($constant),*];
    };
}

keys! {
    FEATURE_SG = "feature-sg", Both, NO, "takes packets of more than one slot";
    FEATURE_GSO_TCPV4 = "feature-gso-tcpv4", Both, NO, "takes large TCP packets over IPv4";
    FEATURE_GSO_TCPV6 = "feature-gso-tcpv6", Both, NO, "takes large TCP packets over IPv6";
    FEATURE_GSO_TCPV4_PREFIX = "feature-gso-tcpv4-prefix", Frontend, NO,
        "takes large TCP packets over IPv4 behind a prefix slot; deprecated";
    FEATURE_GSO_TCPV6_PREFIX = "feature-gso-tcpv6-prefix", Frontend, NO,
        "takes large TCP packets over IPv6 behind a prefix slot; deprecated";
    FEATURE_NO_CSUM_OFFLOAD = "feature-no-csum-offload", Both, NO,
        "does not take IPv4 packets with a blank checksum";
    FEATURE_IPV6_CSUM_OFFLOAD = "feature-ipv6-csum-offload", Both, NO,
        "takes IPv6 packets with a blank checksum";
    FEATURE_RX_COPY = "feature-rx-copy", Backend, NO, "copies into the frontend's pages";
    FEATURE_RX_FLIP = "feature-rx-flip", Backend, YES,
        "gives pages instead of copying; nobody does any more";
    REQUEST_RX_COPY = "request-rx-copy", Frontend, NO, "wants to be copied to; required";
    FEATURE_RX_NOTIFY = "feature-rx-notify", Frontend, NO,
        "tells when it posts pages, so that packets may wait for them";
    FEATURE_MULTICAST_CONTROL = "feature-multicast-control", Backend, NO,
        "can keep multicast packets from the frontend";
    FEATURE_DYNAMIC_MULTICAST_CONTROL = "feature-dynamic-multicast-control", Backend, NO,
        "watches whether it shall, while connected";
    REQUEST_MULTICAST_CONTROL = "request-multicast-control", Frontend, NO,
        "wants only the multicast packets that it lists";
    FEATURE_SPLIT_EVENT_CHANNELS = "feature-split-event-channels", Backend, NO,
        "takes an event channel for each of Tx and Rx";
    MULTI_QUEUE_MAX_QUEUES = "multi-queue-max-queues", Backend,
        Value::Number { least: 1, most: 65_535, absent: Some(1) }, "takes up to so many queues";
    MULTI_QUEUE_NUM_QUEUES = "multi-queue-num-queues", Frontend,
        Value::Number { least: 1, most: 65_535, absent: Some(1) }, "has so many queues";
    TX_RING_REF = "tx-ring-ref", Queue, REFERENCE, "the transmit ring's page";
    RX_RING_REF = "rx-ring-ref", Queue, REFERENCE, "the receive ring's page";
    EVENT_CHANNEL = "event-channel", Queue, REFERENCE, "the event channel of both rings";
    EVENT_CHANNEL_TX = "event-channel-tx", Queue, REFERENCE, "the transmit ring's event channel";
    EVENT_CHANNEL_RX = "event-channel-rx", Queue, REFERENCE, "the receive ring's event channel";
    FEATURE_CTRL_RING = "feature-ctrl-ring", Backend, NO, "takes a control ring";
    CTRL_RING_REF = "ctrl-ring-ref", Frontend, REFERENCE, "the control ring's page";
    EVENT_CHANNEL_CTRL = "event-channel-ctrl", Frontend, REFERENCE,
        "the control ring's event channel";
    FEATURE_XDP_HEADROOM = "feature-xdp-headroom", Backend, NO,
        "can leave bytes free in front of packets";
    XDP_HEADROOM = "xdp-headroom", Frontend,
        Value::Number { least: 0, most: MAX_XDP_HEADROOM, absent: Some(0) },
        "wants so many bytes free in front of packets";
    CARRIER = "carrier", Backend, YES, "whether the link is up";
    MTU = "mtu", ToolstackForFrontend,
        Value::Number { least: 68, most: MAX_MTU, absent: Some(1500) },
        "the largest payload of a packet";
    TRUSTED = "trusted", ToolstackForFrontend, YES, "whether the frontend may trust its backend";
    MAC = "mac", ToolstackForFrontend, TEXT,
        "the guest's address, six hexadecimal bytes with colons; also in the backend's directory";
    HANDLE = "handle", ToolstackForBackend, REFERENCE, "the device's number";
    RATE = "rate", ToolstackForBackend, TEXT,
        "`bytes,microseconds`: the guest sends at most so much in so long a time";
    SCRIPT = "script", ToolstackForBackend, TEXT, "the hotplug script";
    BRIDGE = "bridge", ToolstackForBackend, TEXT, "the bridge for the script";
    HOTPLUG_STATUS = "hotplug-status", Script, TEXT,
        "`connected` once the interface is where it belongs, `error` where that failed";
}
