//! What the hypervisor says of one grant operation.

use core::fmt;

/// The status of one grant operation (`GNTST_*`, grant_table.h).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GrantStatus(pub i16);

impl GrantStatus {
    /// Normal operation.
    pub const OKAY: Self = Self(0);
    /// General undefined error.
    pub const GENERAL_ERROR: Self = Self(-1);
    /// Unrecognised domain id.
    pub const BAD_DOMAIN: Self = Self(-2);
    /// Unrecognised or inappropriate grant reference.
    pub const BAD_GNTREF: Self = Self(-3);
    /// Unrecognised or inappropriate handle.
    pub const BAD_HANDLE: Self = Self(-4);
    /// Inappropriate virtual address to map.
    pub const BAD_VIRT_ADDR: Self = Self(-5);
    /// Inappropriate device address to unmap.
    pub const BAD_DEV_ADDR: Self = Self(-6);
    /// Out of space in the I/O MMU.
    pub const NO_DEVICE_SPACE: Self = Self(-7);
    /// Not enough privilege for operation.
    pub const PERMISSION_DENIED: Self = Self(-8);
    /// Specified page was invalid for operation.
    pub const BAD_PAGE: Self = Self(-9);
    /// Copy arguments cross a page boundary.
    pub const BAD_COPY_ARG: Self = Self(-10);
    /// Transfer page address too large.
    pub const ADDRESS_TOO_BIG: Self = Self(-11);
    /// Operation not done; try again.
    pub const EAGAIN: Self = Self(-12);

    /// Whether the operation was done.
    #[must_use]
    pub const fn is_okay(self) -> bool {
        self.0 == Self::OKAY.0
    }
}

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::OKAY => "okay",
            Self::GENERAL_ERROR => "general error",
            Self::BAD_DOMAIN => "bad domain",
            Self::BAD_GNTREF => "bad grant reference",
            Self::BAD_HANDLE => "bad handle",
            Self::BAD_VIRT_ADDR => "bad virtual address",
            Self::BAD_DEV_ADDR => "bad device address",
            Self::NO_DEVICE_SPACE => "no space in the I/O MMU",
            Self::PERMISSION_DENIED => "permission denied",
            Self::BAD_PAGE => "bad page",
            Self::BAD_COPY_ARG => "copy crosses a page boundary",
            Self::ADDRESS_TOO_BIG => "address too big",
            Self::EAGAIN => "try again",
            Self(other) => return write!(f, "status {other}"),
        };
        f.write_str(name)
    }
}
