# about: Under a stock guest that verifies, blkback is replaced twenty times, and its disk is full for a while: neither is an error
# takes: 5 min
# limit: 1800
# ci: no

# Upgrades: a watcher started beside the one that serves takes every disk over; a disk's process that is told to hand over is
# followed by another. The one who verifies may not notice.
GUEST_LIMIT=1200
ROUNDS=${UPGRADE_ROUNDS:-10}
raw=$(image raw.img 96M)
serve watch0 --watch --queues 2
guest_start demo pv --vcpus 2 "$(ours xvda "$raw")"
guest_spawn demo checked "
    runs=0
    until [ -e /run/bed/stop ]; do
        fio --name=checked --ioengine=libaio --randrepeat=0 --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
            --filename=/dev/xvda --direct=1 --rw=randrw --bssplit=4k/50:16k/20:128k/30 --iodepth=16 --size=32M \
            --fsync=16 --output-format=terse --terse-version=3 >/run/bed/fio 2>&1 || { cat /run/bed/fio; exit 1; }
        runs=\$((runs + 1))
    done
    echo \"\$runs runs\""

logs() { cat /logs/blkback-watch*.log | sed 's/\x1b\[[0-9;]*m//g'; }
device() { blkback ctl list --json | tr ',' '\n' | sed -n "s/^.*\"$1\"://p" | tr -d '"}]'; }
# served_by_other PID: another process serves, and has answered something since.
served_by_other() {
    [ -n "$(device pid)" ] && [ "$(device pid)" != "$1" ] && [ "$(device guest_state)" = connected ] &&
        [ "$(blkback ctl counters --json | tr ',' '\n' | sed -n 's/^.*"reads"://p' | head -n 1)" -gt 20 ]
}
wait_for 120 'served_by_other 0'
for round in $(seq "$ROUNDS"); do
    pid=$(device pid)
    serve "watch$round" --watch --queues 2 --takeover
    wait_for 120 "served_by_other $pid"
    status=0
    wait "${SERVED[watch$((round - 1))]}" || status=$?
    expect "how the former watcher ended" "$status" 0
    pid=$(device pid)
    blkback ctl handover
    wait_for 120 "served_by_other $pid"
done
guest_run demo 'touch /run/bed/stop'
result=$(guest_join demo checked) || fail "the guest: $result"
say "$result without an error while blkback was replaced $((2 * ROUNDS)) times"
logs | sed -n 's/.*pause_ms=\([0-9]*\).*/\1/p' | sort -n >/logs/pauses
expect "times that rings were gone on with" "$(wc -l </logs/pauses)" "$((2 * ROUNDS))"
awk '{ pause[NR] = $1 } END { printf "nobody served for %d ms (median), %d ms (longest) of %d\n", pause[int((NR + 1) / 2)], pause[NR], NR }' \
    /logs/pauses >&3
unserve "watch$ROUNDS"

# A file system that is full: what the guest writes waits, and goes on when there is space.
mkdir -p /run/small
mount -t tmpfs -o size=8M small /run/small
truncate -s 32M /run/small/held.img
serve held --image /run/small/held.img --domain demo --vdev xvdb --on-error hold-full --direct off
guest_run demo 'for n in $(seq 900); do [ -b /dev/xvdb ] && exit; sleep 0.1; done; exit 1'
guest_spawn demo filled 'dd if=/dev/urandom of=/tmp/data bs=1M count=24 status=none &&
    dd if=/tmp/data of=/dev/xvdb bs=1M oflag=direct status=none && dd if=/dev/xvdb bs=1M count=24 iflag=direct status=none | cmp - /tmp/data'
held() { blkback ctl list --image /run/small/held.img | grep -q 'requests held'; }
wait_for 120 held
say "held: $(blkback ctl list --image /run/small/held.img | tail -n 1)"
guest_run demo 'test ! -e /run/bed/filled.status' || fail "the guest was told: $(guest_join demo filled)"
mount -o remount,size=40M /run/small
blkback ctl resume --image /run/small/held.img
result=$(guest_join demo filled) || fail "the guest that was held: $result"
say "24 MiB are on the disk that had been full, as they were written"
expect "complaints in the guest's kernel log" "$(guest_log demo | grep -ciE 'I/O error|blkfront.*(fail|invalid)' || true)" 0
guest_stop demo
unserve held || true
