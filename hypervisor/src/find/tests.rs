//! What the environment and the machine's files decide.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::{Kind, choose, chosen_domain, program};
use crate::DomId;

#[test]
fn xen_is_preferred_unless_told_otherwise() {
    assert_eq!(choose(None, true).unwrap(), Kind::Xen);
    assert_eq!(choose(Some("".into()), true).unwrap(), Kind::Xen);
    assert_eq!(choose(Some("xen".into()), true).unwrap(), Kind::Xen);
    assert_eq!(choose(Some("embedded".into()), true).unwrap(), Kind::Embedded);
    assert_eq!(choose(Some("embedded".into()), false).unwrap(), Kind::Embedded);
    assert_eq!(choose(Some("".into()), false).unwrap(), Kind::Embedded);
    assert_eq!(choose(None, false).unwrap(), Kind::Embedded);
}

#[test]
fn a_kind_that_is_not_there_is_refused() {
    for (kind, xen) in [("xen", false), ("kvm", true), ("kvm", false), ("Embedded", false)] {
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
