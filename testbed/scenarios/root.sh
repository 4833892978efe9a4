# about: A stock guest has its root file system on a disk of blkback and unpacks a package tree onto it; fsck is clean after
# takes: 180 s
# limit: 1800
# ci: no
GUEST_LIMIT=900
tree=$(cd / && echo usr/lib/modules/*/kernel/drivers/net)
expected() { (cd "$1" && find "$tree" -type f -print0 | sort -z | xargs -0 cksum) | cksum; }

# A root with Debian's bash, coreutils and the like: what guests otherwise have in memory.
mkdir /run/root
(cd /run/root && for part in /boot/guest.cpio /bed/guest.cpio; do busybox cpio -idmu <"$part" 2>/dev/null; done)
rm -r /run/root/load /run/root/spare /run/root/modules
mkdir -p /run/root/busybox
chroot /run/root /bin/busybox --install -s /busybox
disk=$(image root.img 512M)
mke2fs -q -t ext4 -d /run/root "$disk"
rm -r /run/root
tar -C / -cf /work/tree.tar "$tree"
say "the archive: $(stat -c %s /work/tree.tar) bytes, $(tar -tf /work/tree.tar | wc -l) entries"

serve all --watch
guest_start web pv --root /dev/xvda "$(ours xvda "$disk")" "$(ours xvdb /work/tree.tar ro)"
expect "the root file system" "$(guest_run web 'stat -f -c %T /; mount | sed -n "s, on / .*,,p"' | xargs)" "ext2/ext3 /dev/xvda"
guest_run web 'tar -C / -xf /dev/xvdb && sync && echo 3 >/proc/sys/vm/drop_caches'
expect "the tree as the guest reads it back" \
    "$(guest_run web "cd / && find $tree -type f -print0 | sort -z | xargs -0 cksum | cksum")" "$(expected /)"
expect "complaints in the guest's kernel log" "$(guest_log web | grep -ciE 'I/O error|EXT4-fs error' || true)" 0
# As a distribution's shutdown leaves it.
guest_run web 'mount -o remount,ro /'
guest_stop web
unserve all

e2fsck -fn "$disk" >/logs/fsck.log 2>&1 && ! grep -q journal /logs/fsck.log || fail "fsck: $(tail -n 3 /logs/fsck.log)"
mount -o ro,loop "$disk" /mnt
expect "the tree in the image" "$(expected /mnt)" "$(expected /)"
umount /mnt
say "fsck is clean; the tree is all there"
