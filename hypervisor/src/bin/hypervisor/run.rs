//! `hypervisor run`.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, anyhow};
use hypervisor::embedded::Place;
use hypervisor::embedded::broker::{Broker, Options};
use hypervisor::find::EXIT_TAKEN;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use serde_json::json;

use crate::args;

/// A log that has grown beyond this many bytes is begun anew.
const LOG_MOST: u64 = 1 << 20;

/// Runs a hypervisor, or starts one that goes on running.
pub(crate) fn run(place: Place, args: &args::Run) -> anyhow::Result<ExitCode> {
    if args.detach {
        return detach(&place, args);
    }
    if args.detached {
        // Not the caller's terminal's any more. It fails where this process leads a group already,
        // which is as good.
        let _ = nix::unistd::setsid();
    }
    let stop = stop_signals()?;
    let Some(lock) = place.lock()? else {
        let folder = place.folder().display();
        eprintln!("hypervisor: another hypervisor runs in {folder}; name another with --place");
        return Ok(ExitCode::from(EXIT_TAKEN));
    };
    let mut options = Options::new(place.clone());
    options.memory_kib = args.memory.map(|kib| kib.0);
    options.until_empty = args.until_empty;
    let broker = Broker::start_locked(&options, lock)?;
    say_ready(&place, &broker, args.json)?;
    broker.run(stop)?;
    // Nobody may be listening, which is no reason to fail.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    Ok(ExitCode::SUCCESS)
}

/// A descriptor that polls readable when this process is asked to end.
fn stop_signals() -> anyhow::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Before there are other threads, which inherit it.
    signals.thread_block().context("block signals")?;
    SignalFd::new(&signals).context("wait for signals")
}

fn say_ready(place: &Place, broker: &Broker, as_json: bool) -> anyhow::Result<()> {
    let (folder, store) = (place.folder(), place.store_socket());
    let mut out = std::io::stdout().lock();
    let said = if as_json {
        let line = json!({
            "place": folder,
            "store": store,
            "pid": std::process::id(),
            "unenforced": broker.unenforced(),
        });
        writeln!(out, "{line}")
    } else {
        let (folder, store) = (folder.display(), store.display());
        writeln!(out, "ready: embedded hypervisor in {folder}; store at {store}")
    };
    said.and_then(|()| out.flush()).context("print the ready line")?;
    // Nobody may be listening, which is no reason to fail.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    Ok(())
}

/// Starts a hypervisor as a process of its own and returns when it is ready.
fn detach(place: &Place, args: &args::Run) -> anyhow::Result<ExitCode> {
    place.prepare()?;
    let (mut log, before) = open_log(place)?;
    let own = std::env::current_exe().context("find this program's own file")?;
    let mut command = Command::new(own);
    command.args(["run", "--detached", "--place"]).arg(place.folder());
    if let Some(memory) = args.memory {
        command.args(["--memory", &format!("{}K", memory.0)]);
    }
    for (wanted, option) in [(args.until_empty, "--until-empty"), (args.json, "--json")] {
        if wanted {
            command.arg(option);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.try_clone()?);
    let mut child = command.spawn().context("start the hypervisor")?;
    let stdout = child.stdout.take().ok_or_else(|| anyhow!("the hypervisor has no output"))?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).context("wait for the hypervisor")?;
    let mut said = String::new();
    log.seek(SeekFrom::Start(before))?;
    log.read_to_string(&mut said).context("read the hypervisor's log")?;
    eprint!("{said}");
    if line.ends_with('\n') {
        print!("{line}");
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait().context("wait for the hypervisor")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    // It ended, so it failed, whatever it says of itself.
    Ok(ExitCode::from(code.filter(|code| *code != 0).unwrap_or(1)))
}

/// The log, and where in it what comes next begins.
fn open_log(place: &Place) -> anyhow::Result<(File, u64)> {
    let path = place.folder().join("hypervisor.log");
    let shown = path.display().to_string();
    let mut options = OpenOptions::new();
    options.create(true).read(true).append(true).mode(0o600);
    let log = options.open(&path).with_context(|| format!("open {shown}"))?;
    let length = log.metadata().with_context(|| format!("look at {shown}"))?.len();
    if length <= LOG_MOST {
        return Ok((log, length));
    }
    log.set_len(0).with_context(|| format!("shorten {shown}"))?;
    Ok((log, 0))
}
