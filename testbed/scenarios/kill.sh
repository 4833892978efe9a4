# about: A stock guest's disks are verified, trimmed and synced while their blkbacks, and the watcher, are killed 100 times
# takes: 15 min
# limit: 5400
# ci: no

# Two disks, each served by a process of its own: on one fio checks what it reads, writes and trims; on the other it does so
# in a file system. Every kill is a SIGKILL at a random moment: of one of the two processes, of the watcher, or of the watcher and a
# process together; a watcher that was killed is started anew. No guest may see an error, and no ring may be given up.
GUEST_LIMIT=3000
KILLS=${KILL_KILLS:-100}
raw=$(image raw.img 96M)
files=$(image files.img 128M)
watchers=0
watch() {
    watchers=$((watchers + 1))
    serve "watch$watchers" --watch --queues 2
}
watch
guest_start demo pv --vcpus 2 "$(ours xvda "$raw")" "$(ours xvdb "$files")"
guest_run demo 'mke2fs -q -t ext4 /dev/xvdb && mkdir -p /mnt/files && mount -o discard /dev/xvdb /mnt/files'

common="--ioengine=libaio --randrepeat=0 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --fsync=16 --output-format=terse --terse-version=3"
# repeat TAG COMMAND: until it is told to stop.
repeat() {
    guest_spawn demo "$1" "
        runs=0
        until [ -e /run/bed/stop ]; do
            $2 >/run/bed/$1.fio 2>&1 || { cat /run/bed/$1.fio; exit 1; }
            runs=\$((runs + 1))
        done
        echo \"\$runs runs\""
}
repeat checked "fio --name=checked $common --filename=/dev/xvda --direct=1 --rw=randrw --bssplit=4k/50:16k/20:128k/30 --iodepth=16 --size=32M &&
    fio --name=trimmed $common --filename=/dev/xvda --direct=1 --rw=randtrimwrite --bs=4k --iodepth=8 --offset=32M --size=4M"
repeat files "fio --name=files $common --directory=/mnt/files --rw=randrw --bssplit=4k/60:64k/40 --iodepth=8 --size=24M &&
    rm -f /mnt/files/files.*"

logs() { cat /logs/blkback-watch*.log | sed 's/\x1b\[[0-9;]*m//g'; }
ours_now() { pgrep -f 'blkback --device' || true; }
served() { [ "$(blkback ctl list --json 2>/dev/null | grep -o '"guest_state":"connected"' | wc -l)" = 2 ]; }
wait_for 120 served

kills=0 children=0 watched=0 both=0 told=0
while [ $kills -lt "$KILLS" ]; do
    sleep "$((RANDOM % 2)).$((RANDOM % 10))"
    what=$((RANDOM % 10))
    if [ $what -le 1 ]; then
        kill -KILL "${SERVED[watch$watchers]}"
        wait "${SERVED[watch$watchers]}" 2>/dev/null || true
        watched=$((watched + 1)) kills=$((kills + 1))
    fi
    if [ $what -ge 1 ]; then
        kill -KILL "$(ours_now | shuf -n 1)"
        children=$((children + 1)) kills=$((kills + 1))
        if [ $what = 1 ]; then both=$((both + 1)); fi
    fi
    if [ $what -le 1 ]; then watch; fi
    wait_for 120 served
    # Asking the guest takes longer than a kill does.
    if [ $kills -lt $((told + 10)) ]; then continue; fi
    told=$kills
    for tag in checked files; do
        if guest_run demo "test -e /run/bed/$tag.status"; then
            fail "$tag ended after $kills kills: $(guest_join demo $tag || true)"
        fi
    done
    say "$kills kills"
done
guest_run demo 'touch /run/bed/stop'
for tag in checked files; do
    result=$(guest_join demo $tag) || fail "$tag: $result"
    say "$tag: $result without an error"
done
guest_run demo 'umount /mnt/files'
expect "complaints in the guest's kernel log" "$(guest_log demo | grep -ciE 'I/O error|blkfront.*(fail|invalid)|EXT4-fs (error|warning)' || true)" 0
guest_stop demo
unserve "watch$watchers"
e2fsck -fn "$files" >/logs/fsck.log 2>&1 || fail "fsck: $(tail -n 3 /logs/fsck.log)"
expect "rings that were given up" "$(logs | grep -c 'cannot be gone on with' || true)" 0
logs | sed -n 's/.*owed=\([0-9]*\) pause_ms=\([0-9]*\).*/\2 \1/p' | sort -n >/logs/pauses
expect "times that rings were gone on with" "$(wc -l </logs/pauses)" "$children"
awk '{ pause[NR] = $1; owed += $2 }
    function at(p) { n = int((NR - 1) * p / 100) + 1; return pause[n] }
    END { printf "%d pauses; nobody served for %d ms (median), %d ms (90 %%), %d ms (99 %%), %d ms (longest); %d requests were owed\n",
        NR, at(50), at(90), at(99), pause[NR], owed }' /logs/pauses >&3
say "$kills kills: $children of processes, $watched of watchers, $both of both at once"
