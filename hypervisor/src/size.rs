//! Sizes as people write and read them. Units are powers of 1024.

use std::fmt;
use std::str::FromStr;

use crate::ConfigError;

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// `512`, `64K`, `10G`, `10GiB`, `10GB`: bytes.
///
/// # Errors
///
/// It is no whole number of a unit, or more than a file can have.
pub fn parse(text: &str) -> Result<u64, ConfigError> {
    let refuse = || {
        let problem = "must be a whole number of bytes, or of K, M, G, T or P, as in 10G";
        ConfigError::new("size", text, problem)
    };
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end).ok_or_else(refuse)?;
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    let upper = unit.to_ascii_uppercase();
    let letter = match upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')) {
        Some(letter) => letter,
        None => &upper,
    };
    let shift = match letter {
        "" => 0,
        _ => UNITS
            .iter()
            .find(|(name, _)| letter.chars().eq([*name]))
            .map(|(_, shift)| *shift)
            .ok_or_else(refuse)?,
    };
    number.checked_mul(1 << shift).filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or_else(refuse)
}

/// `10 GiB`, `1.5 KiB`.
#[must_use]
pub fn show(bytes: u64) -> String {
    Size(bytes).to_string()
}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        parse(text).map(Self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().rev().find(|(_, shift)| self.0 >> shift > 0);
        match unit {
            None => write!(f, "{} bytes", self.0),
            Some((name, shift)) if self.0.is_multiple_of(1 << shift) => {
                write!(f, "{} {name}iB", self.0 >> shift)
            }
            Some((name, shift)) => {
                write!(f, "{:.1} {name}iB", self.0 as f64 / (1_u64 << shift) as f64)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("1k", 1024),
            ("64K", 65536),
            ("3MiB", 3 << 20),
            ("10G", 10 << 30),
            ("10GB", 10 << 30),
            ("2t", 2 << 40),
            ("7P", 7 << 50),
            ("5B", 5),
        ] {
            assert_eq!(parse(text).ok(), Some(bytes), "{text}");
        }
        for text in
            ["", "G", "-1", "+1", "1.5G", "10 G", "1X", "1GG", "8192P", "99999999999999999999"]
        {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn shown() {
        assert_eq!(show(0), "0 bytes");
        assert_eq!(show(1023), "1023 bytes");
        assert_eq!(show(1536), "1.5 KiB");
        assert_eq!(show(10 << 30), "10 GiB");
        assert_eq!(Size(1025 << 30).to_string(), "1.0 TiB");
        assert_eq!("2GiB".parse(), Ok(Size(2 << 30)));
    }
}
