# about: 200 disks attached and detached, and 20 guest lives, leave nothing behind in Dom0
# takes: 20 min
# limit: 5400

# A stock guest is given a disk of ours by xl and writes and reads it, so that its pages are mapped and its events
# bound, and then it is taken again: one watcher serves all 200, each by a process that must end with its disk.
# After that one process serves the same disk to 20 guests, which go by turns in good order and in the
# middle of their I/O. What is compared is what Xen counts (pages of guests that somebody has mapped, Dom0's
# event channels, domains that cannot go) and, of our process, mappings, descriptors and memory (the least of
# several samples; what came before the first measurement warmed it up).
connects=${LEAKS_CONNECTS:-200} lives=${LEAKS_LIVES:-20} slack_kib=1024

grants() {
    xl dmesg -c >/dev/null
    xl debug-keys g
    xl dmesg -c | awk '/grant-table for remote d/ { theirs = !/ d0 / } theirs && /\[0x[0-9a-f]+\]/ { sum++ } END { print sum + 0 }'
}
channels() { "$(dirname /usr/lib/xen-*/bin/xl)/lsevtchn" 0 | wc -l; }
descriptors() { find "/proc/$ours/fd" -type l | wc -l; }
mappings() { grep -c /dev/xen/gntdev "/proc/$ours/maps" || true; }
processes() { pgrep -c -x blkback; }
memory() {
    for _ in 1 2 3 4 5; do
        sed -n 's/^VmRSS:\s*\([0-9]*\) kB/\1/p' "/proc/$ours/status"
        sleep 0.3
    done | sort -n | head -n 1
}
counted=(grants channels mappings descriptors processes)
declare -A had

take() {
    local each
    sleep 2
    for each in "${counted[@]}" memory; do had[$each]=$("$each"); done
    say "$1: $(for each in "${counted[@]}" memory; do echo "$each ${had[$each]}"; done | paste -sd' ')"
}
# Compares with what was taken; a leak stays, what is merely late does not.
same() {
    local each now deadline=$((SECONDS + 120)) all=''
    for each in "${counted[@]}"; do
        until now=$("$each") && [ "$now" -le "${had[$each]}" ]; do
            [ "$SECONDS" -lt "$deadline" ] || fail "$1: $each $now, and ${had[$each]} before"
            sleep 1
        done
        all+="$each $now "
    done
    now=$(memory)
    say "$1: ${all}memory $now"
    [ "$now" -le $((had[memory] + slack_kib)) ] || fail "$1: $now KiB of memory, and ${had[memory]} before"
}

used() {
    guest_run guest "dd if=/dev/zero of=/dev/$1 bs=128k count=4 oflag=direct status=none &&
        dd if=/dev/$1 of=/dev/null bs=4k count=16 iflag=direct status=none" || fail "I/O on $1"
}
connect() {
    disk_attach guest "script=block-domkit,format=raw,vdev=xvdb,access=rw,target=/work/disk.img" xvdb
    used xvdb
    disk_detach guest xvdb
    wait_for 60 '! xenstore-ls /local/domain/0/backend/vbd 2>/dev/null | grep -q frontend-id'
}

image disk.img 64M >/dev/null
cp /bed/hotplug/block-domkit /etc/xen/scripts/
blkback --watch >/logs/watch.log 2>&1 &
ours=$!
wait_for 60 'grep -q "ready: watching" /logs/watch.log'
guest_start guest pv
for _ in 1 2 3; do connect; done
take "before"
for number in $(seq "$connects"); do
    connect
    [ $((number % 20)) != 0 ] || same "after $number connects"
done
same "after $connects connects"
kill "$ours"
wait "$ours" || fail "the watcher ended with $?"
guest_stop guest

blkback --image /work/disk.img --domain guest --vdev xvda >/logs/blkback.log 2>&1 &
ours=$!
live() {
    guest_start guest pv
    guest_run guest 'for n in $(seq 900); do [ -b /dev/xvda ] && exit; sleep 0.1; done; exit 1' || fail "no xvda"
    used xvda
    if [ $(($1 % 2)) = 0 ]; then
        guest_stop guest
    else
        guest_spawn guest load 'while :; do dd if=/dev/xvda of=/dev/null bs=64k count=512 iflag=direct status=none; done'
        guest_destroy guest
    fi
}
for life in 0 1; do live "$life"; done
take "before, without a guest"
for life in $(seq "$lives"); do
    live "$life"
    [ $((life % 5)) != 0 ] || same "after $life lives"
done
same "after $lives lives"
expect "domains that cannot go" "$(xl list | grep -c '(null)' || true)" 0
kill "$ours"
wait "$ours" || fail "blkback ended with $?"
