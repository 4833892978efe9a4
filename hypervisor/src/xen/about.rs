//! What can be known of this Xen and of our domain without asking the hypervisor itself.
//!
//! Source: the kernel's `Documentation/ABI/stable/sysfs-hypervisor-xen`, xenfs, and the parameters
//! of the modules `xen_gntdev` and `xen_gntalloc`.

use std::fs;
use std::path::Path;

use super::node::Node;

/// Where the kernel says what it runs on.
const HYPERVISOR: &str = "/sys/hypervisor";
/// What our domain may do, where xenfs is mounted.
const CAPABILITIES: &str = "/proc/xen/capabilities";

/// What is known of Xen and of the kernel's Xen devices.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct About {
    /// Xen's version, such as `4.17.5`.
    pub version: Option<String>,
    /// Whether this is a control domain; not known where xenfs is not mounted.
    pub control: Option<bool>,
    /// How this domain is virtualized: `PV`, `PVH` or `HVM`.
    pub guest_type: Option<String>,
    /// The most pages in one mapping (gntdev), all processes together before Linux 5.6.
    pub gntdev_limit: Option<u64>,
    /// The most pages granted by all processes together (gntalloc).
    pub gntalloc_limit: Option<u64>,
    /// Device nodes that are not there.
    pub missing: Vec<Node>,
}

/// Looks.
#[must_use]
pub fn about() -> About {
    let root = Path::new("/");
    About {
        version: version(root),
        control: capabilities(root).map(|list| lists_control(&list)),
        guest_type: word(root, &format!("{HYPERVISOR}/guest_type")),
        gntdev_limit: limit(root, "xen_gntdev"),
        gntalloc_limit: limit(root, "xen_gntalloc"),
        missing: Node::ALL.into_iter().filter(|node| !Path::new(node.path).exists()).collect(),
    }
}

/// Whether the machine whose root directory is `root` runs on Xen.
pub(crate) fn is_xen(root: &Path) -> bool {
    word(root, &format!("{HYPERVISOR}/type")).is_some_and(|kind| kind == "xen")
        || within(root, CAPABILITIES).exists()
}

/// Whether this is a control domain, as far as xenfs says.
pub(super) fn is_control() -> bool {
    capabilities(Path::new("/")).is_some_and(|list| lists_control(&list))
}

/// Xen's version, in one word.
pub(crate) fn version(root: &Path) -> Option<String> {
    let part = |name| word(root, &format!("{HYPERVISOR}/version/{name}"));
    let (major, minor) = (part("major")?, part("minor")?);
    // Begins with its own dot.
    Some(format!("{major}.{minor}{}", part("extra").unwrap_or_default()))
}

fn capabilities(root: &Path) -> Option<String> {
    fs::read_to_string(within(root, CAPABILITIES)).ok()
}

fn lists_control(list: &str) -> bool {
    list.split_whitespace().any(|word| word == "control_d")
}

fn limit(root: &Path, module: &str) -> Option<u64> {
    word(root, &format!("/sys/module/{module}/parameters/limit"))?.parse().ok()
}

fn word(root: &Path, path: &str) -> Option<String> {
    Some(fs::read_to_string(within(root, path)).ok()?.trim().to_owned())
}

fn within(root: &Path, path: &str) -> std::path::PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = within(root, path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn xen_is_seen_by_its_type_or_its_file_system() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert!(!is_xen(root));
        put(root, "/sys/hypervisor/type", "kvm\n");
        assert!(!is_xen(root));
        put(root, "/sys/hypervisor/type", "xen\n");
        assert!(is_xen(root));
        let other = tempfile::tempdir().unwrap();
        put(other.path(), CAPABILITIES, "");
        assert!(is_xen(other.path()));
    }

    #[test]
    fn the_version_is_put_together() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(version(root), None);
        put(root, "/sys/hypervisor/version/major", "4\n");
        put(root, "/sys/hypervisor/version/minor", "17\n");
        assert_eq!(version(root).unwrap(), "4.17");
        put(root, "/sys/hypervisor/version/extra", ".5\n");
        assert_eq!(version(root).unwrap(), "4.17.5");
    }

    #[test]
    fn a_control_domain_is_told_by_its_capabilities() {
        assert!(lists_control("control_d\n"));
        assert!(!lists_control("\n"));
        assert!(!lists_control("control_domain"));
    }
}
