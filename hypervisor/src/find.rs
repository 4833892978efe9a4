//! Finding a hypervisor: real Xen, else a running embedded one, else one that is started now.
//!
//! A hypervisor that is started here is a process of its own. It outlives the program that started
//! it and ends when the last domain has left. Two programs that start one at the same moment end up
//! with the same one: only one can hold the lock of its folder ([`Place::lock`]).
//!
//! The environment has the last word: `DOMKIT_HYPERVISOR` (`embedded` or `xen`) says which kind,
//! `DOMKIT_RUN` the embedded one's folder, and `DOMKIT_DOMAIN` the domain that this program was
//! started in and that [`Found::join`] then enters.

#[cfg(test)]
mod tests;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::domain::DomainSpec;
use crate::embedded::{Control, Domain, MachineInfo, Place};
use crate::{ConfigError, DomId, Error, HostError};

/// Which hypervisor to use: `embedded` or `xen`.
pub const HYPERVISOR_VARIABLE: &str = "DOMKIT_HYPERVISOR";
/// The number of the domain a program was started in.
pub const DOMAIN_VARIABLE: &str = "DOMKIT_DOMAIN";
/// What the tool `hypervisor` exits with where another hypervisor runs in the same folder.
pub const EXIT_TAKEN: u8 = 3;

/// How long a hypervisor may take to start or, where one is just ending, to be gone.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait before looking again for one that another program is starting.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A hypervisor that is there to be used. While this is held it does not end, even when it has no
/// domains.
#[derive(Debug)]
#[non_exhaustive]
pub struct Found {
    /// Which one it is and how it came to be there, in one line.
    pub how: String,
    place: Place,
    held: Control,
}

impl Found {
    /// Where it runs.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What it has, and what of it it enforces on this machine.
    ///
    /// # Errors
    ///
    /// It cannot be asked.
    pub fn info(&self) -> Result<MachineInfo, Error> {
        self.held.info()
    }

    /// Becomes a domain: the one that `DOMKIT_DOMAIN` names, else a new one made as `spec` says.
    ///
    /// # Errors
    ///
    /// The variable names none, or the hypervisor refuses.
    pub fn join(&self, spec: &DomainSpec) -> Result<Domain, Error> {
        match chosen_domain(env::var_os(DOMAIN_VARIABLE))? {
            Some(id) => Domain::enter(&self.place, id),
            None => Domain::join(&self.place, spec),
        }
    }
}

/// The hypervisor for this program, in the usual place ([`Place::standard`]).
///
/// # Errors
///
/// This machine runs on Xen, the environment asks for what there is not, or no hypervisor can be
/// started.
pub fn hypervisor() -> Result<Found, Error> {
    hypervisor_at(&Place::standard())
}

/// The hypervisor for this program; an embedded one is looked for, and started, at `place`.
///
/// # Errors
///
/// As for [`hypervisor`].
pub fn hypervisor_at(place: &Place) -> Result<Found, Error> {
    choose(env::var_os(HYPERVISOR_VARIABLE), on_xen(Path::new("/")))?;
    let folder = place.folder().display();
    let deadline = Instant::now().checked_add(START_TIMEOUT);
    let mut told = None;
    loop {
        if let Some(held) = running(place) {
            let how = match told {
                None => format!("using the embedded hypervisor that runs in {folder}"),
                Some(Started::Here) => format!("started an embedded hypervisor in {folder}"),
                Some(Started::Elsewhere) => {
                    format!("using the embedded hypervisor that was just started in {folder}")
                }
            };
            return Ok(Found { how, place: place.clone(), held });
        }
        if deadline.is_none_or(|deadline| Instant::now() > deadline) {
            let doing = format!(
                "find or start a hypervisor in {folder} (another one holds {folder}/lock and does \
                 not answer)"
            );
            return Err(HostError::new(doing, libc::ETIMEDOUT).into());
        }
        let started = start(place)?;
        if started == Started::Elsewhere {
            std::thread::sleep(LOOK_AGAIN);
        }
        told = Some(started);
    }
}

/// Where the hypervisor that runs now was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Started {
    /// By us.
    Here,
    /// By somebody else, who has the lock.
    Elsewhere,
}

/// A hypervisor that answers.
fn running(place: &Place) -> Option<Control> {
    let control = Control::connect(place).ok()?;
    // One that is just ending lets us connect and then hangs up.
    control.info().ok()?;
    Some(control)
}

/// Starts a hypervisor and waits until it is ready.
fn start(place: &Place) -> Result<Started, Error> {
    place.prepare()?;
    let program = program(env::current_exe().ok(), env::var_os("PATH"))?;
    let doing = || format!("run {}", program.display());
    let output = Command::new(&program)
        .args(["run", "--until-empty", "--detach", "--place"])
        .arg(place.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|error| HostError::from_io(doing(), &error))?;
    match output.status.code() {
        Some(0) => Ok(Started::Here),
        Some(code) if code == i32::from(EXIT_TAKEN) => Ok(Started::Elsewhere),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let status = output.status;
            let problem = format!("cannot be started: it ended with {status} and said: {said}");
            Err(ConfigError::new("hypervisor", program.display(), problem.trim_end().to_owned())
                .into())
        }
    }
}

/// The tool `hypervisor`: beside our own program, one folder up (where tests are built), or in
/// the search path.
fn program(own: Option<PathBuf>, path: Option<OsString>) -> Result<PathBuf, ConfigError> {
    let beside = own.as_deref().and_then(Path::parent);
    let above = beside.and_then(Path::parent);
    let folders = beside.into_iter().chain(above).map(Path::to_owned);
    let searched: Vec<PathBuf> = path.iter().flat_map(env::split_paths).collect();
    let mut candidates = folders
        .chain(searched)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("hypervisor"));
    candidates.find(|candidate| is_program(candidate)).ok_or_else(|| {
        let beside = beside.map(|folder| folder.display().to_string()).unwrap_or_default();
        ConfigError::new(
            "program",
            "hypervisor",
            format!(
                "is neither in {beside} nor in PATH, and no hypervisor runs; build it with `cargo \
                 build -p domkit-hypervisor`, or start `hypervisor run` yourself"
            ),
        )
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

/// Whether the machine whose root directory is `root` runs on Xen.
fn on_xen(root: &Path) -> bool {
    let kind = fs::read_to_string(root.join("sys/hypervisor/type")).unwrap_or_default();
    kind.trim() == "xen" || root.join("proc/xen/capabilities").exists()
}

/// Checks that the embedded hypervisor is the one to use.
fn choose(wanted: Option<OsString>, on_xen: bool) -> Result<(), ConfigError> {
    let wanted = wanted.unwrap_or_default();
    let shown = wanted.to_string_lossy();
    let problem = match &*shown {
        "embedded" => return Ok(()),
        "" if !on_xen => return Ok(()),
        "" => {
            return Err(ConfigError::new(
                "hypervisor",
                "xen",
                "this machine runs on Xen, which this version of domkit does not drive; set \
                 DOMKIT_HYPERVISOR=embedded to use the embedded hypervisor all the same",
            ));
        }
        "xen" if on_xen => {
            "this version of domkit does not drive Xen; use embedded, or leave it unset"
        }
        "xen" => "this machine does not run on Xen; use embedded, or leave it unset",
        _ => "is no kind of hypervisor; use embedded, or leave it unset",
    };
    Err(ConfigError::new(HYPERVISOR_VARIABLE, shown, problem))
}

/// The domain that the environment names.
fn chosen_domain(named: Option<OsString>) -> Result<Option<DomId>, ConfigError> {
    let Some(named) = named.filter(|named| !named.is_empty()) else {
        return Ok(None);
    };
    let shown = named.to_string_lossy();
    let id = shown.parse().ok().and_then(DomId::new).filter(|id| *id != DomId::ZERO);
    id.map(Some).ok_or_else(|| {
        let problem = "must be the number of a domain (`hypervisor list` shows them)";
        ConfigError::new(DOMAIN_VARIABLE, &shown, problem)
    })
}
