//! Amounts of memory as people write them.

use std::fmt;
use std::str::FromStr;

/// An amount of memory in KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kib(pub(crate) u64);

impl FromStr for Kib {
    type Err = String;

    /// A number and a unit: `512K`, `64M`, `2G`, `1T`, each also with `iB`. A bare number is MiB,
    /// as xl has it.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "give a whole number and K, M, G or T, such as 64M".to_owned();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
        let factor: u64 = match unit {
            "K" | "k" | "KiB" => 1,
            "" | "M" | "m" | "MiB" => 1 << 10,
            "G" | "g" | "GiB" => 1 << 20,
            "T" | "t" | "TiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        if number.is_empty() {
            return Err(wrong());
        }
        let too_much = || "is more memory than can be counted".to_owned();
        let number: u64 = number.parse().map_err(|_| too_much())?;
        number.checked_mul(factor).map(Self).ok_or_else(too_much)
    }
}

impl fmt::Display for Kib {
    /// In the largest unit of which it is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(20, "GiB"), (10, "MiB")] {
            if self.0 > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} KiB", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Kib;

    #[test]
    fn units_are_read() {
        for (text, kib) in [
            ("512K", 512),
            ("64", 65536),
            ("64M", 65536),
            ("64MiB", 65536),
            ("2G", 2 << 20),
            ("1t", 1 << 30),
            ("0M", 0),
        ] {
            assert_eq!(text.parse(), Ok(Kib(kib)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "M",
            "-1M",
            "1.5G",
            "1 G",
            "1MB",
            "1X",
            "é",
            "99999999999999999999",
            "99999999999999999T",
        ] {
            assert!(text.parse::<Kib>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_largest_whole_unit_is_shown() {
        for (kib, text) in [(0, "0 KiB"), (5, "5 KiB"), (2048, "2 MiB"), (3 << 20, "3 GiB")] {
            assert_eq!(Kib(kib).to_string(), text);
        }
    }
}
