//! fio through blkfront and blkback: the job files of the example, as real processes.

use std::process::Command;
use std::time::Duration;

use testbed::packages::{self, FIO};
use testbed::programs::{self, Build};
use testbed::scene::{Scene, to_its_end};
use testbed::skip;

/// The path of one of the example's job files.
fn job(name: &str) -> String {
    let path = programs::workspace().join("examples/fio-engine/jobs").join(name);
    path.to_str().unwrap().to_owned()
}

/// Runs fio on a fresh disk, with arguments for it, for the engine, and for blkback.
fn run(test: &str, arguments: &[&str], settings: &[(&str, &str)], backend: &[&str]) {
    if !skip::unless_installed(test, &[FIO]) {
        return;
    }
    let scene = Scene::new(test).unwrap();
    let engine = programs::build("fio-engine", "domkit_fio", Build::Tests).unwrap();
    let mut hypervisor = scene.hypervisor().unwrap();
    let image = scene.folder().join("disk.img");
    let mut serve = vec!["--size", "64M", "--image", image.to_str().unwrap()];
    serve.extend(backend);
    let mut blkback = scene.start("blkback", "blkback", serve).unwrap();
    blkback.line_with("ready").unwrap();
    let mut fio = Command::new(packages::find(FIO).unwrap());
    fio.env("DOMKIT_RUN", scene.place())
        .envs(settings.iter().copied())
        .current_dir(scene.folder())
        .arg(format!("--ioengine=external:{}", engine.display()))
        .args(arguments);
    let output = to_its_end(fio, Duration::from_secs(300)).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
    assert!(said.contains("err= 0"), "{said}");
    blkback.end().unwrap();
    assert!(hypervisor.runs());
    hypervisor.end().unwrap();
}

#[test]
fn every_block_is_as_it_was_written() {
    run("fio-verify", &[&job("verify.fio")], &[], &[]);
}

#[test]
fn every_block_is_as_it_was_written_when_copied() {
    let settings = [("DOMKIT_FIO_BOUNCE", "1"), ("DOMKIT_FIO_POLL", "0")];
    run("fio-bounce", &["--section=a-few", &job("verify.fio")], &settings, &[]);
}

#[test]
fn large_sectors_work() {
    let arguments = [
        "--name=large",
        "--thread",
        "--filename=xvda",
        "--rw=randrw",
        "--bsrange=4k-256k",
        "--blockalign=4k",
        "--iodepth=32",
        "--size=16M",
        "--verify=crc32c",
        "--verify_fatal=1",
    ];
    run("fio-4k", &arguments, &[], &["--sector-size", "4096"]);
}

#[test]
fn trims_and_flushes_go_through() {
    run("fio-trim", &[&job("trim.fio")], &[], &[]);
}

#[test]
fn jobs_that_are_not_threads_are_told_why_not() {
    let test = "fio-fork";
    if !skip::unless_installed(test, &[FIO]) {
        return;
    }
    let scene = Scene::new(test).unwrap();
    let engine = programs::build("fio-engine", "domkit_fio", Build::Tests).unwrap();
    let mut blkback =
        scene.start("blkback", "blkback", ["--engine", "memory", "--size", "16M"]).unwrap();
    blkback.line_with("ready").unwrap();
    let mut fio = Command::new(packages::find(FIO).unwrap());
    fio.env("DOMKIT_RUN", scene.place())
        .current_dir(scene.folder())
        .arg(format!("--ioengine=external:{}", engine.display()))
        .args(["--name=forked", "--filename=xvda", "--rw=read", "--size=1M"]);
    let output = to_its_end(fio, Duration::from_secs(300)).unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(complained.contains("thread=1"), "{complained}");
    blkback.end().unwrap();
}
