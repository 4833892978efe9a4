# about: fio verifies what it writes and trims on a disk of blkback, while others are attached, resized and detached
# takes: 400 s
# limit: 2400
# ci: no
GUEST_LIMIT=1200
disk=$(image fio.img 192M)
serve all --watch
guest_start demo pv --vcpus 2 "$(ours xvda "$disk")"

# Another disk comes, is written, grows, is read, and goes.
life() {
    local image other
    image=$(image "life$1.img" 32M)
    disk_attach demo "$(ours xvdb "$image")" xvdb
    guest_run demo "yes life $1 | dd of=/dev/xvdb bs=64k count=64 iflag=fullblock oflag=direct conv=fsync status=none"
    blkback ctl --image "$image" resize 48M >/dev/null
    guest_run demo 'until [ "$(blockdev --getsize64 /dev/xvdb)" = $((48 << 20)) ]; do sleep 0.2; done'
    guest_run demo "yes end $1 | dd of=/dev/xvdb bs=64k seek=700 count=4 iflag=fullblock oflag=direct conv=fsync status=none"
    other=$(guest_run demo 'dd if=/dev/xvdb bs=64k count=64 iflag=direct status=none | cksum')
    expect "what disk $1 keeps" "$other" "$( (yes "life $1" || true) | head -c $((64 << 16)) | cksum)"
    disk_detach demo xvdb
    guest_run demo 'while [ -b /dev/xvdb ]; do sleep 0.2; done'
    expect "the end of disk $1 in its image" "$(dd if="$image" bs=64k skip=700 count=4 status=none | cksum)" \
        "$( (yes "end $1" || true) | head -c $((4 << 16)) | cksum)"
    rm "$image"
}

common="--filename=/dev/xvda --ioengine=libaio --direct=1 --bssplit=4k/50:16k/20:64k/20:256k/10
    --verify=crc32c --verify_fatal=1 --fsync=32 --randrepeat=0 --output-format=terse --terse-version=3"
lives=0
for job in "randrw 1 32M" "randrw 8 64M" "randrw 32 128M" "randtrimwrite 8 48M" "randtrimwrite 32 64M"; do
    read -r rw depth size <<<"$job"
    guest_spawn demo fio "fio --name=verify $(echo $common) --rw=$rw --iodepth=$depth --size=$size"
    while :; do
        lives=$((lives + 1))
        life "$lives"
        guest_run demo 'test -e /run/bed/fio.status' && break
    done
    result=$(guest_join demo fio) || fail "fio $job: $result"
    expect "errors of fio ($job)" "$(cut -d';' -f5 <<<"$result")" 0
    say "fio $job: no error; $(cut -d';' -f6 <<<"$result") KiB read, $(cut -d';' -f47 <<<"$result") KiB written; $lives disks beside it so far"
done
expect "complaints in the guest's kernel log" "$(guest_log demo | grep -ciE 'I/O error|blkfront.*(fail|invalid)' || true)" 0
guest_stop demo
unserve all
