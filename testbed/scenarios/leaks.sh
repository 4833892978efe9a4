# about: 200 connects, 20 disks attached and detached, and 20 guest lives leave nothing behind in Dom0
# takes: 15 min
# limit: 5400
# ci: no

# A stock guest is given a disk of ours by xl and writes and reads it, so that its pages are mapped and its events
# bound, and then it is taken again: one watcher serves all 20, each by a process that must end with its disk.
# After that one process serves another disk: its guest's driver is unbound and bound 200 times, and then 20 guests
# use it, which go by turns in good order and in the middle of their I/O. What is compared is what Xen counts
# (pages of guests that somebody has mapped, Dom0's event channels, domains that cannot go) and, of our process,
# mappings, descriptors and memory (the least of several samples; what came before the first measurement warmed it up).
disks=${LEAKS_DISKS:-20} connects=${LEAKS_CONNECTS:-200} lives=${LEAKS_LIVES:-20} slack_kib=1024

grants() { mapped_grants; }
channels() { open_channels; }
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
attach() {
    disk_attach guest "$(ours xvdb /work/disk.img)" xvdb
    used xvdb
    disk_detach guest xvdb
    wait_for 60 '! xenstore-ls /local/domain/0/backend/vbd 2>/dev/null | grep -q frontend-id'
}
# connect TIMES: the guest's driver lets the disk go and takes it again, and uses it.
connect() {
    guest_run guest "for _ in \$(seq $1); do
        echo vbd-51712 >/sys/bus/xen/drivers/vbd/unbind
        echo vbd-51712 >/sys/bus/xen/drivers/vbd/bind
        for n in \$(seq 900); do [ -b /dev/xvda ] && break; sleep 0.1; done
        dd if=/dev/zero of=/dev/xvda bs=128k count=1 oflag=direct status=none || exit
        dd if=/dev/xvda of=/dev/null bs=4k count=4 iflag=direct status=none || exit
    done" || fail "connecting"
}

image disk.img 64M >/dev/null
serve all --watch
ours=${SERVED[all]}
guest_start guest pv
for _ in 1 2 3; do attach; done
take "before"
for number in $(seq "$disks"); do
    attach
    [ $((number % 10)) != 0 ] || same "after $number disks"
done
same "after $disks disks"
unserve all
guest_stop guest

serve one --image /work/disk.img --domain guest --vdev xvda
ours=${SERVED[one]}
connected() { guest_run guest 'for n in $(seq 900); do [ -b /dev/xvda ] && exit; sleep 0.1; done; exit 1' || fail "no xvda"; }
guest_start guest pv
connected
connect 5
take "before, with a guest"
for ((number = 20; number <= connects; number += 20)); do
    connect 20
    [ $((number % 100)) != 0 ] || same "after $number connects"
done
same "after $connects connects"
guest_stop guest
live() {
    guest_start guest pv
    connected
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
unserve one
