//! What a kernel module says it needs: the `depends` entry of its section `.modinfo`.
//!
//! A module is an ELF object (System V ABI, *Object Files*), here 64 bits and little-endian as
//! x86-64 has it. `.modinfo` holds `key=value` strings, each ended by a zero byte; `depends` lists
//! the names of other modules, separated by commas, dashes as underscores.
//!
//! Units: bytes. The file is Debian's own, but nothing in it is believed: what points beyond its
//! end is an error.

use anyhow::{Context, Result, ensure};

/// Magic, 64 bits, little-endian.
const IDENTITY: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
/// Where the file header says where the section headers begin (`e_shoff`).
const SECTIONS: u64 = 0x28;
/// Where it says how long each of them is, how many there are, and which one names them
/// (`e_shentsize`, `e_shnum`, `e_shstrndx`).
const SECTION_SHAPE: u64 = 0x3a;

/// The modules that the one in `file` needs loaded before it.
///
/// # Errors
///
/// `file` is no such module.
pub(super) fn depends(file: &[u8]) -> Result<Vec<String>> {
    let info = section(file, ".modinfo")?;
    let needs = info
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .context("the module does not say what it depends on")?;
    let needs = str::from_utf8(needs).context("the module's dependencies")?;
    Ok(needs.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// The bytes of the section called `name`.
fn section<'a>(file: &'a [u8], name: &str) -> Result<&'a [u8]> {
    ensure!(file.starts_with(&IDENTITY), "no 64-bit little-endian ELF file; is it compressed?");
    let table = number(file, SECTIONS, 8)?;
    let length = number(file, SECTION_SHAPE, 2)?;
    let count = number(file, SECTION_SHAPE + 2, 2)?;
    let header = |index: u64| {
        let within = index.checked_mul(length).context("a section header out of range")?;
        table.checked_add(within).context("a section header out of range")
    };
    let names = content(file, header(number(file, SECTION_SHAPE + 4, 2)?)?)?;
    for index in 0..count {
        let at = header(index)?;
        let begin = usize::try_from(number(file, at, 4)?)?;
        let called = names.get(begin..).context("a section's name out of range")?;
        if called.split(|byte| *byte == 0).next() == Some(name.as_bytes()) {
            return content(file, at);
        }
    }
    anyhow::bail!("there is no section {name}")
}

/// The bytes of the section whose header lies at `at`: its `sh_offset` and `sh_size`.
fn content(file: &[u8], at: u64) -> Result<&[u8]> {
    let field = |offset: u64| at.checked_add(offset).context("a section header out of range");
    bytes(file, number(file, field(0x18)?, 8)?, number(file, field(0x20)?, 8)?)
}

/// The little-endian number of `length` bytes at `at`.
fn number(file: &[u8], at: u64, length: u64) -> Result<u64> {
    let bytes = bytes(file, at, length)?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn bytes(file: &[u8], at: u64, length: u64) -> Result<&[u8]> {
    let end = at.checked_add(length).context("a range beyond all files")?;
    let range = usize::try_from(at)?..usize::try_from(end)?;
    let all = file.len();
    file.get(range).with_context(|| format!("the file ends at {all}, not behind {at}+{length}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with the sections "", `.shstrtab` and `.modinfo`.
    fn module(info: &[u8]) -> Vec<u8> {
        let names = b"\0.shstrtab\0.modinfo\0";
        let mut file = vec![0_u8; 64];
        file[..6].copy_from_slice(&IDENTITY);
        let names_at = file.len() as u64;
        file.extend_from_slice(names);
        let info_at = file.len() as u64;
        file.extend_from_slice(info);
        let table = file.len() as u64;
        for (name, at, length) in
            [(0_u32, 0, 0), (1, names_at, names.len() as u64), (11, info_at, info.len() as u64)]
        {
            let mut header = [0_u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&at.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&length.to_le_bytes());
            file.extend_from_slice(&header);
        }
        file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        for (at, value) in [(0x3a, 64_u16), (0x3c, 3), (0x3e, 1)] {
            file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        file
    }

    #[test]
    fn the_dependencies_are_the_names_between_the_commas() {
        let file = module(b"license=GPL\0depends=mbcache,jbd2\0name=ext4\0");
        assert_eq!(depends(&file).unwrap(), ["mbcache", "jbd2"]);
        assert!(depends(&module(b"depends=\0name=mbcache\0")).unwrap().is_empty());
    }

    #[test]
    fn a_longer_key_is_not_taken_for_it() {
        assert!(depends(&module(b"softdepends=a\0predepends=b\0name=depends=c\0")).is_err());
    }

    #[test]
    fn what_is_no_module_is_refused() {
        let file = module(b"depends=a\0");
        // Of the last header, what lies behind the section's length is not needed.
        for length in 0..file.len() - (64 - 0x28) {
            assert!(depends(&file[..length]).is_err(), "{length}");
        }
        assert!(depends(b"\xfd7zXZ\0").unwrap_err().to_string().contains("compressed"));
    }

    #[test]
    fn no_byte_of_a_header_makes_it_read_outside() {
        let whole = module(b"depends=a\0");
        let headers = (0..64).chain(whole.len() - 192..whole.len());
        for at in headers {
            for value in [0, 1, 0x7f, 0xff] {
                let mut file = whole.clone();
                file[at] = value;
                // Any answer will do.
                let _ = depends(&file);
            }
        }
    }
}
