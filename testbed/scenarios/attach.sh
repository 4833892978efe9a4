# about: blkback gives a running stock guest a disk and takes it away again, while another disk is busy
# takes: 120 s
# limit: 1200
# ci: no
GUEST_LIMIT=600
busy=$(image busy.img 64M) extra=$(image extra.img 32M)
serve all --watch
guest_start demo pv --vcpus 2 "$(ours xvda "$busy")"
guest_spawn demo fio "fio --name=busy --filename=/dev/xvda --rw=randrw --bs=4k --iodepth=8 --ioengine=libaio --direct=1 \
    --size=32M --io_size=16M --verify=crc32c --verify_fatal=1 --fsync=32 --output-format=terse --terse-version=3"

for round in 1 2 3; do
    serve "own$round" --image "$extra" --domain demo --vdev xvdb
    guest_run demo 'until [ -b /dev/xvdb ] && [ "$(blockdev --getsize64 /dev/xvdb)" = $((32 << 20)) ]; do sleep 0.2; done'
    guest_run demo "echo round $round | dd of=/dev/xvdb bs=512 seek=$round conv=sync,fsync oflag=direct status=none"
    # Asked by a signal, by a command, and with the disk held open, which is for force.
    case $round in
    1) unserve own1 ;;
    2)
        blkback ctl --image "$extra" detach >/dev/null
        wait "${SERVED[own2]}" || fail "blkback ended with $?"
        ;;
    3)
        guest_run demo 'sleep 1000 </dev/xvdb >/dev/null 2>&1 &'
        blkback ctl --image "$extra" detach --force >/dev/null
        wait "${SERVED[own3]}" || fail "blkback ended with $?"
        ;;
    esac
    expect "what is left of it in the store" "$(xenstore-ls -f /local/domain/0/backend | grep -c 51728 || true)" 0
    [ "$round" = 3 ] || guest_run demo 'while [ -b /dev/xvdb ]; do sleep 0.2; done'
    expect "what the guest wrote" "$(dd if="$extra" bs=512 skip=$round count=1 status=none | tr -d '\0')" "round $round"
    say "round $round: attached, written, detached"
done
said=$(blkback --image "$extra" --domain nobody5 --vdev xvdb </dev/null 2>&1 & sleep 3; kill $! 2>/dev/null; wait) || true
say "an absent guest is waited for: ${said##*$'\n'}"
said=$(blkback --image "$extra" --domain 4711 --vdev xvdb </dev/null 2>&1) && fail "a domain that is not there was served"
expect_has "blkback's words" "$said" "no such domain"

result=$(guest_join demo fio) || fail "fio: $result"
expect "errors of fio" "$(cut -d';' -f5 <<<"$result")" 0
guest_stop demo
unserve all
expect "what is left in the store" "$(xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep -c 'vbd3*/[0-9]' || true)" 0
