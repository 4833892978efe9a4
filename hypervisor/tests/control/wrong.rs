//! Input that cannot be done: a clear message and the exit status that says whose fault it is.

use std::os::unix::fs::PermissionsExt as _;

use crate::stage::{Stage, tool};

/// Not done.
const FAILURE: i32 = 1;
/// Not understood.
const USAGE: i32 = 2;

#[test]
fn every_wrong_line_is_refused_with_its_reason() {
    let stage = Stage::new();
    stage.done(&["create", "guest"]);
    let wrong: &[(&[&str], i32, &str)] = &[
        (&[], USAGE, "Usage"),
        (&["frobnicate"], USAGE, "unrecognized subcommand"),
        (&["create"], USAGE, "required"),
        (&["create", "x", "program"], USAGE, "unexpected argument"),
        (&["create", "x", "--memory", "much"], USAGE, "whole number"),
        (&["create", "x", "--memory", "1.5G"], USAGE, "whole number"),
        (&["create", "x", "--memory", "99999999999999999999T"], USAGE, "more memory"),
        (&["create", "x", "--vcpus", "many"], USAGE, "invalid value"),
        (&["create", "x", "--weight", "65536"], USAGE, "65535"),
        (&["create", "x", "--weight", "-1"], USAGE, "unexpected argument"),
        (&["create", "x", "--weight", "0"], FAILURE, "weight '0': must be 1 to 65535"),
        (&["create", "x", "--cap", "101"], FAILURE, "cap '101': must be at most 100"),
        (&["create", "x", "--vcpus", "0"], FAILURE, "vCPUs '0': must be 1 to 128"),
        (&["create", "x", "--vcpus", "129"], FAILURE, "vCPUs '129': must be 1 to 128"),
        (&["create", "x", "--memory", "0"], FAILURE, "at least one page"),
        (&["create", "x", "--memory", "2G"], FAILURE, "does not fit"),
        (&["create", "guest"], FAILURE, "is the name of domain 1 already"),
        (&["create", ""], FAILURE, "must not be empty"),
        (&["create", "17"], FAILURE, "domain's number"),
        (&["create", "a/b"], FAILURE, "may have letters"),
        (&["create", "x", "--", "/no/such/program"], FAILURE, "run /no/such/program in domain"),
        (&["create", "x", "--", "/etc/passwd"], FAILURE, "Permission denied"),
        (&["pause"], USAGE, "required"),
        (&["pause", "nobody"], FAILURE, "domain 'nobody': does not exist"),
        (&["unpause", "99"], FAILURE, "domain '99': does not exist"),
        (&["destroy", "0"], FAILURE, "domain '0': does not exist"),
        (&["destroy", "nobody"], FAILURE, "`hypervisor list` shows"),
        (&["mem-set", "guest"], USAGE, "required"),
        (&["mem-set", "guest", "-1M"], USAGE, "unexpected argument"),
        (&["mem-set", "guest", "0"], FAILURE, "at least one page"),
        (&["mem-set", "guest", "65M"], FAILURE, "65536 KiB that domain 1 was made with"),
        (&["mem-set", "nobody", "1M"], FAILURE, "does not exist"),
        (&["sched", "guest", "--weight", "0"], FAILURE, "must be 1 to 65535"),
        (&["sched", "guest", "--cap", "101"], FAILURE, "must be at most 100"),
        (&["sched", "guest", "--cap", "x"], USAGE, "invalid value"),
        (&["completions", "noshell"], USAGE, "possible values"),
        (&["man", "/proc/nowhere"], FAILURE, "make folder /proc/nowhere"),
        (&["run", "--memory", "x"], USAGE, "whole number"),
        (&["run", "now"], USAGE, "unexpected argument"),
    ];
    for (line, status, part) in wrong {
        let output = stage.ask(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*status), "{line:?} said: {said}");
        assert!(said.contains(part), "{line:?} said: {said}");
        assert!(output.stdout.is_empty(), "{line:?}: {output:?}");
    }
    // A program that could not be run ends its domain, as soon as that is noticed.
    crate::stage::until("only the first is left", || stage.list().len() == 1);
}

#[test]
fn without_a_hypervisor_each_command_says_how_to_get_one() {
    let folder = tempfile::tempdir().unwrap();
    let lines: [&[&str]; 7] = [
        &["list"],
        &["info"],
        &["pause", "x"],
        &["unpause", "x"],
        &["destroy", "x"],
        &["mem-set", "x", "1M"],
        &["sched", "x"],
    ];
    for line in lines {
        let output = tool(folder.path()).args(line).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(FAILURE), "{line:?}: {said}");
        assert!(said.contains("start one with `hypervisor run`"), "{line:?}: {said}");
        assert!(said.contains(folder.path().to_str().unwrap()), "{line:?}: {said}");
    }
}

#[test]
fn a_folder_that_will_not_do_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let too_long = folder.path().join("x".repeat(120));
    for (place, part) in [
        (folder.path(), "open to other users"),
        (&*file, "file"),
        (std::path::Path::new("/proc/nowhere"), "/proc/nowhere"),
        (&*too_long, "listen at"),
    ] {
        for options in [&["run"][..], &["run", "--detach"]] {
            let output =
                tool(folder.path()).arg("--place").arg(place).args(options).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(FAILURE), "{place:?}: {said}");
            assert!(said.contains(part), "{place:?}: {said}");
        }
    }
}

#[test]
fn what_the_environment_asks_for_in_vain_is_named() {
    let stage = Stage::new();
    for (kind, part) in [("xen", "DOMKIT_HYPERVISOR 'xen'"), ("kvm", "no kind of hypervisor")] {
        let output =
            tool(stage.folder()).env("DOMKIT_HYPERVISOR", kind).args(["create", "x"]).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(FAILURE));
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn help_completions_and_manual_pages_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let done = |args: &[&str]| {
        let output = tool(folder.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(done(&["--help"]).contains("Examples:"));
    assert!(done(&["create", "--help"]).contains("DOMKIT_DOMAIN"));
    assert!(done(&["--version"]).starts_with("hypervisor "));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(done(&["completions", shell]).contains("mem-set"), "{shell}");
    }
    assert!(done(&["man"]).contains(".TH hypervisor"));
    let pages = folder.path().join("man");
    done(&["man", pages.to_str().unwrap()]);
    assert!(pages.join("hypervisor-mem-set.1").exists());
}
