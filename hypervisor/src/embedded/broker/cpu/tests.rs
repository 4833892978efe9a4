//! What is written to the groups' files, in a tree of plain files; and how numbers are turned.

use std::fs;
use std::path::Path;

use super::Shares;
use super::subtree::{Subtree, cpu_max, cpu_weight, mount_of, own_group};

fn tree(controllers: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
    dir
}

fn content(group: &Path, file: &str) -> String {
    fs::read_to_string(group.join(file)).unwrap()
}

#[test]
fn weights_keep_their_ratios_and_stay_in_range() {
    let want = [(1, 1), (128, 50), (256, 100), (512, 200), (25600, 10000), (65535, 10000)];
    for (weight, expected) in want {
        assert_eq!(cpu_weight(weight), expected, "{weight}");
    }
}

#[test]
fn the_lower_of_cap_and_vcpus_counts() {
    for (cap, vcpus, expected) in [
        (0, 1, "100000 100000"),
        (0, 4, "400000 100000"),
        (50, 1, "50000 100000"),
        (150, 2, "150000 100000"),
        (300, 2, "200000 100000"),
        (1, 1, "1000 100000"),
    ] {
        assert_eq!(cpu_max(cap, vcpus), expected, "cap {cap}, {vcpus} vCPUs");
    }
}

#[test]
fn a_group_gets_what_its_domain_was_promised() {
    let dir = tree("cpu io memory");
    let subtree = Subtree::make_in(dir.path(), dir.path()).unwrap();
    assert!(subtree.missing().is_empty(), "{:?}", subtree.missing());
    let group = subtree.add("dom1").unwrap();
    group.set_cpu(512, 25, 2).unwrap();
    assert_eq!(group.set_memory(8, false).unwrap(), None);
    group.freeze(true).unwrap();
    assert_eq!(content(group.path(), "cpu.weight"), "200");
    assert_eq!(content(group.path(), "cpu.max"), "25000 100000");
    assert_eq!(content(group.path(), "memory.max"), "8192");
    assert_eq!(content(group.path(), "cgroup.freeze"), "1");
    fs::write(group.path().join("cpu.stat"), "usage_usec 1500\nuser_usec 1\n").unwrap();
    assert_eq!(group.cpu_ns(), 1_500_000);
}

#[test]
fn a_limit_below_what_is_used_is_refused_and_not_written() {
    let dir = tree("memory");
    let subtree = Subtree::make_in(dir.path(), dir.path()).unwrap();
    let group = subtree.add("dom1").unwrap();
    group.set_memory(100, false).unwrap();
    fs::write(group.path().join("memory.current"), "71680\n").unwrap();
    assert_eq!(group.set_memory(60, true).unwrap(), Some(70));
    assert_eq!(content(group.path(), "memory.max"), "102400");
    assert_eq!(content(group.path(), "memory.high"), "max");
    assert_eq!(group.set_memory(70, true).unwrap(), None);
    assert_eq!(content(group.path(), "memory.max"), "71680");
}

#[test]
fn what_is_missing_is_named_and_the_rest_goes_on() {
    let dir = tree("memory");
    let subtree = Subtree::make_in(dir.path(), dir.path()).unwrap();
    let [missing] = subtree.missing() else { panic!("{:?}", subtree.missing()) };
    assert!(missing.starts_with("CPU weight and cap: the cpu controller"), "{missing}");
    assert!(missing.contains(dir.path().to_str().unwrap()), "{missing}");
    let group = subtree.add("dom1").unwrap();
    group.set_cpu(1, 0, 1).unwrap();
    assert!(!group.path().join("cpu.weight").exists());
    group.set_memory(4, false).unwrap();
    assert_eq!(content(group.path(), "memory.max"), "4096");
}

#[test]
fn alone_in_its_group_the_broker_moves_down_and_stays_in_its_part() {
    let dir = tree("");
    let own = dir.path().join("unit");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("cgroup.type"), "domain\n").unwrap();
    fs::write(own.join("cgroup.controllers"), "cpu memory\n").unwrap();
    fs::write(own.join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
    let subtree = Subtree::make_in(dir.path(), &own).unwrap();
    assert!(subtree.missing().is_empty());
    let below = own.join(format!("domkit-hypervisor-{}", std::process::id()));
    assert_eq!(content(&below, "cgroup.procs"), std::process::id().to_string());
    assert!(subtree.add("dom1").unwrap().path().starts_with(&own));
}

#[test]
fn company_in_a_group_that_is_not_ours_is_an_error_with_a_way_out() {
    let dir = tree("");
    fs::write(dir.path().join("cgroup.type"), "domain\n").unwrap();
    let own = dir.path().join("session");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("cgroup.type"), "domain\n").unwrap();
    fs::write(own.join("cgroup.procs"), format!("1\n{}\n", std::process::id())).unwrap();
    let error = Subtree::make_in(dir.path(), &own).unwrap_err();
    assert!(error.contains("Delegate=yes"), "{error}");
    assert!(error.contains(own.to_str().unwrap()), "{error}");
}

#[test]
fn the_tree_is_found_where_it_is_mounted() {
    let mounts = "24 1 0:22 / /proc rw - proc proc rw\n\
                  30 1 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                  31 1 0:27 /sub /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
    let (point, root) = mount_of(mounts).unwrap();
    assert_eq!((point.to_str().unwrap(), root.as_str()), ("/sys/fs/cgroup", "/sub"));
    assert_eq!(mount_of("24 1 0:22 / /proc rw - proc proc rw\n"), None);
    assert_eq!(own_group("4:memory:/x\n0::/user.slice\n"), Some("/user.slice"));
    assert_eq!(own_group("4:memory:/x\n"), None);
}

#[test]
fn what_cannot_be_enforced_is_there_to_be_read() {
    assert_eq!(Shares::without_groups().unenforced().len(), 1);
}
