//! Ethernet addresses as people write them, and those that are made up.
//!
//! Source: `00:16:3E` is Xen's (`docs/misc/vif-config` of RELEASE-4.17, "mac").

use std::fmt;
use std::str::FromStr;

use hypervisor::ConfigError;

use crate::filter::Mac;

/// The first half of the addresses of Xen's guests.
const XEN: [u8; 3] = [0x00, 0x16, 0x3E];

/// An address, as `00:16:3e:01:02:03`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown(pub Mac);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Shown {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = |why: &'static str| ConfigError::new("Ethernet address", text, why);
        let malformed = || wrong("must be six bytes, as in 00:16:3e:01:02:03");
        let mut mac = Mac::default();
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| (1..=2).contains(&part.len()));
            let part = part.ok_or_else(malformed)?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        if mac[0] & 1 == 1 || mac == Mac::default() {
            return Err(wrong(
                "is no interface's own: its first byte must be even, and not all zero",
            ));
        }
        Ok(Self(mac))
    }
}

/// One of Xen's addresses for device `number` of the guest called `guest` on the machine `machine`:
/// the same each time, and on another machine another.
#[must_use]
pub fn made_up(machine: &str, guest: &str, number: u32) -> Mac {
    // FNV-1a. Two guests of the same network may come to the same address, as with random ones.
    let text = format!("{machine}\0{guest}\0{number}");
    let hash = text.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    let [a, b, c] = XEN;
    let [d, e, f, ..] = (hash ^ (hash >> 32)).to_le_bytes();
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        let mac = "00:16:3e:0a:ff:01".parse::<Shown>().unwrap();
        assert_eq!(mac.0, [0, 0x16, 0x3E, 0x0A, 0xFF, 1]);
        assert_eq!(mac.to_string(), "00:16:3e:0a:ff:01");
        assert_eq!("0:16:3E:a:FF:1".parse::<Shown>().unwrap(), mac);
        for wrong in [
            "",
            "1:2",
            "1:2:3:4:5:6:7",
            "00:16:3e:0a:ff:",
            "00:16:3e:0a:ff:+1",
            "g:0:0:0:0:0",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "0:0:0:0:0:0",
            "000:16:3e:0:0:0",
        ] {
            assert!(wrong.parse::<Shown>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn made_up_addresses_are_the_same_each_time_and_differ() {
        let mac = made_up("m", "guest", 0);
        assert_eq!(mac, made_up("m", "guest", 0));
        assert_eq!(mac[..3], XEN);
        for other in [made_up("n", "guest", 0), made_up("m", "guess", 0), made_up("m", "guest", 1)]
        {
            assert_ne!(mac, other);
        }
    }
}
