//! What is to be served at a device that a toolstack made.
//!
//! libxl writes, in the backend's directory, `params` (the image, after its format where the kind of
//! device has formats: `aio:/path`), `mode` (`r`, `w`), `device-type` (`disk`, `cdrom`), `removable`,
//! `discard-enable`, `script`, and once a script made a block device of it, `physical-device-path`.
//! XenServer's toolstack has the image in `tapdisk-params`.
//!
//! Before: `hypervisor::backend::adopt`. After: the image. Trust: these keys are the toolstack's, and what is wrong
//! with them is a [`ConfigError`] for whoever wrote the guest's configuration; of the frontend
//! nothing is read here. Source: `libxl_disk.c` (`device_disk_add`), RELEASE-4.17 and RELEASE-4.19.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use hypervisor::backend::{Adopted, Hotplug};
use hypervisor::store::Store;
use hypervisor::{ConfigError, Error};

use crate::device::queues::Manner;

/// The longest path that means anything.
const LONGEST: usize = 4096;

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

impl Wish {
    /// What is to be served at `device`. `None` where that is not known before a script said so.
    ///
    /// # Errors
    ///
    /// What the toolstack wrote cannot be served, or the store is gone.
    pub fn read<S>(store: &S, device: &Adopted) -> Result<Option<Self>, Error>
    where
        S: Store + ?Sized,
    {
        let directory = &device.pair.back.directory;
        let read = |key: &str| device.text(store, key);
        let flag = |key: &str| Ok::<_, Error>(read(key)?.map(|value| value != "0"));
        let params = match device.bytes(store, "tapdisk-params")? {
            Some(params) => Some(params),
            None => device.bytes(store, "params")?,
        };
        let made = device.bytes(store, "physical-device-path")?.map(into_path);
        let image = match image(&params.unwrap_or_default(), directory) {
            // What only a script understands, it may have made something of.
            Err(problem) if device.hotplug == Hotplug::Foreign => match made {
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
        Ok(Some(Self { image, read_only, manner }))
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
}
