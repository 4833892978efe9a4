//! The guest that all the others would like to harm: it reads, writes and checks.

use anyhow::{Result, ensure};
use hypervisor::PAGE_SIZE;
use hypervisor::memory::Memory as _;
use ring::wire::blkif::{Request, Segments, Status, Transfer};

use super::{Disk, Stage};

/// Sectors of a page.
const SECTORS: u64 = 8;

/// What page `page` of the disk holds at its `turn`-th writing.
fn content(page: u64, turn: u64) -> Vec<u8> {
    let mut state = page.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ turn.wrapping_add(1);
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(PAGE_SIZE).collect()
}

/// A guest that writes pages and reads them back.
pub struct Honest<'a> {
    disk: Disk<'a>,
    pages: u64,
    turn: u64,
}

impl<'a> Honest<'a> {
    /// One that uses the first `pages` pages of `disk`, and has written them once.
    ///
    /// # Errors
    ///
    /// As for [`check`](Self::check).
    pub fn new(disk: Disk<'a>, pages: u64) -> Result<Self> {
        let mut honest = Self { disk, pages, turn: 0 };
        for page in 0..pages {
            honest.write(page)?;
        }
        Ok(honest)
    }

    fn transfer(&mut self, page: u64, write: bool) -> Result<()> {
        let segments = Segments::new(&[self.disk.segment(0, 0, 7)?])?;
        let transfer = Transfer { sector: page.wrapping_mul(SECTORS), segments };
        let answer = self.disk.ask(&match write {
            true => Request::write(page, transfer),
            false => Request::read(page, transfer),
        })?;
        let expected = (page, Status::OKAY);
        ensure!((answer.id, answer.status) == expected, "page {page}: {answer:?}");
        Ok(())
    }

    fn write(&mut self, page: u64) -> Result<()> {
        self.disk.data.write_at(0, &content(page, self.turn))?;
        self.transfer(page, true)
    }

    /// Reads every page, compares it with what was written, and writes something new.
    ///
    /// # Errors
    ///
    /// A request is not done, or the disk holds something else.
    pub fn check(&mut self) -> Result<()> {
        let next = self.turn.wrapping_add(1);
        for page in 0..self.pages {
            self.disk.data.fill(0, PAGE_SIZE, 0)?;
            self.transfer(page, false)?;
            ensure!(self.disk.page(0)? == content(page, self.turn), "page {page} is another's");
            self.disk.data.write_at(0, &content(page, next))?;
            self.transfer(page, true)?;
        }
        self.turn = next;
        Ok(())
    }

    /// Closes the disk.
    ///
    /// # Errors
    ///
    /// The backend does not follow.
    pub fn close(self) -> Result<()> {
        self.disk.close()
    }
}

/// Joins, checks `pages` pages a few times, and goes.
///
/// # Errors
///
/// The backend does not serve as it should.
pub fn visit(stage: &Stage, pages: u64) -> Result<()> {
    let guest = stage.join()?;
    let mut honest = Honest::new(guest.connect(0)?, pages)?;
    for _ in 0..3 {
        honest.check()?;
    }
    honest.close()
}
