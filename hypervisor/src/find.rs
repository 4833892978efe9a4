//! Finding a hypervisor: real Xen, else a running embedded one, else one that is started now.
//!
//! A hypervisor that is started here is a process of its own. It outlives the program that started
//! it and ends when the last domain has left. Two programs that start one at the same moment end up
//! with the same one: only one can hold the lock of its folder ([`Place::lock`]).
//!
//! The environment has the last word: `DOMKIT_HYPERVISOR` (`embedded` or `xen`) says which kind,
//! `DOMKIT_RUN` the embedded one's folder, and `DOMKIT_DOMAIN` the domain that this program was
//! started in and that [`Embedded::join`] then enters.

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
use crate::{ConfigError, DomId, Error, HostError, xen};

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

/// A hypervisor that is there to be used.
///
/// Whoever matches on it sees all there are: a program that does not know what to do with one of
/// them does not build.
#[derive(Debug)]
pub enum Found {
    /// Real Xen, and the domain that this process runs in.
    Xen(xen::Domain),
    /// The embedded hypervisor, to become a domain of.
    Embedded(Embedded),
}

impl Found {
    /// Which one it is and how it came to be there, in one line.
    #[must_use]
    pub fn how(&self) -> String {
        match self {
            Self::Xen(domain) => {
                let version = xen::about().version;
                let version = version.map(|version| format!(" {version}")).unwrap_or_default();
                format!("using Xen{version} as domain {}", domain.id())
            }
            Self::Embedded(found) => found.how.clone(),
        }
    }
}

/// An embedded hypervisor that runs. While this is held it does not end, even when it has no
/// domains.
#[derive(Debug)]
#[non_exhaustive]
pub struct Embedded {
    /// Which one it is and how it came to be there, in one line.
    pub how: String,
    place: Place,
    held: Control,
}

impl Embedded {
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

    /// Becomes one more process of the domain `id`.
    ///
    /// # Errors
    ///
    /// There is none, or the hypervisor refuses.
    pub fn enter(&self, id: DomId) -> Result<Domain, Error> {
        Domain::enter(&self.place, id)
    }

    /// The same as [`join`](Self::join), and where another domain has that name, by one that tells us apart: several of a kind
    /// of daemon may run.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join).
    pub fn join_beside(&self, spec: &DomainSpec) -> Result<Domain, Error> {
        match self.join(spec) {
            Err(Error::Config(error)) if error.value == spec.name => {
                let mut spec = spec.clone();
                spec.name = format!("{}-{}", spec.name, std::process::id());
                self.join(&spec)
            }
            joined => joined,
        }
    }
}

/// The kinds of hypervisor there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// Real Xen.
    Xen,
    /// The embedded one.
    Embedded,
}

/// Which kind this program is to use: Xen where this machine runs on it, unless the environment says
/// otherwise.
///
/// # Errors
///
/// The environment asks for what there is not.
pub fn kind() -> Result<Kind, ConfigError> {
    choose(env::var_os(HYPERVISOR_VARIABLE), xen::about::is_xen(Path::new("/")))
}

/// The hypervisor for this program; an embedded one in the usual place ([`Place::standard`]).
///
/// # Errors
///
/// The environment asks for what there is not, Xen's devices or store cannot be used, or no
/// hypervisor can be started.
pub fn hypervisor() -> Result<Found, Error> {
    match kind()? {
        Kind::Xen => Ok(Found::Xen(xen::Domain::open()?)),
        Kind::Embedded => Ok(Found::Embedded(embedded_at(&Place::standard())?)),
    }
}

/// The embedded hypervisor that runs at `place`, or one that is started there, whatever this machine
/// runs on.
///
/// # Errors
///
/// None can be started.
pub fn embedded_at(place: &Place) -> Result<Embedded, Error> {
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
            return Ok(Embedded { how, place: place.clone(), held });
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

/// What the environment wants, where it can be had.
fn choose(wanted: Option<OsString>, on_xen: bool) -> Result<Kind, ConfigError> {
    let wanted = wanted.unwrap_or_default();
    let shown = wanted.to_string_lossy();
    let problem = match (&*shown, on_xen) {
        ("embedded", _) | ("", false) => return Ok(Kind::Embedded),
        ("xen" | "", true) => return Ok(Kind::Xen),
        ("xen", false) => "this machine does not run on Xen; use embedded, or leave it unset",
        _ => "is no kind of hypervisor; use xen or embedded, or leave it unset",
    };
    Err(ConfigError::new(HYPERVISOR_VARIABLE, shown, problem))
}

/// The domain that the environment names for this program.
///
/// # Errors
///
/// It names none.
pub fn named_domain() -> Result<Option<DomId>, ConfigError> {
    chosen_domain(env::var_os(DOMAIN_VARIABLE))
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
