//! Network frontends that lie.
//!
//! What the cases for disks are to a disk's backend, these are to a network's: what a guest does to the
//! packets that it sends ([`chains`]), to the pages that it posts ([`pages`]), on the control ring
//! ([`control`]), and to its keys and its life ([`lives`]). [`Interface::ask`] is the guest that all of
//! them would like to harm: it asks the host for its address and is answered.
//!
//! Trust: none; this is the attacker.

pub mod chains;
pub mod control;
pub mod interface;
pub mod lives;
pub mod pages;

use anyhow::Result;

use super::{Case, Stage};

pub use interface::Interface;

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [chains::CASES, pages::CASES, control::CASES, lives::CASES].into_iter().flatten()
}

/// Joins, asks the host for its address a few times, and goes.
///
/// # Errors
///
/// The backend does not serve as it should.
pub fn visit(stage: &Stage) -> Result<()> {
    let guest = stage.join()?;
    let mut interface = Interface::connect(&guest)?;
    for _ in 0..3 {
        interface.ask()?;
    }
    interface.close()
}

/// Plays on a connected interface, and looks whether it still works afterwards.
fn with(stage: &Stage, play: impl Fn(&mut Interface<'_>) -> Result<()>) -> Result<()> {
    let guest = stage.join()?;
    let mut interface = Interface::connect(&guest)?;
    interface.ask()?;
    play(&mut interface)?;
    interface.ask()?;
    interface.close()
}

/// What is done with an interface.
type Play<'a> = &'a dyn Fn(&mut Interface<'_>) -> Result<()>;

/// Plays on an interface that is taken away for it, each time anew.
fn ends(stage: &Stage, plays: &[Play<'_>]) -> Result<()> {
    let guest = stage.join()?;
    for play in plays {
        let mut interface = Interface::connect(&guest)?;
        play(&mut interface)?;
        guest.until(&[hypervisor::xenbus::State::Closed])?;
    }
    Ok(())
}
