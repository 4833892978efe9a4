//! Dependencies point one way: devices on rings, rings on the hypervisor, nothing upward, and no
//! device on another.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::Deserialize;

/// For each of our packages, those of ours that it may depend on when it is built. What only its
/// tests need is free to point anywhere.
const MAY_USE: &[(&str, &[&str])] = &[
    ("domkit-hypervisor", &[]),
    ("domkit-ring", &["domkit-hypervisor"]),
    ("domkit-ring-uring", &["domkit-hypervisor", "domkit-ring"]),
    ("domkit-blkback", &["domkit-hypervisor", "domkit-ring", "domkit-ring-uring"]),
    ("domkit-blkfront", &["domkit-hypervisor", "domkit-ring"]),
    ("domkit-netfront", &["domkit-hypervisor", "domkit-ring"]),
    ("domkit-netback", &["domkit-hypervisor", "domkit-ring", "domkit-ring-uring"]),
    ("domkit-testbed", &["domkit-hypervisor", "domkit-ring"]),
    ("domkit-fio-engine", &["domkit-blkfront", "domkit-hypervisor"]),
    ("domkit-quickstart", &["domkit-ring-uring", "domkit-testbed"]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

fn workspace() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(testbed::programs::workspace())
        .output()
        .expect("run cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("parse metadata");
    metadata
        .packages
        .into_iter()
        .map(|package| {
            let built_with = package
                .dependencies
                .into_iter()
                .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
                .map(|dependency| dependency.name)
                .filter(|name| name.starts_with("domkit-"))
                .collect();
            (package.name, built_with)
        })
        .collect()
}

/// Every edge that is not allowed, as `user -> used`.
fn upward(workspace: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    workspace
        .iter()
        .flat_map(|(user, used)| used.iter().map(move |used| (user, used)))
        .filter(|(user, used)| {
            !allowed.get(user.as_str()).is_some_and(|list| list.contains(&used.as_str()))
        })
        .map(|(user, used)| format!("{user} -> {used}"))
        .collect()
}

#[test]
fn no_dependency_points_upward() {
    let workspace = workspace();
    assert!(workspace.len() >= MAY_USE.len(), "packages are missing: {:?}", workspace.keys());
    assert_eq!(upward(&workspace), Vec::<String>::new());
    for name in workspace.keys() {
        assert!(
            MAY_USE.iter().any(|(known, _)| known == name),
            "say in this test what {name} may depend on"
        );
    }
}

#[test]
fn an_upward_dependency_is_seen() {
    let mut workspace = workspace();
    workspace.get_mut("domkit-ring").expect("the ring").insert("domkit-blkback".into());
    assert_eq!(upward(&workspace), ["domkit-ring -> domkit-blkback"]);
}

#[test]
fn dependencies_among_ours_are_allowed_in_one_direction_only() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    for (user, list) in &allowed {
        for used in *list {
            assert!(!allowed[used].contains(user), "{user} and {used} allow each other");
        }
    }
}
