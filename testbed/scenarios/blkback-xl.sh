# about: blkback --watch serves disks of stock xl configurations, beside the kernel's own backend
# takes: 150 s
# ci: yes
cp /bed/hotplug/block-domkit /etc/xen/scripts/
blkback --watch >/logs/blkback.log 2>&1 &
watcher=$!
wait_for 60 'grep -q "ready: watching" /logs/blkback.log'
ours() { echo "script=block-domkit,format=raw,vdev=$1,access=${3:-rw},target=$2"; }

say "a guest with a disk of ours and one of the kernel's"
one=$(image one.img 128M) kernel=$(image kernel.img 64M)
guest_start demo pv --vcpus 2 "$(ours xvda "$one")" "format=raw,vdev=xvdb,access=rw,target=$kernel"
blkback ctl list
expect "disks that blkback serves" "$(blkback ctl list --json | grep -o '"image":"[^"]*"')" "\"image\":\"$one\""
guest_run demo 'dmesg | grep -i blkfront' | while read -r line; do say "$line"; done
log=$(guest_run demo 'dmesg | grep "blkfront: xvda"')
for feature in 'flush diskcache: enabled' 'persistent grants: enabled' 'indirect descriptors: enabled'; do
    expect_has "what the guest's kernel found" "$log" "$feature"
done
guest_run demo 'echo kernel | dd of=/dev/xvdb bs=512 conv=sync oflag=direct status=none'
guest_run demo 'fio --name=v --filename=/dev/xvda --rw=randrw --bs=4k --iodepth=16 --ioengine=libaio --direct=1 --size=8M --io_size=4M --verify=crc32c --verify_fatal=1 --fsync=64' >/logs/fio.log
say "fio: $(grep -E 'err=' /logs/fio.log | head -n 1)"
expect_has "fio" "$(cat /logs/fio.log)" "err= 0"
guest_run demo 'mke2fs -q /dev/xvda && mount /dev/xvda /mnt && echo hello >/mnt/file && sync && umount /mnt'
e2fsck -fn "$one" >/dev/null 2>&1 || fail "the file system is not clean"
guest_stop demo
wait_for 30 '[ "$(blkback ctl list --json)" = "[]" ]'
expect "directories left" "$(xenstore-ls /local/domain/0/backend/vbd 2>/dev/null || true)" ""
say "what cannot be served is said by xl"
cat >/run/bed/no.cfg <<END
name = 'no'
type = 'pv'
kernel = '/boot/vmlinuz'
memory = 128
disk = ['$(ours xvda /work/nowhere.img)']
END
begun=$SECONDS
! xl create /run/bed/no.cfg >/logs/no.log 2>&1 || fail "a guest with no image was created"
expect_has "xl's words" "$(cat /logs/no.log)" "image '/work/nowhere.img': does not exist"
say "refused after $((SECONDS - begun)) s"
wait_for 20 '! xenstore-ls /local/domain/0/backend/vbd 2>/dev/null | grep -q nowhere'

kill "$watcher"
wait "$watcher" || fail "the watcher did not end well"
cat /logs/blkback.log | while read -r line; do say "blkback: $line"; done
