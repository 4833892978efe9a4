# about: fstrim and blkdiscard in a stock guest give blocks of the image back to Dom0; all other data stays
# takes: 120 s
# limit: 1200
# ci: yes
GUEST_LIMIT=600
MIB=$((1 << 20))
# What the image occupied and occupies, and how much of it must have been given back at least.
gave_back() {
    sync
    local now
    now=$(allocated "$2")
    say "$1: the image occupied $3 bytes, now $now"
    [ $(($3 - now)) -ge "$4" ] || fail "$1: $(($3 - now)) bytes were given back, not $4"
}

files=$(image files.img 128M)
raw=/work/raw.img
# Each line is another number: data in the wrong place is wrong.
{ seq 10000000 99999999 || true; } | head -c $((64 * MIB)) >$raw
cp $raw /work/raw.before
serve all --watch
guest_start demo pv "$(ours xvda "$files")" "$(ours xvdb $raw)"
say "discard in the guest: $(guest_run demo 'lsblk -Dbno NAME,DISC-GRAN,DISC-MAX /dev/xvda' | xargs)"

# A file system: two files, one is removed.
guest_run demo "set -e; mke2fs -q -t ext4 -E nodiscard,lazy_itable_init=0 /dev/xvda && mount /dev/xvda /mnt
    dd if=/dev/xvdb of=/mnt/keep bs=1M count=16 status=none
    dd if=/dev/xvdb of=/mnt/drop bs=1M count=48 status=none
    sync"
sync
before=$(allocated "$files")
guest_run demo 'set -e; rm /mnt/drop && sync && fstrim -v /mnt'
gave_back fstrim "$files" "$before" $((47 * MIB))
guest_run demo 'echo 3 >/proc/sys/vm/drop_caches; cmp -n $((16 << 20)) /mnt/keep /dev/xvdb && umount /mnt'

# The disk itself: from 16 MiB on, 32 MiB.
sync
before=$(allocated $raw)
guest_run demo "blkdiscard -o $((16 * MIB)) -l $((32 * MIB)) /dev/xvdb"
gave_back blkdiscard $raw "$before" $((31 * MIB))
expect "what the guest reads where it discarded" "$(guest_run demo "
    dd if=/dev/xvdb bs=1M skip=16 count=32 iflag=direct status=none | tr -d '\\0' | wc -c")" 0
guest_stop demo
unserve all

cmp -n $((16 * MIB)) $raw /work/raw.before
cmp -i $((48 * MIB)) $raw /work/raw.before
cmp -n $((32 * MIB)) -i $((16 * MIB)):0 $raw /dev/zero
e2fsck -fn "$files" >/logs/fsck.log 2>&1 || fail "fsck: $(tail -n 3 /logs/fsck.log)"
mount -o ro,loop "$files" /mnt
cmp -n $((16 * MIB)) /mnt/keep /work/raw.before
umount /mnt
