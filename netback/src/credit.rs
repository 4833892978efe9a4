//! Holds packets back where the device's limits are reached.
//!
//! A rate is so many bytes in so many microseconds, as the store's `rate` has it. It is used up by what
//! passes and comes back with time; what it gives in one such interval, and no less than the largest
//! packet, may pass at once. A packet that finds the rate not used up passes whatever its size and
//! makes a debt, so that any rate lets any packet through in the end. All queues of a device share a
//! rate, which may be changed at any time.
//!
//! Source: `rate` in `docs/misc/xenstore-paths.pandoc` (RELEASE-4.17); an interval's burst as in Linux's
//! xen-netback (v6.1). Units: bytes, microseconds, nanoseconds.

use std::sync::atomic::{AtomicU64, Ordering};

use hypervisor::ConfigError;
use ring::wire::netif::MAX_RX_SIZE;

/// So many bytes in so long a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Bytes, more than none.
    pub bytes: u64,
    /// In so many microseconds, more than none.
    pub micros: u64,
}

impl Rate {
    /// Reads `bytes,microseconds`; nothing where that says that there is no limit: where either is
    /// zero, or the bytes are more than 32 bits hold.
    ///
    /// # Errors
    ///
    /// It is not of that form.
    pub fn parse(text: &str) -> Result<Option<Self>, ConfigError> {
        let wrong = || ConfigError::new("rate", text, "give 'bytes,microseconds'");
        let (bytes, micros) = text.trim().split_once(',').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
        let (bytes, micros) = (number(bytes)?, number(micros)?);
        let limits = bytes > 0 && micros > 0 && bytes < u64::from(u32::MAX);
        Ok(limits.then_some(Self { bytes, micros }))
    }

    /// Reads a speed as `xl` does: `10Mb/s`, `250KB/s`, `1GB/s@20ms`, with B for bytes and b for bits,
    /// and after the @ how long an interval is, 50 ms where that is not said; or `0` for no limit.
    ///
    /// # Errors
    ///
    /// It is not of that form, or more than a rate in the store can say.
    pub fn parse_speed(text: &str) -> Result<Option<Self>, ConfigError> {
        let wrong = || {
            let problem = "give a speed, as 10Mb/s, 250KB/s or 1GB/s@20ms, or 0 for no limit";
            ConfigError::new("rate", text, problem)
        };
        if text.trim() == "0" {
            return Ok(None);
        }
        let (speed, interval) = match text.trim().split_once('@') {
            Some((speed, interval)) => (speed, interval),
            None => (text.trim(), "50ms"),
        };
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let scaled = |text: &str, units: &[(&str, u64)]| {
            let unit = units.iter().find_map(|(unit, by)| Some((text.strip_suffix(unit)?, by)));
            let (text, by) = unit.ok_or_else(wrong)?;
            number(text)?.checked_mul(*by).ok_or_else(wrong)
        };
        let speed = speed.strip_suffix("/s").ok_or_else(wrong)?;
        let (speed, bits) = match (speed.strip_suffix('B'), speed.strip_suffix('b')) {
            (Some(speed), _) => (speed, 1),
            (_, Some(speed)) => (speed, 8),
            _ => return Err(wrong()),
        };
        let units = [("G", 1_000_000_000), ("M", 1_000_000), ("K", 1000), ("", 1)];
        let speed = scaled(speed, &units)?.checked_div(bits).ok_or_else(wrong)?;
        let micros = scaled(interval, &[("ms", 1000), ("us", 1), ("s", 1_000_000)])?;
        let bytes = speed.checked_mul(micros).ok_or_else(wrong)? / 1_000_000;
        let fits = bytes > 0 && micros > 0 && bytes < u64::from(u32::MAX);
        if fits { Ok(Some(Self { bytes, micros })) } else { Err(wrong()) }
    }

    /// Bytes a second.
    #[must_use]
    pub fn speed(self) -> u64 {
        let bytes = u128::from(self.bytes).saturating_mul(1_000_000);
        let speed = bytes.checked_div(u128::from(self.micros)).unwrap_or(0);
        u64::try_from(speed).unwrap_or(u64::MAX)
    }
}

impl std::fmt::Display for Rate {
    /// As the store has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{}", self.bytes, self.micros)
    }
}

/// The limits of one device, shared by its queues and by whoever changes them.
#[derive(Debug, Default)]
pub struct Limits {
    /// Of what the guest sends.
    pub tx: Credit,
    /// Of what it receives.
    pub rx: Credit,
}

/// A rate, and how far into the future it is used up.
#[derive(Debug, Default)]
pub struct Credit {
    /// Of a rate; 0 for no limit.
    bytes: AtomicU64,
    micros: AtomicU64,
    /// When all that passed will have been paid for.
    paid_ns: AtomicU64,
}

impl Credit {
    /// Changes the rate, from now on and forgetting what was used.
    pub fn set(&self, rate: Option<Rate>) {
        self.bytes.store(0, Ordering::Relaxed);
        self.paid_ns.store(0, Ordering::Relaxed);
        let Some(rate) = rate else { return };
        self.micros.store(rate.micros, Ordering::Relaxed);
        self.bytes.store(rate.bytes, Ordering::Relaxed);
    }

    /// The rate, as it is now.
    #[must_use]
    pub fn get(&self) -> Option<Rate> {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let micros = self.micros.load(Ordering::Relaxed);
        (bytes > 0).then_some(Rate { bytes, micros })
    }

    /// Whether there is a limit.
    #[inline]
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > 0
    }

    /// Lets `bytes` pass, if they may at `now_ns`.
    ///
    /// # Errors
    ///
    /// When it is worth asking again, in the same nanoseconds as `now_ns`.
    #[inline]
    pub fn admit(&self, bytes: usize, now_ns: u64) -> Result<(), u64> {
        let Some(rate) = self.get() else { return Ok(()) };
        let burst = cost(rate, rate.bytes.max(MAX_RX_SIZE as u64));
        let paid = self.paid_ns.load(Ordering::Relaxed);
        if paid > now_ns.saturating_add(burst) {
            return Err(paid.saturating_sub(burst));
        }
        let cost = cost(rate, bytes as u64);
        let charge = |paid: u64| Some(paid.max(now_ns).saturating_add(cost));
        let _ = self.paid_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge);
        Ok(())
    }
}

/// How long it takes the rate to give so many bytes.
fn cost(rate: Rate, bytes: u64) -> u64 {
    let nanos = u128::from(bytes)
        .saturating_mul(u128::from(rate.micros))
        .saturating_mul(1000)
        .checked_div(u128::from(rate.bytes));
    u64::try_from(nanos.unwrap_or(0)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn rates_are_read_as_toolstacks_write_them() {
        let rate = |bytes, micros| Ok(Some(Rate { bytes, micros }));
        assert_eq!(Rate::parse("62500,50000"), rate(62_500, 50_000));
        assert_eq!(Rate::parse(" 1 , 1 "), rate(1, 1));
        for unlimited in ["0,0", "1,0", "0,1", "4294967295,1"] {
            assert_eq!(Rate::parse(unlimited), Ok(None));
        }
        for wrong in ["", "1", "a,1", "1,b", "1,-1", "1,2,3"] {
            assert!(Rate::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn speeds_are_read_as_xl_reads_them() {
        for (text, store) in [
            ("10Mb/s", "62500,50000"),
            ("250KB/s", "12500,50000"),
            ("1GB/s@20ms", "20000000,20000"),
            ("8000b/s@1s", "1000,1000000"),
            ("1MB/s@500us", "500,500"),
        ] {
            let rate = Rate::parse_speed(text).unwrap().unwrap();
            assert_eq!(rate.to_string(), store, "{text}");
            assert_eq!(Rate::parse(store), Ok(Some(rate)));
        }
        assert_eq!(Rate::parse_speed("0"), Ok(None));
        assert_eq!(Rate { bytes: 62_500, micros: 50_000 }.speed(), 1_250_000);
        for wrong in ["", "10", "10Mb", "Mb/s", "1b/s", "10Tb/s", "10Mb/s@", "10Mb/s@0ms", "-1B/s"]
        {
            assert!(Rate::parse_speed(wrong).is_err(), "{wrong}");
        }
    }

    /// Asks as fast as it can for ten seconds and says how many bytes passed.
    fn passed(credit: &Credit, bytes: usize) -> u64 {
        let (mut now, mut done) = (5, 0);
        while now < 10 * SECOND_NS {
            match credit.admit(bytes, now) {
                Ok(()) => done += bytes as u64,
                Err(later) => {
                    assert!(later > now, "a held packet would ask again at once");
                    now = later;
                }
            }
        }
        done
    }

    #[test]
    fn over_time_a_rate_is_kept_whatever_the_packets() {
        for size in [60, 1514, 65_535] {
            let credit = Credit::default();
            credit.set(Some(Rate { bytes: 62_500, micros: 50_000 }));
            let (done, ten_seconds) = (passed(&credit, size), 12_500_000);
            let most = ten_seconds + MAX_RX_SIZE as u64 + 2 * size as u64;
            assert!(done >= ten_seconds && done <= most, "{done} of {most} in packets of {size}");
        }
    }

    #[test]
    fn the_slowest_rate_lets_the_largest_packet_through() {
        let credit = Credit::default();
        credit.set(Some(Rate { bytes: 1, micros: u64::from(u32::MAX) }));
        assert_eq!(credit.admit(65_535, 0), Ok(()));
        assert_eq!(credit.admit(65_535, 0), Ok(()));
        assert!(credit.admit(60, 0).is_err());
        credit.set(None);
        assert_eq!((credit.admit(60, 0), credit.get()), (Ok(()), None));
    }
}
