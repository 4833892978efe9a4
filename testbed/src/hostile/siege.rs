//! Playing hostile cases against a real daemon, and seeing that it suffers them as it should, while
//! somebody else is served.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Case, Stage};
use crate::scene::{PATIENCE, Process, until};

/// The daemon that is attacked.
pub trait Attacked {
    /// What it has counted since it began, and what it says of its device.
    ///
    /// # Errors
    ///
    /// It does not answer.
    fn says(&self) -> Result<[Value; 2]>;

    /// Where its guests are.
    fn stage(&self) -> &Stage;

    /// Its process.
    fn process(&mut self) -> &mut Process;

    /// Is an honest guest of its, once.
    ///
    /// # Errors
    ///
    /// It is not served as it should be.
    fn visit(&self) -> Result<()>;

    /// How often `name` was counted: as a reason to refuse, a loss, a fault or a counter.
    ///
    /// # Errors
    ///
    /// It does not answer.
    fn counted(&self, name: &str) -> Result<u64> {
        let [ever, device] = self.says()?;
        let all = [
            ever.get("refused").and_then(|refused| refused.get(name)),
            ever.get("lost").and_then(|lost| lost.get(name)),
            ever.get(name),
            device.get("faults").and_then(|faults| faults.get(name)),
            device.get(name),
        ];
        Ok(all.into_iter().flatten().filter_map(Value::as_u64).sum())
    }

    /// Plays `case` until all that it should leave behind is counted: what a race brings about is not
    /// the same in every round. Then there is an honest guest.
    ///
    /// # Errors
    ///
    /// It is not counted, or what it does otherwise is not as it should be.
    fn suffer(&mut self, case: &Case) -> Result<()> {
        let before: Vec<u64> =
            case.counted.iter().map(|name| self.counted(name)).collect::<Result<_>>()?;
        let began = Instant::now();
        loop {
            (case.play)(self.stage())?;
            let mut missing = Vec::new();
            for (name, before) in case.counted.iter().zip(&before) {
                if self.counted(name)? <= *before {
                    missing.push(*name);
                }
            }
            if missing.is_empty() {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "never counted: {missing:?}");
        }
        let process = self.process();
        ensure!(process.runs(), "the daemon is gone:\n{}", process.written());
        self.visit().context("the next guest")
    }

    /// Plays all `cases` once. Whoever else is served, which `turns` counts, is so at least once meanwhile,
    /// or soon after where a case was short.
    ///
    /// # Errors
    ///
    /// One is not suffered as it should be; the error names it.
    fn suffer_all<'a>(
        &mut self,
        cases: impl Iterator<Item = &'a Case>,
        turns: &AtomicU64,
    ) -> Result<()> {
        for case in cases {
            let before = turns.load(Ordering::Relaxed);
            eprintln!("{}", case.name);
            self.suffer(case).with_context(|| format!("case {}", case.name))?;
            let what = format!("somebody else is served beside {}", case.name);
            until(&what, || Ok(turns.load(Ordering::Relaxed) > before))?;
        }
        Ok(())
    }
}

/// Does `play` while `other` uses what somebody else is served, who is told when that is over and counts
/// its turns.
///
/// # Errors
///
/// Either's. Where both went wrong, the other's says whose fault it was.
pub fn beside(
    other: impl FnOnce(&AtomicBool, &AtomicU64) -> Result<()> + Send,
    play: impl FnOnce(&AtomicU64) -> Result<()>,
) -> Result<()> {
    let (over, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let user = scope.spawn(|| other(&over, &turns));
        let played = play(&turns);
        over.store(true, Ordering::Relaxed);
        let used = user.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")));
        match (played, used.context("the other guest")) {
            (Err(one), Err(other)) => Err(one.context(format!("{other:#}"))),
            (played, used) => played.and(used),
        }
    })
}

/// What a process has, each the least of many looks: what is only there for a moment is no leak.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Private memory.
    pub kib: u64,
    /// Open files.
    pub descriptors: usize,
}

impl Held {
    /// By `process`.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn by(process: &Process) -> Result<Self> {
        let mut least = Self { kib: u64::MAX, descriptors: usize::MAX };
        for _ in 0..20 {
            least.kib = least.kib.min(process.private_kib()?);
            least.descriptors = least.descriptors.min(process.descriptors()?);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(least)
    }

    /// Sees to it that process `name` has by now at most `kib` more, and a few files.
    ///
    /// # Errors
    ///
    /// It has.
    pub fn demand(self, name: &str, now: Self, kib: u64) -> Result<()> {
        ensure!(now.kib <= self.kib.saturating_add(kib), "{name} had {self:?} and has {now:?}");
        let files = self.descriptors.saturating_add(4);
        ensure!(now.descriptors <= files, "{name} had {self:?} and has {now:?}");
        Ok(())
    }
}
