# about: blkfront in a guest uses disks of blkback, of the kernel's backend and of QEMU's
# takes: 6 min
# limit: 1800
# ci: no
GUEST_LIMIT=600
sha() { sha256sum | cut -d' ' -f1; }
in_guest() { guest_run front "$@"; }
# The backend's state of a disk: its kind and number.
state() { xenstore-read "/local/domain/0/backend/$1/$(xl domid front)/$2/state" 2>/dev/null; }

for peer in ours kernel qdisk; do
    disk=$(image "$peer.img" 256M)
    dd if=/dev/urandom of="$disk" bs=1M count=4 conv=notrunc status=none
done
kernel="format=raw,vdev=xvda,access=rw,discard,target=/work/kernel.img"
qdisk="backendtype=qdisk,format=raw,vdev=xvdb,access=rw,discard,target=/work/qdisk.img"
ours=$(ours xvdc /work/ours.img)
serve all --watch
# Its kernel has no driver for disks yet.
guest_start front pv --memory 1024 --without xen_blkfront "$kernel" "$qdisk" "$ours"
in_guest 'test ! -e /dev/xvda'

# Data, discard, flush and load on one disk.
same_for_all() {
    local peer=$1 vdev=$2 disk=/work/$1.img info sum bytes
    info=$(in_guest "blkfront info --vdev $vdev --json 2>/dev/null")
    echo "$info" >"/logs/$peer-info.json"
    say "$peer: $(echo "$info" | tr -d ' \n')"
    expect_has "$peer: size" "$info" "\"size\": $((256 << 20)),"
    expect_has "$peer: flush" "$info" '"flush": true'
    sum=$(dd if="$disk" bs=1M count=4 status=none | sha)
    expect "$peer: what Dom0 wrote" \
        "$(in_guest "blkfront read --vdev $vdev --length 4M 2>/dev/null | sha256sum | cut -d' ' -f1")" "$sum"
    in_guest "dd if=/dev/urandom of=/tmp/data bs=1M count=64 status=none && blkfront write --vdev $vdev --offset 8M /tmp/data"
    sum=$(in_guest 'sha256sum </tmp/data | cut -d" " -f1')
    expect "$peer: what is in the image" "$(dd if="$disk" bs=1M skip=8 count=64 status=none | sha)" "$sum"
    expect "$peer: what is read back" \
        "$(in_guest "blkfront read --vdev $vdev --offset 8M --length 64M 2>/dev/null | sha256sum | cut -d' ' -f1")" "$sum"
    say "$peer: 64 MiB written, read back, and equal in the image"
    bytes=$(allocated "$disk")
    in_guest "blkfront discard --vdev $vdev --offset 16M --length 32M"
    sync "$disk"
    bytes=$((bytes - $(allocated "$disk")))
    [ "$bytes" -ge $((32 << 20)) ] || fail "$peer: discarding 32 MiB freed $bytes bytes of the image"
    say "$peer: discarding 32 MiB freed $bytes bytes of the image"
    say "$peer: $(in_guest "blkfront bench --vdev $vdev --rw randrw --depth 32 --seconds 5 --range 32M --verify 2>&1" | tail -n 6 | tr -s '\n ' ' ')"
}

# A user that is killed says nothing; the next one has the disk all the same, and only one at a time.
killed_user() {
    local peer=$1 vdev=$2 kind=$3 number=$4 said
    guest_spawn front killed "blkfront bench --vdev $vdev --rw randread --seconds 900 & echo \$! >/run/bed/pid; wait"
    wait_for 300 "[ \"\$(state $kind $number)\" = 4 ]"
    said=$(in_guest "blkfront info --vdev $vdev 2>&1" || true)
    expect_has "$peer: a second user" "$said" "another blkfront uses it"
    in_guest 'kill -9 $(cat /run/bed/pid)'
    in_guest "blkfront info --vdev $vdev" >/dev/null
    say "$peer: had again after its user was killed"
}

# Taken away in use, and given again.
taken_away() {
    local peer=$1 vdev=$2 kind=$3 number=$4 spec=$5 said
    guest_spawn front load "blkfront bench --vdev $vdev --rw randread --seconds 900"
    wait_for 300 "[ \"\$(state $kind $number)\" = 4 ]"
    xl block-detach front "$vdev"
    said=$(guest_join front load || true)
    expect_has "$peer: why it ended" "$said" "detached"
    xl block-attach front "$spec"
    in_guest "blkfront info --vdev $vdev" >/dev/null
    say "$peer: detached in use, attached again, and had again"
}

same_for_all ours xvdc
killed_user ours xvdc vbd 51744
taken_away ours xvdc vbd 51744 "$ours"

same_for_all kernel xvda
killed_user kernel xvda vbd 51712
taken_away kernel xvda vbd 51712 "$kernel"

# The backend goes in the middle of a bench that checks what it reads, and comes back.
device=vbd-$(xl domid front)-51712
guest_spawn front load 'blkfront bench --vdev xvda --rw randrw --seconds 15 --range 32M --verify'
wait_for 300 '[ "$(state vbd 51712)" = 4 ]'
sleep 3
echo "$device" >/sys/bus/xen-backend/drivers/vbd/unbind
sleep 1
echo "$device" >/sys/bus/xen-backend/drivers/vbd/bind
guest_join front load >/logs/restarted.log || fail "the bench over a restart: $(cat /logs/restarted.log)"
say "kernel: went and came back within a bench: $(tail -n 6 /logs/restarted.log | tr -s '\n ' ' ')"

same_for_all qdisk xvdb
killed_user qdisk xvdb qdisk 51728
taken_away qdisk xvdb qdisk 51728 "$qdisk"

# A disk that the kernel's own driver has.
xl block-attach front "format=raw,vdev=xvdd,access=rw,target=$(image fresh.img 64M)"
in_guest 'insmod $(sed -n "s/^xen_blkfront //p" /load)'
in_guest 'for _ in $(seq 300); do [ -b /dev/xvdd ] && break; sleep 0.1; done; test -b /dev/xvdd'
said=$(in_guest 'blkfront info --vdev xvdd 2>&1' || true)
expect_has "who has it" "$said" "echo vbd-51760 > /sys/bus/xen/drivers/vbd/unbind"
in_guest 'echo vbd-51760 > /sys/bus/xen/drivers/vbd/unbind'
in_guest 'blkfront info --vdev xvdd' >/dev/null
say "taken from the kernel's driver"

guest_log front >/logs/guest-kernel.log
expect "complaints of the guest's kernel" "$(grep -c 'BUG\|WARNING\|Oops' /logs/guest-kernel.log || true)" 0
guest_stop front
unserve all
