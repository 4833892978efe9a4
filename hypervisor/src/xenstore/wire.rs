//! Messages as they cross the socket.
//!
//! ```text
//!   0      4        8       12      16                16 + len
//!   | type | req_id | tx_id | len   | payload ...     |     native byte order, four words
//! ```
//!
//! A reply repeats its request's type and both numbers, or has type `ERROR` and an error's name as
//! payload. A `WATCH_EVENT` comes unasked and both its numbers are 0. `len` is at most
//! [`PAYLOAD_MAX`]; who sends more is cut off, as its stream can no longer be told apart.
//!
//! Source: `io/xs_wire.h` (RELEASE-4.17). Bytes come from an untrusted peer as far as the server is
//! concerned; nothing here trusts them.

use alloc::string::String;
use alloc::vec::Vec;

use crate::DomId;
use crate::store::Permission;

/// The most bytes in one payload (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// What a message is (`enum xsd_sockmsg_type`).
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// The kind with that number; `None` where there is none.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($value => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u32 {
                match self {
                    $(Self::$name => $value,)*
                }
            }
        }
    };
}

kinds! {
    /// A command to the store itself.
    Control = 0,
    /// The names of a node's children.
    Directory = 1,
    /// A node's value.
    Read = 2,
    /// A node's permissions.
    GetPerms = 3,
    /// Ask to be told of changes.
    Watch = 4,
    /// Ask no longer.
    Unwatch = 5,
    /// Begin a transaction.
    TransactionStart = 6,
    /// End one.
    TransactionEnd = 7,
    /// A domain has come.
    Introduce = 8,
    /// A domain has gone.
    Release = 9,
    /// Where a domain's relative paths begin.
    GetDomainPath = 10,
    /// Set a node's value.
    Write = 11,
    /// Make a node.
    Mkdir = 12,
    /// Remove a node and all below it.
    Rm = 13,
    /// Set a node's permissions.
    SetPerms = 14,
    /// Something changed; only ever sent by the store.
    WatchEvent = 15,
    /// A request was refused; only ever sent by the store.
    Error = 16,
    /// Whether a domain is known.
    IsDomainIntroduced = 17,
    /// A domain runs again after it was shut down.
    Resume = 18,
    /// One domain acts for another.
    SetTarget = 19,
    /// Drop all of the caller's watches and transactions.
    ResetWatches = 21,
    /// A part of a long list of children.
    DirectoryPart = 22,
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $text:literal $errno:literal,)*) => {
        /// Why a request was refused (`xsd_errors`). It crosses the wire by name.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum Refusal {
            $($(#[$doc])* $name,)*
        }

        impl Refusal {
            /// The name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Linux's number for it (asm-generic).
            #[must_use]
            pub const fn errno(self) -> i32 {
                match self {
                    $(Self::$name => $errno,)*
                }
            }

            /// The refusal with that number, as the kernel's device has it.
            #[must_use]
            pub const fn from_errno(errno: i32) -> Option<Self> {
                match errno {
                    $($errno => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The refusal of that name.
            #[must_use]
            pub fn from_name(name: &[u8]) -> Option<Self> {
                $(if name == $text.as_bytes() {
                    return Some(Self::$name);
                })*
                None
            }
        }
    };
}

refusals! {
    /// The request makes no sense.
    Invalid = "EINVAL" 22,
    /// The caller may not do that.
    Access = "EACCES" 13,
    /// It is there already.
    Exists = "EEXIST" 17,
    /// It has children.
    IsDirectory = "EISDIR" 21,
    /// It is not there.
    Missing = "ENOENT" 2,
    /// The store is out of memory.
    NoMemory = "ENOMEM" 12,
    /// A quota is used up.
    NoSpace = "ENOSPC" 28,
    /// The store is damaged.
    Io = "EIO" 5,
    /// It has children.
    NotEmpty = "ENOTEMPTY" 39,
    /// There is no such request.
    NoSuchRequest = "ENOSYS" 38,
    /// The store cannot be written.
    ReadOnly = "EROFS" 30,
    /// It is in use.
    Busy = "EBUSY" 16,
    /// A transaction met another's change.
    Again = "EAGAIN" 11,
    /// It is connected already.
    Connected = "EISCONN" 106,
    /// It is too long, or too many.
    TooBig = "E2BIG" 7,
    /// Only the owner or the control domain may do that.
    NotPermitted = "EPERM" 1,
}

/// What precedes each payload (`struct xsd_sockmsg`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// A [`Kind`]'s number, or what the sender took for one.
    pub kind: u32,
    /// Chosen by the requester, repeated in the reply.
    pub request: u32,
    /// The transaction, or 0.
    pub transaction: u32,
    /// Bytes of payload.
    pub len: u32,
}

impl Header {
    /// Bytes in a header.
    pub const SIZE: usize = 16;

    /// The header in these bytes.
    #[must_use]
    pub fn decode(bytes: [u8; Self::SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            kind: u32::from_ne_bytes([a, b, c, d]),
            request: u32::from_ne_bytes([e, f, g, h]),
            transaction: u32::from_ne_bytes([i, j, k, l]),
            len: u32::from_ne_bytes([m, n, o, p]),
        }
    }

    /// The bytes of this header.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        let [a, b, c, d] = self.kind.to_ne_bytes();
        let [e, f, g, h] = self.request.to_ne_bytes();
        let [i, j, k, l] = self.transaction.to_ne_bytes();
        let [m, n, o, p] = self.len.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

/// One whole message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Its header; `len` is the payload's length.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A message longer than any may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("xenstore message with a payload of {0} bytes, more than is allowed")]
pub struct TooLong(pub usize);

/// The bytes of a message of that kind whose payload is `parts` one after the other.
///
/// # Errors
///
/// The payload would be longer than [`PAYLOAD_MAX`].
pub fn encode(
    kind: Kind,
    request: u32,
    transaction: u32,
    parts: &[&[u8]],
) -> Result<Vec<u8>, TooLong> {
    let total = parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
    let len = match u32::try_from(total) {
        Ok(len) if total <= PAYLOAD_MAX => len,
        _ => return Err(TooLong(total)),
    };
    let mut bytes = Vec::with_capacity(Header::SIZE.saturating_add(total));
    bytes.extend_from_slice(&Header { kind: kind.number(), request, transaction, len }.encode());
    for part in parts {
        bytes.extend_from_slice(part);
    }
    Ok(bytes)
}

/// Puts messages together from bytes that come in pieces of any size. Holds at most one message.
#[derive(Debug)]
pub struct Parser {
    bytes: Vec<u8>,
    header: Option<Header>,
    most: usize,
}

impl Default for Parser {
    fn default() -> Self {
        Self::up_to(PAYLOAD_MAX)
    }
}

impl Parser {
    /// One that takes payloads of `most` bytes.
    #[must_use]
    pub fn up_to(most: usize) -> Self {
        Self { bytes: Vec::new(), header: None, most }
    }

    /// How many more bytes the message at hand needs at least; 0 once [`take`](Self::take) has one.
    #[must_use]
    pub fn wants(&self) -> usize {
        let goal = match &self.header {
            None => Header::SIZE,
            Some(header) => usize::try_from(header.len).unwrap_or(usize::MAX),
        };
        goal.saturating_sub(self.bytes.len())
    }

    /// Takes bytes for the message at hand and says how many it took; the rest belongs to the next.
    ///
    /// # Errors
    ///
    /// The header announces more than that, by default [`PAYLOAD_MAX`]: nothing that follows means
    /// anything.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, TooLong> {
        let mut rest = bytes;
        if self.header.is_none() {
            rest = self.fill(rest);
            if let Ok(whole) = <[u8; Header::SIZE]>::try_from(self.bytes.as_slice()) {
                let header = Header::decode(whole);
                let len = usize::try_from(header.len).unwrap_or(usize::MAX);
                if len > self.most {
                    return Err(TooLong(len));
                }
                self.bytes.clear();
                self.header = Some(header);
            }
        }
        if self.header.is_some() {
            rest = self.fill(rest);
        }
        Ok(bytes.len().saturating_sub(rest.len()))
    }

    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (now, rest) = bytes.split_at_checked(self.wants()).unwrap_or((bytes, &[]));
        self.bytes.extend_from_slice(now);
        rest
    }

    /// The message at hand, once it is whole.
    pub fn take(&mut self) -> Option<Message> {
        if self.wants() > 0 {
            return None;
        }
        let header = self.header.take()?;
        Some(Message { header, payload: core::mem::take(&mut self.bytes) })
    }
}

/// The NUL-terminated strings at the start of `payload`, `N` of them, and what follows them.
#[must_use]
pub fn strings<const N: usize>(payload: &[u8]) -> Option<([&[u8]; N], &[u8])> {
    let mut found: [&[u8]; N] = [&[]; N];
    let mut rest = payload;
    for slot in &mut found {
        let end = rest.iter().position(|byte| *byte == 0)?;
        let (string, tail) = rest.split_at_checked(end)?;
        *slot = string;
        (_, rest) = tail.split_first()?;
    }
    Some((found, rest))
}

/// A decimal number without sign or space.
#[must_use]
pub fn decimal<T: core::str::FromStr>(text: &[u8]) -> Option<T> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// A permission as a string: a letter for what is allowed, then the domain (`r7`).
#[must_use]
pub fn permission_string(permission: &Permission) -> String {
    let letter = match (permission.read, permission.write) {
        (false, false) => 'n',
        (true, false) => 'r',
        (false, true) => 'w',
        (true, true) => 'b',
    };
    alloc::format!("{letter}{}", permission.domain)
}

/// The permission that such a string means.
#[must_use]
pub fn parse_permission(text: &[u8]) -> Option<Permission> {
    let (letter, number) = text.split_first()?;
    let (read, write) = match letter {
        b'n' => (false, false),
        b'r' => (true, false),
        b'w' => (false, true),
        b'b' => (true, true),
        _ => return None,
    };
    Some(Permission { domain: DomId::new(decimal(number)?)?, read, write })
}

#[cfg(test)]
mod tests;
