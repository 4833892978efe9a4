# about: From Xen 4.19 on (--debian trixie), xl's own line for disks of type tap is served by blkback, with nothing added to it
# takes: 90 s
# ci: no

# xl runs its script block-tap for such disks; ours stands in for it. Before 4.19, xl has no such type of disk.
cp /bed/hotplug/block-domkit /etc/xen/scripts/
mv /etc/xen/scripts/block-tap /etc/xen/scripts/block-tap.stock 2>/dev/null || true
ln -s block-domkit /etc/xen/scripts/block-tap
say "$(xl info | grep xen_version)"
disk=$(image disk.img 64M) other=$(image other.img 64M)
serve all --watch
tap() { echo "backendtype=tap,vdev=$1,format=raw,access=rw,target=$2"; }
guest_start demo pv --vcpus 2 "$(tap xvda "$disk")"
say "guest: $(guest_log demo | grep -i blkfront | tail -n 1)"
disk_attach demo "$(tap xvdb "$other")" xvdb
disk_detach demo xvdb
disk_attach demo "script=block-domkit,$(tap xvdb "$other")" xvdb
blkback ctl list | while read -r line; do say "$line"; done
expect "disks in the store" "$(xenstore-ls -f /local/domain/0/backend/vbd3 | grep -c 'params = "')" 2
guest_run demo 'mke2fs -q -t ext4 /dev/xvda && mount /dev/xvda /mnt && echo hello >/mnt/file && umount /mnt
    echo written | dd of=/dev/xvdb bs=512 conv=sync oflag=direct status=none'
guest_run demo 'fio --name=v --filename=/dev/xvdb --offset=1M --rw=randrw --bs=4k --iodepth=16 --ioengine=libaio --direct=1 --size=8M --io_size=4M --verify=crc32c --verify_fatal=1 --fsync=64' >/logs/fio.log
expect_has "fio" "$(cat /logs/fio.log)" "err= 0"
disk_detach demo xvdb
expect "what was written" "$(head -c 7 "$other")" written

say "what cannot be served is said by xl"
! xl block-attach demo "$(tap xvdc /work/nowhere.img)" 2>/logs/no.log || fail "a disk with no image was attached"
expect_has "xl's words" "$(cat /logs/no.log)" "image '/work/nowhere.img': does not exist"
guest_stop demo
wait_for 30 '[ "$(blkback ctl list --json)" = "[]" ]'
unserve all
e2fsck -fn "$disk" >/logs/fsck.log 2>&1 || fail "fsck: $(tail -n 3 /logs/fsck.log)"
