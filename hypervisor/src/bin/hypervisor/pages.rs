//! Manual pages and shell completions, from the command line's own definition.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::Args;
use crate::show;

/// `hypervisor completions`.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "hypervisor", &mut text);
    show::print(&String::from_utf8(text).context("the completions are no text")?)
}

/// `hypervisor man`: the tool's own page, or every command's into a folder.
pub(crate) fn man(folder: Option<&Path>) -> anyhow::Result<ExitCode> {
    if let Some(folder) = folder {
        let shown = folder.display();
        std::fs::create_dir_all(folder).with_context(|| format!("make folder {shown}"))?;
        clap_mangen::generate_to(Args::command(), folder)
            .with_context(|| format!("write manual pages to {shown}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut page = Vec::new();
    Man::new(Args::command()).render(&mut page).context("make the manual page")?;
    show::print(&String::from_utf8(page).context("the manual page is no text")?)
}
