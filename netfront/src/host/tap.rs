//! A TAP: an interface of the host's, or of a network namespace's, whose packets are ours to take and
//! to give.
//!
//! It has one queue for each of the device's; packets cross it in one piece of up to 64 KiB, with headers
//! that say what is left to do ([`vnet`]). What the backend does not do is done by the
//! kernel, which is told so.
//!
//! An interface belongs to the namespace that it was made in, and is asked about from there, so a thread
//! of its own enters the namespace for each such matter. Its open queues work from anywhere.
//!
//! Needs `CAP_NET_ADMIN`, and `CAP_SYS_ADMIN` for a namespace. The TAP goes when its last queue is closed.
//! Source: `Documentation/networking/tuntap.rst`, `linux/if_tun.h`; `netdevice(7)`, `setns(2)`.
#![expect(unsafe_code, reason = "the kernel reads and writes structures by address")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use hypervisor::{ConfigError, Error, HostError};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::vnet;
use crate::negotiate::{NetInfo, Offloads};

/// Bytes of an interface's name, with its end.
const NAME: usize = 16;

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Namespace {
    /// That of this process.
    Own,
    /// One with a name, as `ip netns` gives it.
    Named(String),
    /// That of a process.
    Of(u32),
}

impl Namespace {
    fn open(&self) -> Result<Option<File>, Error> {
        let path = match self {
            Self::Own => return Ok(None),
            Self::Named(name) if name.contains('/') => {
                return Err(ConfigError::new("namespace", name, "is no name").into());
            }
            Self::Named(name) => PathBuf::from("/run/netns").join(name),
            Self::Of(process) => PathBuf::from(format!("/proc/{process}/ns/net")),
        };
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) => {
                let doing = format!("open the network namespace {}", path.display());
                Err(HostError::from_io(doing, &error).into())
            }
        }
    }
}

/// `struct ifreq` (linux/if.h): a name, and what the request is about.
#[repr(C)]
struct Request {
    name: [u8; NAME],
    value: [u8; 24],
}

impl Request {
    fn new(name: &str, value: &[u8]) -> Self {
        let mut request = Self { name: [0; NAME], value: [0; 24] };
        for (room, byte) in request.name.iter_mut().zip(name.bytes()) {
            *room = byte;
        }
        for (room, byte) in request.value.iter_mut().zip(value) {
            *room = *byte;
        }
        request
    }
}

/// A TAP and its queues.
#[derive(Debug)]
pub struct Tap {
    name: String,
    namespace: Option<File>,
    queues: Vec<Arc<OwnedFd>>,
}

impl Tap {
    /// Makes the TAP `name` with so many queues, at least one, in `namespace`.
    ///
    /// # Errors
    ///
    /// It cannot have that name, there is no such namespace, or the kernel refuses.
    pub fn open(name: &str, namespace: &Namespace, queues: usize) -> Result<Self, Error> {
        let fits = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
        if name.is_empty()
            || name.len() >= NAME
            || matches!(name, "." | "..")
            || !name.bytes().all(fits)
        {
            let problem =
                "an interface's name has 1 to 15 printable characters, no '/', ':' or '%'";
            return Err(ConfigError::new("interface", name, problem).into());
        }
        let mut tap =
            Self { name: name.to_owned(), namespace: namespace.open()?, queues: Vec::new() };
        let queues = tap.inside(|| (0..queues.max(1)).map(|_| attach(name)).collect())?;
        tap.queues = Vec::into_iter(queues).map(Arc::new).collect();
        Ok(tap)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its queue `number`, from 0.
    #[must_use]
    pub fn queue(&self, number: usize) -> Option<Arc<OwnedFd>> {
        self.queues.get(number).map(Arc::clone)
    }

    /// Gives it the address and the MTU of the interface, and brings it up.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn set_up(&self, mac: Option<[u8; 6]>, mtu: u32) -> Result<(), HostError> {
        self.inside(|| {
            if let Some([a, b, c, d, e, f]) = mac {
                let [low, high] = libc::ARPHRD_ETHER.to_ne_bytes();
                let value = [low, high, a, b, c, d, e, f];
                self.ask(libc::SIOCSIFHWADDR, "set the address of", &value)?;
            }
            self.ask(libc::SIOCSIFMTU, "set the MTU of", &mtu.to_ne_bytes())?;
            let now = self.ask(libc::SIOCGIFFLAGS, "bring up", &[])?;
            let [low, high, ..] = now.value;
            let flags = u16::from_ne_bytes([low, high]) | libc::IFF_UP as u16;
            self.ask(libc::SIOCSIFFLAGS, "bring up", &flags.to_ne_bytes())?;
            Ok(())
        })
    }

    /// Follows what the interface is and what its backend takes: nothing, where there is none.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn follow(&self, info: &NetInfo, sends: Option<Offloads>) -> Result<(), HostError> {
        let Some(first) = self.queues.first().map(|queue| queue.as_fd()) else { return Ok(()) };
        if let Some(sends) = sends {
            let mut flags = 0;
            // Where the backend takes one family's only, the kernel completes all.
            if sends.checksum_v4 && sends.checksum_v6 {
                flags = libc::TUN_F_CSUM;
                for (taken, bit) in
                    [(sends.gso_tcpv4, libc::TUN_F_TSO4), (sends.gso_tcpv6, libc::TUN_F_TSO6)]
                {
                    flags |= if taken { bit } else { 0 };
                }
            }
            // SAFETY: the argument of this request is the number itself.
            let asked = unsafe {
                libc::ioctl(first.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
            };
            Errno::result(asked).map_err(|errno| self.failed("set offloads of", errno))?;
        }
        let up = libc::c_int::from(info.carrier && sends.is_some());
        set(first, libc::TUNSETCARRIER, up)
            .map_err(|errno| self.failed("set the carrier of", errno))
    }

    fn failed(&self, doing: &str, errno: Errno) -> HostError {
        HostError::new(format!("{doing} {}", self.name), errno as i32)
    }

    /// Asks about the interface, from within its namespace.
    fn ask(&self, number: libc::c_ulong, doing: &str, value: &[u8]) -> Result<Request, HostError> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)
            .map_err(|errno| self.failed("open a socket to ask about", errno))?;
        let mut request = Request::new(&self.name, value);
        ask(socket.as_fd(), number as libc::Ioctl, &mut request)
            .map_err(|errno| self.failed(doing, errno))?;
        Ok(request)
    }

    /// Does `work` in the TAP's namespace.
    fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, HostError> + Send,
    ) -> Result<T, HostError> {
        let Some(namespace) = &self.namespace else { return work() };
        let entered = || {
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| HostError::new("enter a network namespace", errno as i32))?;
            work()
        };
        // A thread of its own: which namespace one is in belongs to the thread.
        std::thread::scope(|scope| {
            scope.spawn(entered).join().unwrap_or_else(|_| {
                Err(HostError::new("work in a network namespace", Errno::EIO as i32))
            })
        })
    }
}

/// One more queue of the TAP called `name`.
fn attach(name: &str) -> Result<OwnedFd, HostError> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|error| HostError::from_io("open /dev/net/tun", &error))?;
    let failed =
        |doing: &str, errno: Errno| HostError::new(format!("{doing} {name}"), errno as i32);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let mut request = Request::new(name, &(flags as u16).to_ne_bytes());
    ask(file.as_fd(), libc::TUNSETIFF, &mut request)
        .map_err(|errno| failed("attach to TAP", errno))?;
    let header = vnet::SIZE as libc::c_int;
    for (number, value) in [(libc::TUNSETVNETHDRSZ, header), (libc::TUNSETVNETLE, 1)] {
        set(file.as_fd(), number, value).map_err(|errno| failed("set up headers of", errno))?;
    }
    Ok(file.into())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<Request>(), size_of::<libc::ifreq>());
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for name in ["", ".", "..", "a/b", "a b", "tap%d", "sixteen-letters-", "ä"] {
            let error = Tap::open(name, &Namespace::Own, 1).unwrap_err();
            assert!(matches!(error, Error::Config(_)), "{name}: {error}");
        }
        let nowhere = Tap::open("eth0", &Namespace::Named("../x".into()), 1).unwrap_err();
        assert!(nowhere.to_string().contains("is no name"), "{nowhere}");
    }
}
