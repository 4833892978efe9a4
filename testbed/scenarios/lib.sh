# shellcheck shell=bash
# The verbs of scenarios, for bash in Dom0. A scenario runs with `set -eEu -o pipefail`: a command that
# fails ends it, with its line.
#
#   say TEXT...                       progress, for the one who watches
#   fail TEXT...                      ends the scenario as failed
#   expect WHAT ACTUAL WANTED         fails unless they are equal
#   expect_has WHAT TEXT PART         fails unless PART is somewhere in TEXT
#   wait_for SECONDS CONDITION        until the shell command CONDITION holds
#   guest_start NAME pv|pvh [OPTION...] [DISK...]    a guest, until it answers; DISK as xl(1) has it
#        --memory MIB (512)  --vcpus N (1)  --root DEVICE (boot from it)  --append TEXT (kernel command line)
#        --config LINE (of the xl configuration)  --without MODULE (not loaded at start)
#        --vif SPEC (an interface as xl(1) has it)
#   guest_ready NAME                  waits until it answers, say after a reboot
#   guest_run NAME COMMANDS           runs them in the guest (bash); prints what they printed, has their status
#   guest_spawn NAME TAG COMMANDS     the same, without waiting
#   guest_join NAME TAG               waits for those; prints and has their status
#   guest_log NAME                    the guest's kernel log
#   guest_stop NAME                   shuts it down and waits
#   guest_destroy NAME                ends it at once
#   disk_attach NAME DISK VDEV        gives a running guest a disk, as xl(1) has it, and waits until it has it
#   disk_detach NAME VDEV             takes it again
#   image NAME SIZE                   makes a sparse image in /work; prints its path
#   allocated FILE                    bytes that a file occupies
#   serve TAG OPTION...               blkback with these options until unserve, ready for devices; log: /logs/blkback-TAG.log
#   serve_net TAG OPTION...           the same with netback
#   unserve TAG                       tells it to end, and fails unless it ends well
#   ours VDEV IMAGE [ACCESS]          a DISK that blkback serves, where it watches; ACCESS is rw or ro
#   guest_module NAME MODULE...       loads modules that lie in the guest, with those that they need
#   bridge NAME ADDRESS...            makes a bridge in Dom0 with these addresses, each with its length
#   iperf_server [COMMAND...]         an iperf3 in Dom0 for the others, by COMMAND (ip netns exec NAME)
#   iperf NAME ADDRESS [OPTION...]    iperf3 in the guest; prints what was received: Mbit/s, and what was lost of UDP
#   answers NAME ADDRESS [OPTION...]  fails unless ten pings of the guest's are answered; the first ones do not count
#   fetched FROM ADDRESS TO           fails unless TO gets 8 MiB from FROM there as they are; both are what runs a line
#                                     of shell: 'guest_run NAME', 'bash -c', 'ip netns exec NAME bash -c'
#   mapped_grants, open_channels      what Xen counts: pages of guests that somebody has mapped, Dom0's event channels
#   power_cut                         the host ends the whole machine now; the next stage boots
#
# STAGE says which stage this is, /work is the disk that stays over stages, /logs is kept by the host,
# /bed/bin has the project's programs, /bed/tests its test programs. GUEST_LIMIT (seconds) bounds guest_run.

GUEST_LIMIT=${GUEST_LIMIT:-300}

# What is said is said to the one who watches, also within $(...).
exec 3>&1
say() { echo "$*" >&3; }
fail() {
    trap - ERR
    echo "FAILED: $*" >&3
    # A subshell's exit would end only that.
    kill -TERM $$ 2>/dev/null
    exit 1
}
trap 'exit 1' TERM
trap 'echo "FAILED: line $LINENO of ${BASH_SOURCE[0]##*/}: $BASH_COMMAND" >&3' ERR

expect() { [ "$2" = "$3" ] || fail "$1: '$2', not '$3'"; }
expect_has() { [[ $2 == *"$3"* ]] || fail "$1: no '$3' in: $2"; }

wait_for() {
    local deadline=$((SECONDS + $1)) condition=$2
    until eval "$condition"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "after $1 s still not: $condition"
        sleep 0.2
    done
}

image() {
    truncate -s "$2" "/work/$1"
    echo "/work/$1"
}
allocated() { echo $(($(stat -c '%b * %B' "$1"))); }

declare -A SERVED SERVED_BY
_serve() {
    local program=$1 tag=$2 log=/logs/$1-$2.log
    shift 2
    say "$program $*"
    "$program" "$@" </dev/null >"$log" 2>&1 3>&- &
    SERVED[$tag]=$! SERVED_BY[$tag]=$program
    wait_for 60 "grep -q '^ready' '$log' || ! kill -0 ${SERVED[$tag]}"
    grep -q '^ready' "$log" || fail "$program $*: $(cat "$log")"
}
serve() {
    cp /bed/hotplug/block-domkit /etc/xen/scripts/
    _serve blkback "$@"
}
serve_net() { _serve netback "$@"; }
unserve() {
    local status=0 program=${SERVED_BY[$1]}
    kill "${SERVED[$1]}"
    wait "${SERVED[$1]}" || status=$?
    [ "$status" = 0 ] || fail "$program ($1) ended with $status: $(tail -n 3 "/logs/$program-$1.log")"
}
ours() { echo "script=block-domkit,format=raw,vdev=$1,access=${3:-rw},target=$2"; }

power_cut() {
    echo
    echo "@bed power-cut"
    while :; do sleep 60; done
}

guest_start() {
    local name=$1 type=$2 memory=512 vcpus=1 append='' root='' config=() disks=() vifs=() without=()
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in
        --memory) memory=$2 && shift ;;
        --vcpus) vcpus=$2 && shift ;;
        --root) root=$2 && shift ;;
        --append) append=$2 && shift ;;
        --vif) vifs+=("$2") && shift ;;
        --config) config+=("$2") && shift ;;
        --without) without+=("$2") && shift ;;
        -*) fail "guest_start: no option $1" ;;
        *) disks+=("$1") ;;
        esac
        shift
    done
    local without_list
    without_list=$(IFS=,; echo "${without[*]-}")
    [ -e /run/bed/guest.cpio ] || {
        cat /boot/guest.cpio /bed/guest.cpio >/run/bed/guest.cpio.new
        mv /run/bed/guest.cpio.new /run/bed/guest.cpio
    }
    {
        echo "name = '$name'"
        echo "type = '$type'"
        echo "kernel = '/boot/vmlinuz'"
        echo "ramdisk = '/run/bed/guest.cpio'"
        echo "extra = 'console=hvc0 quiet panic=1 bed.name=$name bed.root=$root bed.without=$without_list $append'"
        echo "memory = $memory"
        echo "vcpus = $vcpus"
        echo "disk = ["
        [ ${#disks[@]} -eq 0 ] || printf '  "%s",\n' "${disks[@]}"
        echo "]"
        echo "vif = ["
        [ ${#vifs[@]} -eq 0 ] || printf '  "%s",\n' "${vifs[@]}"
        echo "]"
        [ ${#config[@]} -eq 0 ] || printf '%s\n' "${config[@]}"
    } >"/run/bed/$name.cfg"
    cp "/run/bed/$name.cfg" "/logs/xen/$name.cfg"
    # xl gives a console ten seconds to appear, which a busy machine may not have.
    local tries=1
    until xl create -q "/run/bed/$name.cfg"; do
        [ $((tries++)) -lt 4 ] || fail "xl create $name: $(tail -n 5 "/var/log/xen/xl-$name.log" 2>/dev/null)"
        sleep 5
    done
    guest_ready "$name"
}

# The guest's console, as a terminal here.
_guest_tty() {
    local id
    id=$(xl domid "$1" 2>/dev/null) || return 1
    xenstore-read "/local/domain/$id/console/tty" 2>/dev/null
}

guest_ready() {
    local name=$1 tty='' line deadline=$((SECONDS + GUEST_LIMIT))
    until tty=$(_guest_tty "$name") && [ -c "$tty" ]; do
        [ "$SECONDS" -lt "$deadline" ] || fail "guest $name has no console"
        sleep 0.2
    done
    while [ "$SECONDS" -lt "$deadline" ]; do
        if IFS= read -r -t 5 line <"$tty"; then
            [[ $line == *"@ready"* ]] && return 0
        elif ! [ -c "$tty" ]; then
            break
        fi
    done
    fail "guest $name did not come up; its console: $(tail -n 15 "/var/log/xen/console/guest-$name.log" 2>/dev/null)"
}

guest_run() {
    local name=$1 status=0
    shift
    (
        flock 9
        _guest_talk "$name" "$*"
    ) 9>"/run/bed/$name.talk" || status=$?
    return "$status"
}

# Sends commands as lines of base64 and reads the answer, which has a checksum: the guest's kernel writes to
# the same console.
_guest_talk() {
    local name=$1 tty id try line text sum code='' deadline
    tty=$(_guest_tty "$name") || fail "guest_run: there is no guest $name"
    id=$BASHPID.$RANDOM
    exec 8<>"$tty"
    printf '%s' "$2" | base64 -w 512 | while IFS= read -r line || [ -n "$line" ]; do
        printf '+ %s %s\n' "$id" "$line" >&8
    done
    printf '! %s\n' "$id" >&8
    deadline=$((SECONDS + GUEST_LIMIT))
    for try in 1 2 3 4 5; do
        text=''
        while :; do
            [ "$SECONDS" -lt "$deadline" ] || fail "guest $name: no answer in $GUEST_LIMIT s to: $2"
            line=''
            if IFS= read -r -t 5 line <&8; then
                line=${line%$'\r'}
            else
                [ $? -gt 128 ] && [ -c "$tty" ] && continue
                [ -z "${LEAVES-}" ] || return 0
                fail "guest $name went away during: $2"
            fi
            case $line in
            "@$id:"*) text+=${line#*:} ;;
            "@$id="*)
                read -r code sum <<<"${line#*=}"
                break
                ;;
            esac
        done
        if [ "$(printf '%s' "$text" | cksum | tr ' ' -)" = "$sum" ]; then
            printf '%s' "$text" | base64 -d
            exec 8>&-
            return "$code"
        fi
        [ "$try" -lt 5 ] && printf '? %s\n' "$id" >&8
    done
    fail "guest $name: its answer was garbled five times"
}

guest_spawn() {
    local name=$1 tag=$2
    shift 2
    guest_run "$name" "cat >/run/bed/$tag.sh <<'END_OF_SPAWN'
$*
END_OF_SPAWN
rm -f /run/bed/$tag.status
(bash /run/bed/$tag.sh >/run/bed/$tag.log 2>&1; echo \$? >/run/bed/$tag.status) </dev/null >/dev/null 2>&1 &"
}

guest_join() {
    local name=$1 tag=$2 deadline=$((SECONDS + GUEST_LIMIT))
    until guest_run "$name" "test -e /run/bed/$tag.status"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "guest $name: $tag did not end in $GUEST_LIMIT s"
        sleep 1
    done
    guest_run "$name" "cat /run/bed/$tag.log; exit \$(cat /run/bed/$tag.status)"
}

guest_log() { guest_run "$1" dmesg; }

guest_stop() {
    # It may be gone before its answer is here.
    LEAVES=yes guest_run "$1" '(sleep 3; poweroff -f) >/dev/null 2>&1 &' || true
    wait_for 120 "! xl domid $1 >/dev/null 2>&1"
}
guest_destroy() {
    xl destroy "$1"
    wait_for 60 "! xl domid $1 >/dev/null 2>&1"
}

disk_attach() {
    local tries=1
    # xl gives a backend ten seconds and a script forty, which a busy machine may not have.
    until xl block-attach "$1" "$2" 2>>/logs/disks.log; do
        [ $((tries++)) -lt 4 ] || fail "xl block-attach $1 $2: $(tail -n 5 /logs/disks.log)"
        sleep 5
    done
    guest_run "$1" "for n in \$(seq 900); do [ -b /dev/$3 ] && exit; sleep 0.1; done; exit 1" ||
        fail "guest $1 has no $3"
}
disk_detach() {
    xl block-detach "$1" "$2" 2>>/logs/disks.log ||
        fail "xl block-detach $1 $2: $(tail -n 5 /logs/disks.log)"
}

guest_module() {
    local name=$1
    shift
    guest_run "$name" "for module in $*; do
            for each in \$(sed -n \"s/^\$module //p\" /spare); do
                [ -d /sys/module/\$each ] || insmod /modules/\$each.ko || exit
            done
        done" || fail "guest $name does not load $*"
}

bridge() {
    local name=$1 address
    shift
    ip link add "$name" type bridge forward_delay 0
    ip link set "$name" up
    for address in "$@"; do
        # An address of IPv6 is looked for elsewhere first, unless told otherwise.
        case $address in
        *:*) ip addr add "$address" dev "$name" nodad ;;
        *) ip addr add "$address" dev "$name" ;;
        esac
    done
}

iperf_server() {
    "$@" iperf3 -s </dev/null >>/logs/iperf3.log 2>&1 3>&- &
}
iperf() {
    local name=$1 said status
    shift
    for _ in 1 2 3 4 5; do
        status=0
        said=$(guest_run "$name" "iperf3 -f m -c $*") || status=$?
        # It serves one after the other, and may not have noticed that the last one ended.
        [ "$status" != 0 ] && [[ $said == *busy* ]] || break
        sleep 1
    done
    echo "iperf3 -c $*: $said" >>/logs/iperf3.log
    [ "$status" = 0 ] || fail "iperf3 -c $* in $name: $(tail -n 3 <<<"$said" | tr '\n' ' ')"
    awk '/receiver/ {
            rate = lost = ""
            for (n = 2; n <= NF; n++) {
                if ($n == "Mbits/sec") rate = $(n - 1)
                if ($n ~ /%\)$/) lost = ", lost " $(n - 1) " " $n
            }
        } END { if (rate + 0 == 0) exit 1; print rate " Mbit/s" lost }' <<<"$said" ||
        fail "iperf3 -c $* in $name: nothing was received: $(tail -n 3 <<<"$said" | tr '\n' ' ')"
}

answers() {
    local said
    # Bridges, and tables of neighbours, may lose the first ones.
    said=$(guest_run "$1" "for _ in \$(seq 30); do ping -n -q -c 1 -W 1 ${*:2} >/dev/null && break; done
        ping -n -q -c 10 -i 0.1 -W 10 ${*:2}") || fail "guest $1 has no answer of ${*:2}: $said"
    expect_has "guest $1, ping ${*:2}" "$said" " 0% packet loss"
}

fetched() {
    local sum got
    sum=$($1 'mkdir -p /tmp/www && cd /tmp/www || exit
        [ -e data ] || dd if=/dev/urandom of=data bs=1M count=8 status=none
        # Once for each network.
        busybox httpd -p 8000 -h /tmp/www </dev/null >/dev/null 2>&1 3>&- || true
        sha256sum <data')
    got=$($3 "busybox wget -q -O - http://$2:8000/data | sha256sum")
    expect "what was fetched from $2" "$got" "$sum"
}

mapped_grants() {
    xl dmesg -c >/dev/null
    xl debug-keys g
    xl dmesg -c | awk '/grant-table for remote d/ { theirs = !/ d0 / } theirs && /\[0x[0-9a-f]+\]/ { sum++ } END { print sum + 0 }'
}
open_channels() { "$(dirname /usr/lib/xen-*/bin/xl)/lsevtchn" 0 | wc -l; }
