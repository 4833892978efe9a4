//! What disks are called, and the numbers that the store has for them.
//!
//! Source: `docs/man/xen-vbd-interface.7.pandoc`, RELEASE-4.17. A number is `major << 8 | minor` of the
//! Linux device that bears the name, with 16 minors for each `xvd` and `sd` disk and 64 for each `hd`
//! disk; `xvd` disks from the seventeenth on and their partitions are `1 << 28 | disk << 8 | partition`.

use alloc::format;
use alloc::string::String;

/// The bit that marks the extended numbering.
const EXTENDED: u32 = 1 << 28;

/// The number of the disk or partition called `name`: `xvda`, `xvdb3`, `sda`, `hdc`, or a number.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    if let Some(hex) = name.strip_prefix("0x") {
        return u32::from_str_radix(hex, 16).ok();
    }
    if name.bytes().all(|b| b.is_ascii_digit()) {
        return name.parse().ok();
    }
    let (kind, rest) = name.split_at_checked(if name.starts_with("xvd") { 3 } else { 2 })?;
    let end = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
    let (letters, digits) = rest.split_at_checked(end)?;
    let disk = ordinal(letters)?;
    let partition = match digits {
        "" => 0,
        digits if digits.starts_with('0') => return None,
        digits => digits.parse::<u32>().ok()?,
    };
    match kind {
        "xvd" if disk < 16 && partition < 16 => Some(202 << 8 | disk << 4 | partition),
        "xvd" if disk < 1 << 20 && partition < 256 => Some(EXTENDED | disk << 8 | partition),
        "sd" if disk < 16 && partition < 16 => Some(8 << 8 | disk << 4 | partition),
        "hd" if disk < 2 && partition < 64 => Some(3 << 8 | disk << 6 | partition),
        "hd" if disk < 4 && partition < 64 => Some(22 << 8 | (disk & 1) << 6 | partition),
        _ => None,
    }
}

/// What the disk with that number is called; the number itself where it has no name.
#[must_use]
pub fn name(number: u32) -> String {
    let (kind, disk, partition) = match (number >> 8, number & 0xff) {
        _ if number & EXTENDED != 0 => ("xvd", (number & !EXTENDED) >> 8, number & 0xff),
        (202, minor) => ("xvd", minor >> 4, minor & 15),
        (8, minor) => ("sd", minor >> 4, minor & 15),
        (3, minor) => ("hd", minor >> 6, minor & 63),
        (22, minor) => ("hd", 2_u32.saturating_add(minor >> 6), minor & 63),
        _ => return format!("{number}"),
    };
    let letters = letters(disk);
    if partition == 0 { format!("{kind}{letters}") } else { format!("{kind}{letters}{partition}") }
}

/// The place of a disk whose letters are `a` to `z`, then `aa`, `ab` and so on; from 0.
fn ordinal(letters: &str) -> Option<u32> {
    let mut count = 0_u32;
    for letter in letters.bytes() {
        let digit = u32::from(letter.checked_sub(b'a')?).checked_add(1)?;
        count = count.checked_mul(26)?.checked_add(digit)?;
    }
    count.checked_sub(1)
}

fn letters(disk: u32) -> String {
    let mut letters = String::new();
    let mut left = disk.saturating_add(1);
    while left > 0 {
        left = left.saturating_sub(1);
        let digit = u8::try_from(left % 26).unwrap_or(0);
        letters.insert(0, char::from(b'a'.saturating_add(digit)));
        left /= 26;
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_the_documents() {
        // The examples of xen-vbd-interface.7 and the Linux device numbers behind them.
        let known = [
            ("xvda", 51712),
            ("xvda1", 51713),
            ("xvdb", 51728),
            ("xvdp15", 51967),
            ("xvdq", 268_439_552),
            ("xvdaa", 268_442_112),
            ("sda", 2048),
            ("sdb2", 2066),
            ("hda", 768),
            ("hdb", 832),
            ("hdc", 5632),
            ("hdd1", 5697),
        ];
        for (text, value) in known {
            assert_eq!(number(text), Some(value), "{text}");
            assert_eq!(name(value), text, "{value}");
        }
        assert_eq!(number("51712"), Some(51712));
        assert_eq!(number("0xca00"), Some(51712));
    }

    #[test]
    fn what_is_no_disk_has_no_number() {
        for text in
            ["", "xvd", "xvd1", "xvda0", "xvdA", "nvme0", "hde", "sdaa", "xvda1x", "-1", "é"]
        {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
