//! What is asked of the kernel about a network interface, by name.
//!
//! Source: `netdevice(7)`, `packet(7)`; `linux/if_tun.h`, `linux/sockios.h`, `linux/if_packet.h`.
#![expect(unsafe_code, reason = "the kernel reads and writes structures by address")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};

use hypervisor::HostError;
use nix::errno::Errno;

use crate::filter::Mac;

/// Bytes of a name, with its end.
const NAME: usize = 16;

/// `SIOCBRADDIF` (linux/sockios.h).
const SIOCBRADDIF: libc::Ioctl = 0x89A2;
/// `PACKET_VNET_HDR` (linux/if_packet.h).
const PACKET_VNET_HDR: libc::c_int = 15;
/// `PACKET_IGNORE_OUTGOING` (linux/if_packet.h).
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// `PACKET_MR_PROMISC` (linux/if_packet.h).
const PACKET_MR_PROMISC: u16 = 1;

/// Where a filter finds whether a packet came with a VLAN tag (linux/filter.h).
const VLAN_TAG_PRESENT: u32 = libc::SKF_AD_OFF.wrapping_add(libc::SKF_AD_VLAN_TAG_PRESENT) as u32;

/// Bytes that a packet socket may hold each way: some dozens of the largest packets with what the
/// kernel keeps beside them, where it has room for three by default.
const SOCKET_BUFFER: libc::c_int = 8 << 20;

/// An interface's name, which can be one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name([u8; NAME]);

impl Name {
    /// The interface called that, if anything may be.
    ///
    /// # Errors
    ///
    /// No interface can have this name.
    pub fn new(name: &str) -> Result<Self, hypervisor::ConfigError> {
        let wrong = || {
            let problem = "an interface's name has 1 to 15 printable characters, no '/', no '%'";
            hypervisor::ConfigError::new("interface", name, problem)
        };
        let fits = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
        let mut bytes = [0; NAME];
        if name.is_empty() || name == "." || name == ".." || !name.bytes().all(fits) {
            return Err(wrong());
        }
        let room = bytes.get_mut(..name.len()).filter(|room| room.len() < NAME);
        room.ok_or_else(wrong)?.copy_from_slice(name.as_bytes());
        Ok(Self(bytes))
    }

    /// Of interfaces that the kernel is to number: the next one's that is free.
    #[must_use]
    pub fn numbered() -> Self {
        let mut bytes = [0; NAME];
        for (room, byte) in bytes.iter_mut().zip(b"vnet%d") {
            *room = *byte;
        }
        Self(bytes)
    }

    /// Sees to it that there is such an interface, which `option` asked for.
    ///
    /// # Errors
    ///
    /// There is none, or the kernel does not say.
    pub fn demand(&self, option: &'static str) -> Result<(), hypervisor::Error> {
        match index(self) {
            Ok(_) => Ok(()),
            Err(error) if error.errno == libc::ENODEV => {
                let problem = "there is no such interface here; ip link shows those that there are";
                Err(hypervisor::ConfigError::new(option, self, problem).into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl std::str::FromStr for Name {
    type Err = hypervisor::ConfigError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        f.write_str(std::str::from_utf8(bytes).unwrap_or_default())
    }
}

/// `struct ifreq` (linux/if.h): a name, and what the request is about.
#[repr(C)]
struct Request {
    name: [u8; NAME],
    value: [u8; 24],
}

impl Request {
    fn of(name: &Name, value: &[u8]) -> Self {
        let mut request = Self { name: name.0, value: [0; 24] };
        for (room, byte) in request.value.iter_mut().zip(value) {
            *room = *byte;
        }
        request
    }

    fn int(&self) -> i32 {
        let [a, b, c, d, ..] = self.value;
        i32::from_ne_bytes([a, b, c, d])
    }
}

fn ask(file: BorrowedFd<'_>, number: libc::Ioctl, request: &mut Request) -> Result<(), Errno> {
    // SAFETY: every request that is used here takes a `struct ifreq`, which `Request` is as long as,
    // and keeps nothing of it.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), number, request) }).map(drop)
}

/// Sets what is about an open file, as a number that the kernel reads.
fn set(file: BorrowedFd<'_>, number: libc::Ioctl, mut value: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the requests used with this read one `int`, and keep nothing of it.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), number, &raw mut value) }).map(drop)
}

fn failed<'a>(doing: &'a str, name: &'a Name) -> impl FnOnce(Errno) -> HostError + use<'a> {
    move |errno| HostError::new(format!("{doing} {name}"), errno as i32)
}

/// Sends a packet, with a whole header in front of it, as whoever uses the TAP.
pub(super) fn send(tap: BorrowedFd<'_>, name: &Name, packet: &[u8]) -> Result<(), HostError> {
    nix::unistd::write(tap, packet).map(drop).map_err(failed("send a packet by", name))
}

/// One more queue of the TAP of that name, which is made where it is not there. Packets have whole
/// headers, in little-endian.
pub(super) fn attach_tap(name: &Name) -> Result<OwnedFd, HostError> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|error| HostError::from_io("open /dev/net/tun", &error))?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let mut request = Request::of(name, &(flags as u16).to_ne_bytes());
    ask(file.as_fd(), libc::TUNSETIFF, &mut request).map_err(failed("attach to TAP", name))?;
    let size = crate::vnet::Header::SIZE as libc::c_int;
    set(file.as_fd(), libc::TUNSETVNETHDRSZ, size).map_err(failed("set up headers of", name))?;
    set(file.as_fd(), libc::TUNSETVNETLE, 1).map_err(failed("set up headers of", name))?;
    Ok(file.into())
}

/// What a TAP is called now: somebody may have given it another name.
pub(super) fn name_of(tap: BorrowedFd<'_>) -> Result<Name, Errno> {
    let mut request = Request { name: [0; NAME], value: [0; 24] };
    ask(tap, libc::TUNGETIFF, &mut request)?;
    Ok(Name(request.name))
}

/// Says which offloads whoever reads from a TAP takes (`TUN_F_*`).
pub(super) fn set_offloads(tap: BorrowedFd<'_>, name: &Name, flags: u32) -> Result<(), HostError> {
    // SAFETY: the argument of this request is the number itself.
    let asked =
        unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    Errno::result(asked).map(drop).map_err(failed("set offloads of", name))
}

/// Says whether a TAP stays when its last queue is closed.
pub(super) fn set_persistent(tap: BorrowedFd<'_>, name: &Name, on: bool) -> Result<(), HostError> {
    // SAFETY: the argument of this request is the number itself.
    let asked =
        unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(on)) };
    Errno::result(asked).map(drop).map_err(failed("say how long to keep", name))
}

/// Says whether a TAP's link is up.
pub(super) fn set_carrier(tap: BorrowedFd<'_>, name: &Name, up: bool) -> Result<(), HostError> {
    let asked = set(tap, libc::TUNSETCARRIER, i32::from(up));
    asked.map_err(failed("set the carrier of", name))
}

/// What interfaces are asked about by.
fn inquiry() -> Result<OwnedFd, HostError> {
    // SAFETY: takes no memory.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    owned(socket).map_err(|errno| HostError::new("open a socket", errno as i32))
}

fn owned(descriptor: libc::c_int) -> Result<OwnedFd, Errno> {
    let descriptor = Errno::result(descriptor)?;
    // SAFETY: it was opened just now and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// An interface's number.
pub(super) fn index(name: &Name) -> Result<i32, HostError> {
    let mut request = Request::of(name, &[]);
    let number = libc::SIOCGIFINDEX as libc::Ioctl;
    ask(inquiry()?.as_fd(), number, &mut request).map_err(failed("find interface", name))?;
    Ok(request.int())
}

/// Gives an interface an Ethernet address.
pub(super) fn set_mac(name: &Name, mac: Mac) -> Result<(), HostError> {
    let [low, high] = libc::ARPHRD_ETHER.to_ne_bytes();
    let [a, b, c, d, e, f] = mac;
    let mut request = Request::of(name, &[low, high, a, b, c, d, e, f]);
    let number = libc::SIOCSIFHWADDR as libc::Ioctl;
    ask(inquiry()?.as_fd(), number, &mut request).map_err(failed("set the address of", name))
}

/// Sets the largest payload of an interface's packets, in bytes.
pub(super) fn set_mtu(name: &Name, mtu: u16) -> Result<(), HostError> {
    let mut request = Request::of(name, &i32::from(mtu).to_ne_bytes());
    let number = libc::SIOCSIFMTU as libc::Ioctl;
    ask(inquiry()?.as_fd(), number, &mut request).map_err(failed("set the MTU of", name))
}

/// Brings an interface up.
pub(super) fn bring_up(name: &Name) -> Result<(), HostError> {
    let inquiry = inquiry()?;
    let mut request = Request::of(name, &[]);
    let doing = || failed("bring up", name);
    ask(inquiry.as_fd(), libc::SIOCGIFFLAGS as libc::Ioctl, &mut request).map_err(doing())?;
    let flags = request.int() as u16 | libc::IFF_UP as u16;
    let mut request = Request::of(name, &flags.to_ne_bytes());
    ask(inquiry.as_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &mut request).map_err(doing())
}

/// Puts an interface on a bridge. That it is there already is no error.
pub(super) fn join_bridge(name: &Name, bridge: &Name) -> Result<(), HostError> {
    let mut request = Request::of(bridge, &index(name)?.to_ne_bytes());
    match ask(inquiry()?.as_fd(), SIOCBRADDIF, &mut request) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => {
            let doing = format!("put {name} on bridge {bridge}");
            Err(HostError::new(doing, errno as i32))
        }
    }
}

/// Sets an option of a socket.
fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &[u8],
) -> Result<(), Errno> {
    let len = libc::socklen_t::try_from(value.len()).unwrap_or(0);
    let address = value.as_ptr().cast();
    // SAFETY: the kernel reads `len` bytes there, which `value` has, and keeps no address.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, address, len) };
    Errno::result(set).map(drop)
}

/// Gives a socket room for many packets: as much as asked for where we may, else what anybody may have.
fn widen(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let much = SOCKET_BUFFER.to_ne_bytes();
    for (by_force, by_right) in
        [(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)]
    {
        if set_option(socket, libc::SOL_SOCKET, by_force, &much).is_err() {
            set_option(socket, libc::SOL_SOCKET, by_right, &much)?;
        }
    }
    Ok(())
}

/// Keeps packets with a VLAN tag away from a packet socket. The kernel takes the tag out before the
/// socket has them, and without it another network's look like this one's.
fn refuse_tagged(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, VLAN_TAG_PRESENT),
        // Where there is none, all of the packet; else nothing of it.
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let len = size_of_val(&filter) as libc::socklen_t;
    let address = (&raw const filter).cast();
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: the kernel reads `len` bytes there and the program that they point at, both of which
    // live until it has, and keeps a copy of its own.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, address, len) };
    Errno::result(set).map(drop)
}

/// A packet socket of an interface, for all that it receives without a VLAN tag and nothing that it
/// sends. For as long as the socket is open, it receives what is for others' addresses, too. Packets
/// have short headers.
pub(super) fn packet_socket(name: &Name) -> Result<OwnedFd, HostError> {
    let index = index(name)?;
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // No packets before it is bound: of a protocol that there is not.
    // SAFETY: takes no memory.
    let socket = owned(unsafe { libc::socket(libc::AF_PACKET, kind, 0) });
    let socket = socket.map_err(failed("open a packet socket for", name))?;
    let fd = socket.as_fd();
    for option in [PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING] {
        set_option(fd, libc::SOL_PACKET, option, &1_i32.to_ne_bytes())
            .map_err(failed("set up a packet socket for", name))?;
    }
    refuse_tagged(fd).map_err(failed("keep VLANs away from a packet socket for", name))?;
    widen(fd).map_err(failed("make room in a packet socket for", name))?;
    // `struct packet_mreq`: which interface, what, and no address.
    let [a, b, c, d] = index.to_ne_bytes();
    let [e, f] = PACKET_MR_PROMISC.to_ne_bytes();
    let all = [a, b, c, d, e, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_option(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &all)
        .map_err(failed("have all packets received by", name))?;
    let mut to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&to) as libc::socklen_t;
    let address = (&raw mut to).cast();
    // SAFETY: the kernel reads `len` bytes there.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), address, len) };
    Errno::result(bound).map_err(failed("bind a packet socket to", name))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<Request>(), size_of::<libc::ifreq>());
    }

    #[test]
    fn names_are_such_as_interfaces_can_have() {
        for name in ["vif12.0", "a", "fifteen-letters"] {
            assert_eq!(Name::new(name).unwrap().to_string(), name);
        }
        for name in ["", ".", "..", "a/b", "a b", "vif%d", "sixteen-letters-", "ä"] {
            assert!(Name::new(name).is_err(), "{name}");
        }
    }
}
