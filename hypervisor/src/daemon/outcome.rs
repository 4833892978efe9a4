//! What a daemon says: to people, to programs, and to its supervisor.

use std::io::Write as _;

use serde_json::Value;
use tracing_subscriber::EnvFilter;

/// Writes what is worth knowing on stderr: by `RUST_LOG`, else from level info on.
pub fn log() {
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .without_time()
        .with_target(false)
        .init();
}

/// On stdout, one line for people, or where `as_json`, one object for programs.
pub fn say(as_json: bool, line: &str, object: &Value) {
    let mut out = std::io::stdout().lock();
    // That nobody reads it is no reason to stop serving.
    let _ = if as_json { writeln!(out, "{object}") } else { writeln!(out, "{line}") };
    let _ = out.flush();
}

/// The same, and tells the supervisor that the daemon is ready.
pub fn ready(as_json: bool, line: &str, object: &Value) {
    say(as_json, line, object);
    // Where no supervisor asked to be told, there is nobody to tell.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
}
