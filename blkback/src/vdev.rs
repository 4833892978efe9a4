//! A virtual disk's name and the number that stands for it in the store.
//!
//! Source: `docs/man/xen-vbd-interface.7`, RELEASE-4.17:
//!
//! ```text
//!       202 << 8 | disk << 4 | partition       xvd, disks and partitions up to 15
//!         1 << 28 | disk << 8 | partition      xvd, disks or partitions from 16 on
//!         8 << 8 | disk << 4 | partition       sd, disks and partitions up to 15
//!         3 << 8 | disk << 6 | partition       hd, disks 0 and 1
//!        22 << 8 | (disk - 2) << 6 | partition hd, disks 2 and 3
//! ```

use std::fmt;
use std::str::FromStr;

use hypervisor::ConfigError;

/// The first number that means nothing yet (`2 << 28 onwards: reserved`).
const RESERVED: u32 = 2 << 28;
/// Marks the extended form.
const EXTENDED: u32 = 1 << 28;

/// A virtual disk, by its number in the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Vdev(u32);

/// How a guest is to name a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Xen,
    Scsi,
    Ide,
}

impl Vdev {
    /// The number that stands for it in the store.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    fn encode(kind: Kind, disk: u32, partition: u32) -> Option<Self> {
        let number = match kind {
            Kind::Xen if disk < 16 && partition < 16 => (202 << 8) | (disk << 4) | partition,
            Kind::Xen if disk < 1 << 20 && partition < 256 => EXTENDED | (disk << 8) | partition,
            Kind::Scsi if disk < 16 && partition < 16 => (8 << 8) | (disk << 4) | partition,
            Kind::Ide if disk < 2 && partition < 64 => (3 << 8) | (disk << 6) | partition,
            Kind::Ide if disk < 4 && partition < 64 => {
                (22 << 8) | (disk.saturating_sub(2) << 6) | partition
            }
            _ => return None,
        };
        Some(Self(number))
    }

    /// What it is, if it is in one of the forms that are not deprecated.
    fn decode(self) -> Option<(Kind, u32, u32)> {
        let minor = self.0 & 0xFF;
        if self.0 & EXTENDED != 0 {
            return Some((Kind::Xen, (self.0 & 0x0FFF_FFFF) >> 8, minor));
        }
        match self.0 >> 8 {
            202 => Some((Kind::Xen, minor >> 4, minor & 15)),
            8 => Some((Kind::Scsi, minor >> 4, minor & 15)),
            3 if minor < 128 => Some((Kind::Ide, minor >> 6, minor & 63)),
            22 if minor < 128 => Some((Kind::Ide, (minor >> 6).saturating_add(2), minor & 63)),
            _ => None,
        }
    }
}

impl FromStr for Vdev {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        let refuse = |why: &'static str| Err(ConfigError::new("virtual disk", name, why));
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            return match number(name) {
                Some(number) if number < RESERVED => Ok(Self(number)),
                _ => refuse("numbers go from 0 to 536870911; a name such as xvda is simpler"),
            };
        }
        let parsed = [("xvd", Kind::Xen), ("sd", Kind::Scsi), ("hd", Kind::Ide)]
            .into_iter()
            .find_map(|(prefix, kind)| Some((kind, lettered(name.strip_prefix(prefix)?)?)))
            .or_else(|| Some((Kind::Xen, numbered(name)?)));
        let Some((kind, (disk, partition))) = parsed else {
            return refuse("not a disk's name: use xvda, xvdb2, sda, hda, d0, d1p2 or a number");
        };
        match Self::encode(kind, disk, partition) {
            Some(vdev) => Ok(vdev),
            None => refuse(match kind {
                Kind::Xen => "xvd disks go up to 1048575 and their partitions up to 255",
                Kind::Scsi => "sd disks go from sda to sdp and their partitions up to 15",
                Kind::Ide => "hd disks go from hda to hdd and their partitions up to 63",
            }),
        }
    }
}

impl fmt::Display for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((kind, disk, partition)) = self.decode() else {
            return write!(f, "{}", self.0);
        };
        f.write_str(match kind {
            Kind::Xen => "xvd",
            Kind::Scsi => "sd",
            Kind::Ide => "hd",
        })?;
        f.write_str(&letters(disk))?;
        if partition == 0 { Ok(()) } else { write!(f, "{partition}") }
    }
}

/// A number as C writes it: decimal, hexadecimal after `0x`, octal after `0`.
fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    if digits.starts_with('+') { None } else { u32::from_str_radix(digits, radix).ok() }
}

/// `b2` as disk 1, partition 2.
fn lettered(rest: &str) -> Option<(u32, u32)> {
    let end = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
    let (name, partition) = rest.split_at_checked(end)?;
    if name.is_empty() {
        return None;
    }
    let mut disk: u32 = 0;
    for letter in name.bytes() {
        // a is 1 here, so that aa comes after z.
        let value = u32::from(letter.checked_sub(b'a')?).checked_add(1)?;
        disk = disk.checked_mul(26)?.checked_add(value)?;
    }
    let partition = if partition.is_empty() { 0 } else { ordinal(partition)? };
    Some((disk.checked_sub(1)?, partition))
}

/// `d1p2` as disk 1, partition 2.
fn numbered(name: &str) -> Option<(u32, u32)> {
    let rest = name.strip_prefix('d')?;
    match rest.split_once('p') {
        Some((disk, partition)) => Some((plain(disk)?, plain(partition)?)),
        None => Some((plain(rest)?, 0)),
    }
}

/// A partition's number: decimal, from 1.
fn ordinal(text: &str) -> Option<u32> {
    if text.starts_with('0') { None } else { plain(text) }
}

fn plain(text: &str) -> Option<u32> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Disk 0 is `a`, 25 is `z`, 26 is `aa`.
fn letters(disk: u32) -> String {
    let mut backwards = Vec::new();
    let mut rest = disk;
    loop {
        let digit = u8::try_from(rest.wrapping_rem(26)).unwrap_or(0);
        backwards.push(char::from(b'a'.saturating_add(digit)));
        match (rest / 26).checked_sub(1) {
            Some(next) => rest = next,
            None => return backwards.into_iter().rev().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Result<u32, String> {
        name.parse::<Vdev>().map(Vdev::number).map_err(|e| e.to_string())
    }

    #[test]
    fn the_manuals_examples() {
        // xen-vbd-interface.7, "Configuration file syntax" with "Concrete encoding".
        for (names, number) in [
            (&["d0", "d0p0", "xvda"][..], 202 << 8),
            (&["d1p2", "xvdb2"], (202 << 8) | (1 << 4) | 2),
            (&["d536p37", "xvdtq37"], (1 << 28) | (536 << 8) | 37),
            (&["sdb3"], (8 << 8) | (1 << 4) | 3),
            (&["hdc2"], (22 << 8) | 2),
        ] {
            for name in names {
                assert_eq!(parse(name), Ok(number), "{name}");
            }
            let last = *names.last().unwrap();
            assert_eq!(Vdev(number).to_string(), last);
        }
    }

    #[test]
    fn numbers_are_taken_as_they_are() {
        for text in ["51712", "0xca00", "0xCA00", "0145000"] {
            assert_eq!(parse(text), Ok(51712), "{text}");
        }
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(Vdev(17).to_string(), "17");
    }

    #[test]
    fn names_and_numbers_agree() {
        for disk in (0..40).chain([701, 702, 703, 18277, 18278, (1 << 20) - 1]) {
            for partition in [0, 1, 15, 16, 255] {
                let vdev = Vdev::encode(Kind::Xen, disk, partition).unwrap();
                assert_eq!(vdev.to_string().parse::<Vdev>(), Ok(vdev), "{vdev}");
            }
        }
    }

    #[test]
    fn what_names_no_disk_is_refused_with_the_name() {
        for name in [
            "",
            "xvd",
            "xvd1",
            "xvdA",
            "xvda0",
            "xvda01",
            "xvda256",
            "xvda-1",
            "sdq",
            "sda16",
            "hde",
            "hda64",
            "d",
            "dp",
            "d1p",
            "dxp1",
            "vda",
            "/dev/xvda",
            "536870912",
            "0x",
            "08",
            "1x",
            "xvdzzzzzzzzzzz",
            "d1048576",
            "99999999999",
            "xvda 1",
            "xvd\u{e4}",
        ] {
            let error = parse(name).unwrap_err();
            assert!(error.contains(&format!("'{name}'")), "{error}");
        }
    }
}
