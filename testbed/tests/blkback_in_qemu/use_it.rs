//! What a stock kernel finds out about its disk, and that it can use it.

use std::os::unix::fs::MetadataExt as _;

use crate::served::{Served, possible};

#[test]
fn a_stock_kernel_uses_the_disk_and_trims_it() {
    if !possible("a virtio disk in QEMU") {
        return;
    }
    let served = Served::new("256M", &[]);
    let script = r#"
cd /sys/block/vda
echo "sectors: $(cat size)"
echo "serial: $(cat serial)"
echo "queues: $(ls mq | wc -l)"
echo "discard: $(cat queue/discard_max_bytes)"
echo "cache: $(cat queue/write_cache)"
cd /
mke2fs -F /dev/vda >/dev/null
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/mnt/a bs=1M count=48 2>/dev/null
before=$(sha256sum </mnt/a)
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt
[ "$(sha256sum </mnt/a)" = "$before" ] && echo "the same again"
rm /mnt/a
sync
fstrim /mnt
umount /mnt
echo "refused: $(dd if=/dev/vda bs=512 skip=9999999 count=1 2>/dev/null | wc -c)"
"#;
    let printed = served.machine(script).run().unwrap();
    for line in ["sectors: 524288", "serial: TESTDISK", "queues: 2", "cache: write back"] {
        assert!(printed.lines().any(|said| said == line), "no '{line}': {printed}");
    }
    assert!(printed.contains("the same again"), "{printed}");
    let blocks = std::fs::metadata(served.path("disk.img")).unwrap().blocks();
    assert!(blocks * 512 < 24 << 20, "the image still has {blocks} blocks: {printed}");
    let counters = served.ctl(&["counters"]).unwrap();
    let ever = &counters["ever"];
    assert!(ever["writes"].as_u64().unwrap() > 40 && ever["flushes"].as_u64().unwrap() > 0);
    assert!(ever["discards"].as_u64().unwrap() > 0, "{ever}");
    assert_eq!(ever["medium_errors"].as_u64(), Some(0), "{ever}");
}
