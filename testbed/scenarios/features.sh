# about: What a stock guest's kernel makes of blkback's disks: features, queues, read-only, CD-ROM, 4 KiB sectors, a new size
# takes: 120 s
# limit: 1200
# ci: no
GUEST_LIMIT=600
disk=$(image disk.img 64M) locked=$(image locked.img 16M) cd=$(image cd.img 16M) big=$(image big.img 64M)
echo on the disc | dd of="$cd" bs=2048 seek=16 conv=notrunc,sync status=none
serve all --watch
guest_start demo pv --vcpus 2 "$(ours xvda "$disk")" "$(ours xvdb "$locked" ro)" "devtype=cdrom,$(ours xvdc "$cd" ro)"

guest_log demo | grep blkfront | while read -r line; do say "$line"; done
log=$(guest_log demo | grep 'blkfront: xvda')
for feature in 'flush diskcache: enabled' 'persistent grants: enabled' 'indirect descriptors: enabled'; do
    expect_has "what the guest's kernel found" "$log" "$feature"
done
expect "queues" "$(guest_run demo 'ls /sys/block/xvda/mq | wc -l')" 2
expect "its cache" "$(guest_run demo 'cat /sys/block/xvda/queue/write_cache')" "write back"
guest_run demo '[ "$(cat /sys/block/xvda/queue/discard_max_bytes)" -gt 0 ]' || fail "the guest sees no discard"
expect "rings of blkback" "$(blkback ctl --image "$disk" rings --json | grep -o '"queue":' | wc -l)" 2

expect "the read-only disk" "$(guest_run demo 'blockdev --getro /dev/xvdb')" 1
guest_run demo 'dd if=/dev/zero of=/dev/xvdb bs=4k count=1 oflag=direct status=none 2>/dev/null' && fail "a read-only disk was written"
expect "the CD-ROM, removable" "$(guest_run demo 'cat /sys/block/xvdc/removable; blockdev --getro /dev/xvdc' | xargs)" "1 1"
expect "what is on it" "$(guest_run demo 'dd if=/dev/xvdc bs=2048 skip=16 count=1 status=none' | tr -d '\0')" "on the disc"
say "read-only and removable disks are so"

serve big --image "$big" --sector-size 4096 --domain demo --vdev xvdd
guest_run demo 'until [ -b /dev/xvdd ] && [ "$(blockdev --getsize64 /dev/xvdd)" = $((64 << 20)) ]; do sleep 0.2; done'
expect "its sectors" "$(guest_run demo 'blockdev --getss --getpbsz /dev/xvdd' | xargs)" "4096 4096"
guest_run demo 'set -e; mke2fs -q -t ext4 /dev/xvdd && mount /dev/xvdd /mnt && seq 100000 >/mnt/file && sync'
guest_run demo 'dd if=/dev/xvdd of=/dev/null bs=512 count=1 iflag=direct status=none 2>/dev/null' && fail "half a sector was read"
blkback ctl --image "$big" resize 96M >/dev/null
guest_run demo 'until [ "$(blockdev --getsize64 /dev/xvdd)" = $((96 << 20)) ]; do sleep 0.2; done'
guest_run demo 'set -e; resize2fs /dev/xvdd >/dev/null 2>&1; [ "$(stat -f -c "%b" /mnt)" -gt 20000 ]; seq 100000 | cmp - /mnt/file; umount /mnt'
unserve big
e2fsck -fn "$big" >/logs/fsck.log 2>&1 || fail "fsck: $(tail -n 3 /logs/fsck.log)"
say "4 KiB sectors hold a file system, which grew with its disk"

{ guest_log demo | grep -E 'I/O error|BUG:|WARNING:' || true; } | while read -r line; do say "$line"; done
expect "complaints in the guest's kernel log, but of the read-only disk" \
    "$(guest_log demo | grep -E 'I/O error|BUG:|WARNING:' | grep -vc 'xvdb' || true)" 0
guest_stop demo
unserve all
