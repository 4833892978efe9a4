//! A machine whose root file system lies on a disk of blkback's, and which has another one verified by fio.

use testbed::packages::{BLKDISCARD, BUSYBOX, FIO, MKE2FS, QEMU};
use testbed::{packages, skip, vm};

use crate::served::{Served, machine, shown};

/// What fio does: blocks of all sizes at several depths, written, read and compared, with flushes in between, beside
/// others that are trimmed and written again.
const JOBS: &str = "
[global]
filename=/dev/vdb
ioengine=io_uring
direct=1
thread=1
verify_fatal=1
fsync=32

[one-at-a-time]
verify=crc32c
rw=randrw
bsrange=512-64k
blockalign=512
iodepth=1
offset=0
size=6M

[a-few]
verify=crc32c
rw=randrw
bsrange=4k-128k
iodepth=16
offset=8M
size=12M

[many]
verify=crc32c
rw=randwrite
bs=4k
iodepth=64
offset=24M
size=6M

[trimmed]
rw=trimwrite
bs=64k
iodepth=8
offset=32M
size=12M
";

#[test]
fn a_machine_boots_from_its_disk_and_fio_verifies_another() {
    let programs = [QEMU, BUSYBOX, MKE2FS, FIO, BLKDISCARD];
    if !skip::unless_installed("a machine that boots from a virtio disk", &programs) {
        return;
    }
    let [fio, blkdiscard] = [FIO, BLKDISCARD].map(|program| packages::find(program).unwrap());
    let (mut root, data) = (Served::prepare(), Served::new("64M", &[]));
    let (fio_shown, zero) = (shown(&fio), shown(&blkdiscard));
    let script = format!(
        r#"
grep ' / ' /proc/mounts
cat >/tmp/jobs.fio <<'END'
{JOBS}
END
export LD_LIBRARY_PATH=/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu
{fio_shown} --minimal --terse-version=3 /tmp/jobs.fio >/tmp/out 2>&1 || {{ cat /tmp/out; exit 1; }}
echo "fio's errors: $(grep '^3;' /tmp/out | cut -d';' -f5 | sort -u | tr '\n' ' ')"
dd if=/dev/urandom of=/kept bs=1M count=4 2>/dev/null
sha256sum /kept
echo "zeroed: $(cat /sys/block/vdb/queue/write_zeroes_max_bytes)"
dd if=/tmp/out of=/dev/vdb bs=1M seek=48 count=1 2>/dev/null; sync
{zero} -z -o 50331648 -l 8388608 /dev/vdb
echo "not zero: $(dd if=/dev/vdb bs=1M skip=48 count=8 iflag=direct 2>/dev/null | tr -d '\0' | wc -c)"
dmesg | grep -i 'error' || true
"#
    );
    let mut booted = machine(&[&root, &data], &script);
    booted.files =
        [&fio, &blkdiscard].into_iter().flat_map(|p| vm::with_libraries(p).unwrap()).collect();
    booted.make_root(&root.path("disk.img"), "160M").unwrap();
    root.start(&[]);
    booted.root = Some("/dev/vda".to_owned());
    let printed = booted.run().unwrap();
    assert!(printed.contains("/dev/vda / ext4 rw"), "{printed}");
    assert!(printed.contains("fio's errors: 0 \n"), "{printed}");
    assert!(printed.contains("not zero: 0\n"), "{printed}");
    assert!(!printed.contains("I/O error"), "{printed}");
    let ever = data.ever();
    for (kind, least) in
        [("reads", 300), ("writes", 500), ("flushes", 20), ("discards", 50), ("zeroes", 1)]
    {
        assert!(ever[kind].as_u64().unwrap() >= least, "{kind}: {ever}");
    }
    for disk in [&root, &data] {
        assert_eq!(disk.ever()["medium_errors"].as_u64(), Some(0));
        assert_eq!(disk.ever()["refused"], serde_json::json!({}), "something was refused");
    }
    // What was written to the root is there for the next boot.
    let before = printed.lines().find(|line| line.ends_with("/kept")).unwrap().to_owned();
    let look = "mkdir -p /mnt; mount -t ext4 -o ro /dev/vda /mnt; sha256sum /mnt/kept";
    let printed = root.machine(look).run().unwrap();
    let sum = before.split_whitespace().next().unwrap();
    assert!(printed.contains(sum), "{before}: {printed}");
}
