//! What libxl does in the store for a disk or a network interface, done by a test where there is no
//! libxl.
//!
//! Keys, their order, their values and who may read them are those of `libxl_disk.c`
//! (`device_disk_add`), `libxl_nic.c` (`libxl__set_xenstore_nic`), `libxl_device.c` (`libxl__device_generic_add`,
//! `libxl__initiate_device_generic_remove`) and `libxl_linux.c` (`get_hotplug_env`): RELEASE-4.17 for
//! kind `vbd`, RELEASE-4.19, the first that has it, for `vbd3`. The scripts are run, as there, at
//! InitWait. Times are not: the machine may be slow and busy.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hypervisor::DomId;
use hypervisor::store::{Permission, Store as _, StoreError, Transaction, transact};
use hypervisor::xenbus::State;
use hypervisor::xenstore::Client;

use crate::scene::{PATIENCE, to_its_end, until};

/// A toolstack at a store.
pub struct Libxl {
    store: Client,
    socket: PathBuf,
}

/// A disk as a guest's configuration has it.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// `vbd` or `vbd3`: `backendtype=phy` or `tap`.
    pub kind: &'static str,
    /// The disk's number.
    pub number: u32,
    /// Its name.
    pub vdev: &'static str,
    /// `target`, with its format where the kind has one.
    pub params: String,
    /// `access=rw`.
    pub writable: bool,
    /// `devtype=cdrom`.
    pub cdrom: bool,
    /// `discard`.
    pub discard: bool,
    /// `script`, as a full path.
    pub script: Option<PathBuf>,
}

impl DiskSpec {
    /// `xvda` at `image`, writable, of kind `vbd3`, without a script.
    #[must_use]
    pub fn new(image: &str) -> Self {
        Self {
            kind: "vbd3",
            number: 51712,
            vdev: "xvda",
            params: format!("aio:{image}"),
            writable: true,
            cdrom: false,
            discard: true,
            script: None,
        }
    }
}

/// A network interface as a guest's configuration has it.
#[derive(Clone, Debug)]
pub struct VifSpec {
    /// The interface's number.
    pub number: u32,
    /// `mac`.
    pub mac: String,
    /// `bridge`.
    pub bridge: Option<String>,
    /// `rate`, as it stands in the store.
    pub rate: Option<String>,
    /// `ip`.
    pub ip: Option<String>,
    /// `vifname`.
    pub name: Option<String>,
    /// `script`, as a full path. It is not run here.
    pub script: Option<PathBuf>,
}

impl VifSpec {
    /// The first interface, on no bridge and without a script.
    #[must_use]
    pub fn new(mac: &str) -> Self {
        let (bridge, rate, ip, name, script) = (None, None, None, None, None);
        Self { number: 0, mac: mac.to_owned(), bridge, rate, ip, name, script }
    }
}

/// A disk or an interface that was made.
#[derive(Clone, Debug)]
pub struct Device {
    /// The backend's directory.
    pub back: String,
    /// The frontend's directory.
    pub front: String,
    kind: &'static str,
    script: Option<PathBuf>,
}

impl Libxl {
    /// The toolstack of the machine whose store listens at `socket`.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub fn new(socket: PathBuf) -> Result<Self> {
        Ok(Self { store: Client::connect(&socket)?, socket })
    }

    /// The number of the domain that is called `name`, waited for.
    ///
    /// # Errors
    ///
    /// There is none in all that time.
    pub fn domain(&self, name: &str) -> Result<DomId> {
        let mut found = None;
        until(&format!("domain {name} is there"), || {
            let all = match self.store.list(Transaction::NONE, "/local/domain") {
                // Nobody has come yet.
                Err(StoreError::Missing(_)) => return Ok(false),
                all => all?,
            };
            for id in all {
                if self.get(&format!("/local/domain/{id}/name"))?.as_deref() == Some(name) {
                    found = id.parse().ok().and_then(DomId::new);
                }
            }
            Ok(found.is_some())
        })?;
        found.context("a domain's number")
    }

    /// What stands at `path`.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn get(&self, path: &str) -> Result<Option<String>> {
        match self.store.read(Transaction::NONE, path) {
            Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            Err(StoreError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes `value` at `path`.
    ///
    /// # Errors
    ///
    /// The store refuses or is gone.
    pub fn set(&self, path: &str, value: &str) -> Result<()> {
        Ok(self.store.write(Transaction::NONE, path, value.as_bytes())?)
    }

    /// The state at an end's directory.
    ///
    /// # Errors
    ///
    /// The store is gone.
    pub fn state(&self, directory: &str) -> Result<State> {
        let value = self.get(&format!("{directory}/state"))?;
        Ok(value.map_or(State::Unknown, |value| State::parse(value.as_bytes())))
    }

    /// Writes both directories of an interface, as the first step of attaching it.
    ///
    /// # Errors
    ///
    /// The store refuses or is gone.
    pub fn make_vif(&self, back: DomId, front: DomId, spec: &VifSpec) -> Result<Device> {
        let number = spec.number;
        let device = Device {
            back: format!("/local/domain/{back}/backend/vif/{front}/{number}"),
            front: format!("/local/domain/{front}/device/vif/{number}"),
            kind: "vif",
            // Scripts need the host's interfaces: a test does what they do where it has those.
            script: None,
        };
        let mut backs = vec![
            ("frontend", device.front.clone()),
            ("frontend-id", front.to_string()),
            ("online", "1".to_owned()),
            ("state", "1".to_owned()),
        ];
        let script = spec.script.as_ref().map(|path| path.display().to_string());
        for (key, value) in [
            ("script", &script),
            ("rate", &spec.rate),
            ("bridge", &spec.bridge),
            ("vifname", &spec.name),
            ("ip", &spec.ip),
        ] {
            backs.extend(value.clone().map(|value| (key, value)));
        }
        backs.extend([
            ("mac", spec.mac.clone()),
            ("handle", number.to_string()),
            ("type", "vif".into()),
        ]);
        let fronts = [
            ("backend", device.back.clone()),
            ("backend-id", back.to_string()),
            ("state", "1".into()),
            ("handle", number.to_string()),
            ("trusted", "1".into()),
            ("mac", spec.mac.clone()),
        ];
        self.make_both(&device, (back, front), &fronts, &backs)?;
        Ok(device)
    }

    fn make_both(
        &self,
        device: &Device,
        (back, front): (DomId, DomId),
        fronts: &[(&str, String)],
        backs: &[(&str, String)],
    ) -> Result<(), StoreError> {
        transact(&self.store, |within| {
            self.fill(within, &device.front, (front, back), fronts)?;
            self.fill(within, &device.back, (back, front), backs)
        })
    }

    /// Writes both directories of a disk, as the first step of attaching it.
    ///
    /// # Errors
    ///
    /// The store refuses or is gone.
    pub fn make(&self, back: DomId, front: DomId, spec: &DiskSpec) -> Result<Device> {
        let DiskSpec { kind, number, .. } = spec;
        let disk = Device {
            back: format!("/local/domain/{back}/backend/{kind}/{front}/{number}"),
            front: format!("/local/domain/{front}/device/vbd/{number}"),
            kind,
            script: spec.script.clone(),
        };
        let device = if spec.cdrom { "cdrom" } else { "disk" };
        let flag = |on: bool| u8::from(on).to_string();
        let mut backs = vec![("frontend", disk.front.clone()), ("params", spec.params.clone())];
        if let Some(script) = &spec.script {
            backs.push(("script", script.display().to_string()));
        }
        backs.extend([
            ("frontend-id", front.to_string()),
            ("online", flag(true)),
            ("removable", flag(spec.cdrom)),
            ("bootable", flag(true)),
            ("state", "1".into()),
            ("dev", spec.vdev.into()),
            ("type", if *kind == "vbd3" { "vbd3" } else { "phy" }.into()),
            ("mode", if spec.writable { "w" } else { "r" }.into()),
            ("device-type", device.into()),
            ("discard-enable", flag(spec.discard)),
            ("specification", "xen".into()),
        ]);
        let fronts = [
            ("backend", disk.back.clone()),
            ("backend-id", back.to_string()),
            ("state", "1".into()),
            ("virtual-device", number.to_string()),
            ("device-type", device.into()),
            ("trusted", flag(true)),
            ("protocol", "x86_64-abi".into()),
        ];
        self.make_both(&disk, (back, front), &fronts, &backs)?;
        Ok(disk)
    }

    fn fill(
        &self,
        within: Transaction,
        directory: &str,
        (owner, reader): (DomId, DomId),
        keys: &[(&str, String)],
    ) -> Result<(), StoreError> {
        let permissions = [
            Permission { domain: owner, read: false, write: false },
            Permission { domain: reader, read: true, write: false },
        ];
        self.store.remove(within, directory)?;
        self.store.make(within, directory)?;
        self.store.set_permissions(within, directory, &permissions)?;
        for (key, value) in keys {
            self.store.write(within, &format!("{directory}/{key}"), value.as_bytes())?;
            self.store.set_permissions(within, &format!("{directory}/{key}"), &permissions)?;
        }
        Ok(())
    }

    /// Makes a disk and waits for its backend, as `xl block-attach` does.
    ///
    /// # Errors
    ///
    /// The backend does not answer, or the script fails, and then with its words.
    pub fn attach(&self, back: DomId, front: DomId, spec: &DiskSpec) -> Result<Device> {
        let disk = self.make(back, front, spec)?;
        self.reaches(&disk.back, State::InitWait)?;
        let output = self.script(&disk, "add")?;
        if let Some(output) = output
            && !output.status.success()
        {
            let words = self.get(&format!("{}/hotplug-error", disk.back))?.unwrap_or_default();
            self.detach(&disk)?;
            bail!("script: {words}");
        }
        Ok(disk)
    }

    /// Waits for a state that holds, or held and led on to Connected.
    ///
    /// # Errors
    ///
    /// It never does.
    pub fn reaches(&self, directory: &str, state: State) -> Result<()> {
        until(&format!("{directory} is {state}"), || {
            let now = self.state(directory)?;
            Ok(now == state || now == State::Connected)
        })
    }

    /// Takes a device away and waits for its backend, as `xl block-detach` and `xl network-detach` do.
    ///
    /// # Errors
    ///
    /// The backend does not close.
    pub fn detach(&self, disk: &Device) -> Result<()> {
        transact(&self.store, |within| {
            self.store.write(within, &format!("{}/online", disk.back), b"0")?;
            let state = self.store.read(within, &format!("{}/state", disk.back))?;
            if state != b"6" {
                self.store.write(within, &format!("{}/state", disk.back), b"5")?;
            }
            Ok::<(), StoreError>(())
        })?;
        until(
            &format!("{} is closed", disk.back),
            || Ok(self.state(&disk.back)? == State::Closed),
        )?;
        self.script(disk, "remove")?;
        self.forget(disk)
    }

    /// Removes a device of a guest that is destroyed: its end first, with no word to it.
    ///
    /// # Errors
    ///
    /// The backend does not close.
    pub fn destroy(&self, disk: &Device) -> Result<()> {
        self.store.remove(Transaction::NONE, &disk.front)?;
        self.detach(disk)
    }

    fn forget(&self, disk: &Device) -> Result<()> {
        transact(&self.store, |within| {
            for directory in [&disk.front, &disk.back] {
                self.store.remove(within, directory)?;
            }
            Ok::<(), StoreError>(())
        })?;
        // As libxl__xs_path_cleanup: parents go with their last child.
        if let Some((parent, _)) = disk.back.rsplit_once('/')
            && self.store.list(Transaction::NONE, parent).is_ok_and(|left| left.is_empty())
        {
            self.store.remove(Transaction::NONE, parent)?;
        }
        Ok(())
    }

    fn script(&self, disk: &Device, action: &str) -> Result<Option<Output>> {
        let Some(script) = &disk.script else { return Ok(None) };
        let mut command = Command::new(script);
        command
            .arg(action)
            .env("script", script)
            .env("XENBUS_TYPE", disk.kind)
            // Relative to domain 0's home there; the embedded hypervisor's backend has another.
            .env("XENBUS_PATH", &disk.back)
            .env("XENBUS_BASE_PATH", "backend")
            .env("XENSTORED_PATH", &self.socket);
        let limit = PATIENCE.max(Duration::from_secs(40));
        to_its_end(command, limit).map(Some)
    }
}
