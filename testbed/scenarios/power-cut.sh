# about: What a stock guest has fsynced is in the image after the power went, with and without the page cache
# takes: 500 s
# limit: 3600
# stages: 4
# ci: no

# In the guest each record is written, then fsynced, and only then is its number told on the console, whose log
# lies with the host. Then QEMU dies of SIGKILL. What that loses: everything that Dom0 holds in memory, so
# the page cache (--direct off), and what its file system knows of the image's blocks and has not committed, which
# is all of a sparse image (--direct on). It does not lose what Dom0 gave to its disk: the host's kernel has it. So
# a backend that answers a flush without having flushed fails here; that Dom0's disk also flushes is not shown.
#
# The same with a backend whose flushes are lies (strace lets fdatasync succeed without calling it) must lose
# records, or this could not fail. With --direct on that one has a stage of its own, since the flushes of another
# would commit the file system for it.
GUEST_LIMIT=900
RECORDS=30
# Dom0 writes nothing to its disk by itself, so that no luck helps a backend.
echo 0 >/proc/sys/vm/dirty_writeback_centisecs
mount -o remount,commit=900 /work

# writer TAG VDEV: this stage's guest appends records to a file system on VDEV, and tells of each.
writer() {
    guest_run "writer$STAGE" "mke2fs -q -t ext4 /dev/$2 && mkdir -p /mnt/$1 && mount /dev/$2 /mnt/$1"
    guest_spawn "writer$STAGE" "$1" "
        for ((i = 1; ; i++)); do
            printf '%-255s\n' \"record \$i of $1\" | dd of=/mnt/$1/records oflag=append conv=notrunc,fsync status=none || break
            printf '\nfsynced $1 %s.\n' \$i >/dev/hvc0
        done"
}

# fsynced TAG: the last record of which a guest said that it was fsynced.
fsynced() { cat /logs/xen/console/guest-writer*.log | sed -n "s/^fsynced $1 \([0-9]*\)\..*/\1/p" | tail -n 1; }

lying_blkback() {
    say "blkback $* --engine blocking, whose flushes are lies"
    strace -f -qq -o /logs/lies.log -e trace=fdatasync,fsync -e inject=fdatasync,fsync:retval=0 \
        blkback "$@" --engine blocking </dev/null >/logs/blkback-lying.log 2>&1 3>&- &
    wait_for 120 "grep -q '^ready' /logs/blkback-lying.log"
}

# cut TAG...: the power goes while the writers write.
cut() {
    local tag
    for tag; do
        wait_for "$GUEST_LIMIT" "[ \"\$(fsynced $tag)\" -ge $RECORDS ] 2>/dev/null"
    done
    power_cut
}

# missing TAG VDEV: how many of the records that were fsynced are not in the image. Mounting brings the file system's
# journal into play, as after any power cut.
missing() {
    local told
    told=$(fsynced "$1")
    guest_run "reader$STAGE" "
        for ((i = 1; i <= $told; i++)); do echo \"record \$i of $1\"; done >/tmp/wanted
        mount /dev/$2 /mnt 2>/dev/null || { echo $told; exit; }
        sed 's/ *\$//' /mnt/records 2>/dev/null | head -n $told | diff /tmp/wanted - | grep -c '^[-<] *record'
        umount /mnt"
}
all_there() {
    expect "fsynced records ($1) that are missing" "$(missing "$@")" 0
    say "$1: all $(fsynced "$1") records that were fsynced are there"
}
some_missing() {
    local lost
    lost=$(missing "$@")
    say "$1: $lost of $(fsynced "$1") records that were fsynced are missing"
    [ "$lost" -gt 0 ] || fail "a backend that does not flush lost nothing, so this scenario shows nothing"
}

if [ "$STAGE" -gt 1 ]; then
    serve before --watch
    case $STAGE in
    2)
        guest_start reader2 pv "$(ours xvda /work/cached.img)" "$(ours xvdb /work/cached-lies.img)"
        all_there cached xvda
        some_missing cached-lies xvdb
        ;;
    3)
        guest_start reader3 pv "$(ours xvda /work/direct.img)"
        all_there direct xvda
        ;;
    4)
        guest_start reader4 pv "$(ours xvda /work/direct-lies.img)"
        some_missing direct-lies xvda
        ;;
    esac
    guest_stop "reader$STAGE"
    unserve before
fi

[ "$STAGE" -lt 4 ] || exit 0
for tag in cached cached-lies direct direct-lies; do
    [ -e /work/$tag.img ] || image $tag.img 128M >/dev/null
done
sync
case $STAGE in
1)
    serve cached --image /work/cached.img --direct off
    lying_blkback --image /work/cached-lies.img --direct off
    guest_start writer1 pv "$(ours xvda /work/cached.img)" "$(ours xvdb /work/cached-lies.img)"
    writer cached xvda
    writer cached-lies xvdb
    cut cached cached-lies
    ;;
2)
    serve direct --image /work/direct.img --direct on
    guest_start writer2 pv "$(ours xvda /work/direct.img)"
    writer direct xvda
    cut direct
    ;;
3)
    lying_blkback --image /work/direct-lies.img --direct on
    guest_start writer3 pv "$(ours xvda /work/direct-lies.img)"
    writer direct-lies xvda
    cut direct-lies
    ;;
esac
