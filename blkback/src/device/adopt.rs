//! A device that a toolstack made: where it is, and what is to be served there.
//!
//! libxl writes, in the backend's directory, `params` (the image, after its format where the kind of
//! device has formats: `aio:/path`), `mode` (`r`, `w`), `device-type` (`disk`, `cdrom`), `removable`,
//! `discard-enable`, `script`, and once a script made a block device of it, `physical-device-path`.
//! XenServer's toolstack has the image in `tapdisk-params`.
//!
//! Before: the store. After: `serve`. Trust: these keys are the toolstack's, and what is wrong
//! with them is a [`ConfigError`] for whoever wrote the guest's configuration; of the frontend
//! nothing is read here. Source: `libxl_disk.c` (`device_disk_add`), RELEASE-4.17 and RELEASE-4.19.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hypervisor::store::{Store, StoreError, Transaction};
use hypervisor::xenbus::Pair;
use hypervisor::{ConfigError, DomId, Error};

use crate::device::guest::{self, Guest};
use crate::device::hotplug::Hotplug;
use crate::device::queues::Manner;
use crate::vdev::Vdev;

/// The longest path or key that means anything.
const LONGEST: usize = 4096;

/// Where a device is: a backend's directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    /// The backend's domain.
    pub me: DomId,
    /// The kind of backend: `vbd`, `vbd3`.
    pub kind: String,
    /// The frontend's domain.
    pub front: DomId,
    /// The device's number.
    pub number: u32,
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { me, kind, front, number } = self;
        write!(f, "/local/domain/{me}/backend/{kind}/{front}/{number}")
    }
}

impl FromStr for Spot {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let parse = || {
            let rest = text.strip_prefix("/local/domain/")?;
            let (me, rest) = rest.split_once("/backend/")?;
            let mut rest = rest.split('/');
            let (kind, front, number) = (rest.next()?, rest.next()?, rest.next()?);
            let known = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric());
            let spot = Self {
                me: DomId::new(me.parse().ok()?)?,
                kind: kind.to_owned(),
                front: DomId::new(front.parse().ok()?)?,
                number: number.parse().ok()?,
            };
            (known && rest.next().is_none() && spot.to_string() == text).then_some(spot)
        };
        parse().ok_or_else(|| {
            let why = "must be a backend's directory, as /local/domain/0/backend/vbd3/5/51712";
            ConfigError::new("--device", text, why)
        })
    }
}

impl Spot {
    /// A short name, for files: `vbd3-5-51712`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{}-{}", self.kind, self.front, self.number)
    }
}

/// A device that a toolstack made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Adopted {
    /// Where it is.
    pub spot: Spot,
    /// Both ends' directories.
    pub pair: Pair,
    /// Who has it.
    pub guest: Guest,
    /// The disk's place in the guest.
    pub vdev: Vdev,
    /// Who prepares it beside us.
    pub hotplug: Hotplug,
}

/// What is to be served at a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wish {
    /// The image.
    pub image: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What the disk is to look like.
    pub manner: Manner,
}

impl Adopted {
    /// The device at `spot`; `None` where there is none.
    ///
    /// # Errors
    ///
    /// Its keys do not fit its place, or the store is gone.
    pub fn find<S: Store + ?Sized>(store: &S, spot: &Spot) -> Result<Option<Self>, Error> {
        let directory = spot.to_string();
        let Some(front) = text(store, &directory, "frontend")? else { return Ok(None) };
        let home = format!("/local/domain/{}/device/", spot.front);
        if !front.starts_with(&home) {
            let why =
                format!("is no device of domain {}, to whom this backend belongs", spot.front);
            return Err(ConfigError::new(format!("{directory}/frontend"), front, why).into());
        }
        let mut pair = Pair::new(&spot.kind, spot.number, spot.front, spot.me);
        pair.front.directory = front;
        let vdev = spot.number.to_string().parse()?;
        let script = text(store, &directory, "script")?;
        // A driver domain may not be let read others' names.
        let name = guest::name(store, spot.front)?;
        let name = name.unwrap_or_else(|| format!("domain-{}", spot.front));
        let guest = Guest { id: spot.front, name };
        let hotplug = Hotplug::by_script(script.as_deref());
        Ok(Some(Self { spot: spot.clone(), pair, guest, vdev, hotplug }))
    }

    /// What is to be served here. `None` where that is not known before a script said so.
    ///
    /// # Errors
    ///
    /// What the toolstack wrote cannot be served, or the store is gone.
    pub fn wish<S: Store + ?Sized>(&self, store: &S) -> Result<Option<Wish>, Error> {
        let directory = &self.pair.back.directory;
        let read = |key: &str| text(store, directory, key);
        let flag = |key: &str| Ok::<_, Error>(read(key)?.map(|value| value != "0"));
        let params = match bytes(store, directory, "tapdisk-params")? {
            Some(params) => Some(params),
            None => bytes(store, directory, "params")?,
        };
        let made = bytes(store, directory, "physical-device-path")?.map(into_path);
        let image = match image(&params.unwrap_or_default(), directory) {
            // What only a script understands, it may have made something of.
            Err(problem) if self.hotplug == Hotplug::Foreign => match made {
                Some(made) => made,
                None if Hotplug::is_awaited(&read("hotplug-status")?) => return Ok(None),
                None => return Err(problem.into()),
            },
            image => image?,
        };
        let read_only = !read("mode")?.is_some_and(|mode| mode.contains('w'));
        let manner = Manner {
            cdrom: read("device-type")?.as_deref() == Some("cdrom"),
            removable: flag("removable")?.unwrap_or(false),
            keeps_all: flag("discard-enable")? == Some(false),
        };
        Ok(Some(Wish { image, read_only, manner }))
    }
}

/// The image that `params` of a raw disk names: a path, that of a device beneath `/dev`, or either
/// of them after a format.
fn image(params: &[u8], directory: &str) -> Result<PathBuf, ConfigError> {
    let shown = String::from_utf8_lossy(params).into_owned();
    let refuse =
        |why: &'static str| Err(ConfigError::new(format!("{directory}/params"), &shown, why));
    let mut path = params;
    if !path.starts_with(b"/")
        && let Some(colon) = path.iter().position(|byte| *byte == b':')
    {
        let (format, rest) = path.split_at(colon);
        path = rest.strip_prefix(b":").unwrap_or(rest);
        match format {
            b"aio" | b"raw" | b"file" | b"phy" | b"tap" | b"block" => {}
            b"vhd" | b"qcow" | b"qcow2" | b"qed" | b"vmdk" | b"vdi" => {
                return refuse("only raw images are served; convert it, and use format=raw");
            }
            _ => return refuse("not the path of a raw image or block device; use format=raw"),
        }
        // tap:aio:/path, of older configurations.
        if path.starts_with(b"aio:") {
            path = path.strip_prefix(b"aio:").unwrap_or(path);
        }
    }
    if path.is_empty() {
        return refuse("the drive is empty, and only drives with an image are served");
    }
    if path.len() > LONGEST || path.contains(&0) {
        return refuse("no path can be like this");
    }
    let path = into_path(path.to_vec());
    Ok(if path.is_absolute() { path } else { Path::new("/dev").join(path) })
}

fn into_path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

fn bytes<S>(store: &S, directory: &str, key: &str) -> Result<Option<Vec<u8>>, Error>
where
    S: Store + ?Sized,
{
    match store.read(Transaction::NONE, &format!("{directory}/{key}")) {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn text<S>(store: &S, directory: &str, key: &str) -> Result<Option<String>, Error>
where
    S: Store + ?Sized,
{
    let Some(value) = bytes(store, directory, key)? else { return Ok(None) };
    match String::from_utf8(value) {
        Ok(text) if text.len() <= LONGEST => Ok(Some(text)),
        Ok(_) | Err(_) => {
            let why = "is not text of a sane length";
            Err(ConfigError::new(format!("{directory}/{key}"), "...", why).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(params: &str) -> Result<String, String> {
        let image = image(params.as_bytes(), "/local/domain/0/backend/vbd3/5/51712");
        image.map(|path| path.display().to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn images_in_every_form_that_toolstacks_write() {
        for (params, path) in [
            ("aio:/images/a.img", "/images/a.img"),
            ("raw:/images/a.img", "/images/a.img"),
            ("/images/a:b.img", "/images/a:b.img"),
            ("aio:/images/a:b.img", "/images/a:b.img"),
            ("file:/images/a.img", "/images/a.img"),
            ("phy:/dev/vg0/a", "/dev/vg0/a"),
            ("phy:vg0/a", "/dev/vg0/a"),
            ("vg0/a", "/dev/vg0/a"),
            ("tap:aio:/images/a.img", "/images/a.img"),
            ("/images/\u{e4}.img", "/images/\u{e4}.img"),
        ] {
            assert_eq!(named(params).as_deref(), Ok(path), "{params}");
        }
    }

    #[test]
    fn what_is_no_raw_image_is_refused_with_what_to_do() {
        for (params, word) in [
            ("vhd:/images/a.vhd", "format=raw"),
            ("qcow2:/images/a.qcow2", "format=raw"),
            ("nbd:host:10809", "format=raw"),
            ("aio:", "empty"),
            ("", "empty"),
            ("aio:/a\0b", "no path"),
        ] {
            let error = named(params).unwrap_err();
            assert!(error.contains(word) && error.contains("backend/vbd3"), "{error}");
        }
    }

    #[test]
    fn a_device_is_named_by_its_directory_and_nothing_else() {
        let text = "/local/domain/0/backend/vbd3/5/51712";
        let spot: Spot = text.parse().unwrap();
        assert_eq!((spot.to_string().as_str(), spot.name().as_str()), (text, "vbd3-5-51712"));
        for wrong in [
            "",
            "backend/vbd3/5/51712",
            "/local/domain/0/backend/vbd3/5",
            "/local/domain/0/backend/vbd3/5/51712/",
            "/local/domain/0/backend/vbd3/5/51712/state",
            "/local/domain/0/backend//5/51712",
            "/local/domain/0/backend/../5/51712",
            "/local/domain/0/backend/vbd3/05/51712",
            "/local/domain/99999/backend/vbd3/5/51712",
        ] {
            assert!(wrong.parse::<Spot>().is_err(), "{wrong}");
        }
    }
}
