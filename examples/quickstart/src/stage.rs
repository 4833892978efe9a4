//! What is being done now, and what came of what was done.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows one stage after the other; on a terminal with a clock that runs.
pub(crate) struct Stages {
    style: ProgressStyle,
    quiet: bool,
}

impl Stages {
    /// With `quiet`, nothing is shown.
    pub(crate) fn new(quiet: bool) -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        Self { style, quiet }
    }

    /// Does `work`, which answers its product and what is to be said of it.
    pub(crate) fn run<T>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<(T, String)>,
    ) -> Result<T> {
        if self.quiet {
            return work().map(|(product, _)| product).context(name.to_owned());
        }
        let live = std::io::stderr().is_terminal();
        let bar = ProgressBar::new_spinner().with_style(self.style.clone());
        if live {
            bar.set_message(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let done = work();
        bar.finish_and_clear();
        match &done {
            Ok((_, said)) => eprintln!("  ok  {name}\n      {said}"),
            Err(_) => eprintln!("FAIL  {name}"),
        }
        done.map(|(product, _)| product).context(name.to_owned())
    }
}
