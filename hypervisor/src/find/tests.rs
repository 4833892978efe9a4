//! What the environment and the machine's files decide.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::{choose, chosen_domain, on_xen, program};
use crate::DomId;

#[test]
fn xen_is_seen_and_refused_unless_told_otherwise() {
    let root = tempfile::tempdir().unwrap();
    assert!(!on_xen(root.path()));
    fs::create_dir_all(root.path().join("sys/hypervisor")).unwrap();
    fs::write(root.path().join("sys/hypervisor/type"), "kvm\n").unwrap();
    assert!(!on_xen(root.path()));
    fs::write(root.path().join("sys/hypervisor/type"), "xen\n").unwrap();
    assert!(on_xen(root.path()));
    let other = tempfile::tempdir().unwrap();
    fs::create_dir_all(other.path().join("proc/xen")).unwrap();
    fs::write(other.path().join("proc/xen/capabilities"), "control_d\n").unwrap();
    assert!(on_xen(other.path()));

    let error = choose(None, true).unwrap_err().to_string();
    assert!(error.contains("this machine runs on Xen"), "{error}");
    assert!(error.contains("DOMKIT_HYPERVISOR=embedded"), "{error}");
    choose(Some("embedded".into()), true).unwrap();
    choose(Some("embedded".into()), false).unwrap();
    choose(Some("".into()), false).unwrap();
    choose(None, false).unwrap();
}

#[test]
fn a_kind_that_is_not_there_is_refused() {
    for (kind, xen) in [("xen", true), ("xen", false), ("kvm", false), ("Embedded", false)] {
        let error = choose(Some(kind.into()), xen).unwrap_err().to_string();
        assert!(error.starts_with(&format!("DOMKIT_HYPERVISOR '{kind}'")), "{error}");
    }
}

#[test]
fn the_domain_to_enter_is_a_number() {
    assert_eq!(chosen_domain(None).unwrap(), None);
    assert_eq!(chosen_domain(Some("".into())).unwrap(), None);
    assert_eq!(chosen_domain(Some("7".into())).unwrap(), DomId::new(7));
    for bad in ["0", "-1", "x", "32752", "70000", "7 "] {
        let error = chosen_domain(Some(bad.into())).unwrap_err().to_string();
        assert!(error.contains("DOMKIT_DOMAIN"), "{bad}: {error}");
    }
}

#[test]
fn the_tool_is_looked_for_beside_above_and_in_the_path() {
    let top = tempfile::tempdir().unwrap();
    let deps = top.path().join("deps");
    let elsewhere = top.path().join("bin");
    fs::create_dir_all(&deps).unwrap();
    fs::create_dir_all(&elsewhere).unwrap();
    let own = Some(deps.join("a-test"));
    let path = Some(std::ffi::OsString::from(format!("relative:{}", elsewhere.display())));
    let find = || program(own.clone(), path.clone());

    let error = find().unwrap_err().to_string();
    assert!(error.contains(deps.to_str().unwrap()), "{error}");
    assert!(error.contains("cargo build"), "{error}");
    // In the order of rising preference; a file that cannot be run is passed over.
    for folder in [&elsewhere, top.path(), &deps] {
        let tool = folder.join("hypervisor");
        fs::write(&tool, "").unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o644)).unwrap();
        assert_ne!(find().ok(), Some(tool.clone()));
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find().unwrap(), tool);
    }
}
