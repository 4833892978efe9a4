# about: three backends side by side in one stock guest: the kernel's over loop, QEMU's qdisk, blkback
# takes: 15 min
# limit: 5400

# Each serves images of the same size on the same file system of Dom0, written in full beforehand. In the mode
# `cached` all go through Dom0's page cache, which holds all of each image (losetup --direct-io=off, qdisk as xl
# sets it up, blkback --direct off); in the mode `direct` the kernel's and blkback go past it (--direct-io=on,
# --direct on) and qdisk does not: Debian's QEMU is built without aio=native, which qdisk needs for that.
# fio runs in the guest, against one disk at a time: each round measures every workload on every backend in turn
# and begins with another backend than the round before.
#
# What counts is a ratio within one run: all is emulated. Units: requests a second as fio sees them; microseconds of
# Dom0's CPUs for each request that the guest's disk counted, by the kernel's clock of 10 ms.
# Results: the table that is printed, the same in /logs/bench.json, and every measurement in /logs/rounds.json.
rounds=${BENCH_ROUNDS:-4} seconds=${BENCH_SECONDS:-2} mib=64
modes=(${BENCH_MODES:-cached direct})
backends=(kernel qdisk blkback)
workloads=(
    "randread 4k 1" "randread 4k 32" "randwrite 4k 1" "randwrite 4k 32" "read 128k 8" "write 128k 8"
)
declare -A disk process

guest_start bench pv
# The guest's QEMU, as xl starts one that serves disks alone; xl itself would give it 10 s to start.
guest=$(xl domid bench)
"$(find /usr/lib*/ -name '*qemu-system-i386' | head -n 1)" -xen-domid "$guest" -xen-attach -name bench -M xenpv \
    -nographic -nodefaults -no-user-config -monitor none -serial null -parallel null >/logs/qdisk.log 2>&1 &
qemu=$!
# By this xl knows that there is one.
xenstore-write "/local/domain/$guest/image/device-model-pid" "$qemu"
wait_for 300 '[ "$(xenstore-read /local/domain/0/device-model/$guest/state 2>/dev/null)" = running ]'

letters=bcdefg
for mode in "${modes[@]}"; do
    direct=off
    [ "$mode" = cached ] || direct=on
    for backend in "${backends[@]}"; do
        image=/work/$mode-$backend.img name=xvd${letters:0:1}
        letters=${letters:1} disk[$mode-$backend]=$name
        dd if=/dev/zero of="$image" bs=1M count="$mib" conv=fsync status=none
        cat "$image" >/dev/null
        [ "$(allocated "$image")" -ge $((mib << 20)) ] || fail "$image is sparse"
        case $backend in
        kernel) disk_attach bench "phy:$(losetup --find --show --direct-io=$direct "$image"),$name,w" "$name" ;;
        qdisk)
            disk_attach bench "backendtype=qdisk,format=raw,vdev=$name,access=rw,target=$image" "$name"
            process[$mode-qdisk]=$qemu
            ;;
        blkback)
            blkback --image "$image" --direct $direct --domain bench --vdev "$name" >"/logs/blkback-$mode.log" 2>&1 &
            process[$mode-blkback]=$!
            ;;
        esac
        guest_run bench "for n in \$(seq 900); do [ -b /dev/$name ] && exit; sleep 0.1; done; exit 1" ||
            fail "the guest has no $name: $(cat "/logs/blkback-$mode.log")"
        say "$mode, $backend: $name"
    done
done
guest_run bench 'dmesg | grep blkfront' | while read -r line; do say "$line"; done
say "Dom0: $(nproc) CPUs; guest: 1; images: $mib MiB; $rounds rounds of $seconds s"

# Ticks of 10 ms that a backend's threads, and all of Dom0, have run. The kernel's loop device works in
# kworkers, which also write pages back for the others.
ticks() {
    case $1 in
    *-kernel) awk '$2 ~ /^\(([0-9]+\.xvd|kworker\/u|loop)/ { sum += $14 + $15 } END { print sum + 0 }' /proc/[0-9]*/stat 2>/dev/null ;;
    dom0) awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 }' /proc/stat ;;
    *) awk '{ print $14 + $15 }' "/proc/${process[$1]}/stat" ;;
    esac
}

# measure ROUND MODE BACKEND RW BS DEPTH
measure() {
    local who=$2-$3 own all out requests device=${disk[$2-$3]}
    own=$(ticks "$who") all=$(ticks dom0)
    out=$(guest_run bench "
        count() { read -r a b c d e rest </sys/block/$device/stat; echo \$((a + e)); }
        before=\$(count)
        fio --name=b --filename=/dev/$device --ioengine=libaio --direct=1 --rw=$4 --bs=$5 --iodepth=$6 \
            --runtime=$seconds --ramp_time=1 --time_based --randrepeat=0 --norandommap \
            --output-format=terse --terse-version=3 | grep '^3;' | cut -d';' -f8,49 | tr ';' ' '
        echo \$((\$(count) - before))")
    own=$(($(ticks "$who") - own)) all=$(($(ticks dom0) - all))
    requests=$(sed -n 2p <<<"$out")
    [ "${requests:-0}" -gt 0 ] || fail "fio on $device: $out"
    awk -v round="$1" -v mode="$2" -v backend="$3" -v rw="$4" -v bs="$5" -v depth="$6" \
        -v requests="$requests" -v own="$own" -v all="$all" 'NR == 1 {
            printf "{\"round\":%d,\"mode\":\"%s\",\"backend\":\"%s\",\"rw\":\"%s\",\"bs\":\"%s\",\"depth\":%d,",
                round, mode, backend, rw, bs, depth
            printf "\"iops\":%d,\"cpu_us\":%.1f,\"dom0_us\":%.1f}\n",
                $1 + $2, own * 10000 / requests, all * 10000 / requests
        }' <<<"$out" >>/logs/rounds.json
}

: >/logs/rounds.json
for round in $(seq "$rounds"); do
    for mode in "${modes[@]}"; do
        say "round $round of $rounds, $mode"
        for workload in "${workloads[@]}"; do
            for turn in 0 1 2; do
                # shellcheck disable=SC2086
                measure "$round" "$mode" "${backends[(turn + round) % 3]}" $workload
            done
        done
    done
done
for mode in "${modes[@]}"; do
    blkback ctl --image "/work/$mode-blkback.img" --json counters >"/logs/counters-$mode.json" 2>&1 || true
done

# median MODE BACKEND WORKLOAD FIELD
median() {
    local rw bs depth
    read -r rw bs depth <<<"$3"
    grep "\"mode\":\"$1\",\"backend\":\"$2\",\"rw\":\"$rw\",\"bs\":\"$bs\",\"depth\":$depth," /logs/rounds.json |
        sed "s/.*\"$4\":\([0-9.]*\).*/\1/" | sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'
}
missed=0 rows=()
say "| requests a second | kernel | qdisk | blkback | to kernel | to qdisk | CPU us: kernel | qdisk | blkback | all of Dom0: kernel | qdisk | blkback |"
say "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
for mode in "${modes[@]}"; do
    for workload in "${workloads[@]}"; do
        figures=()
        for field in iops cpu_us dom0_us; do
            for backend in "${backends[@]}"; do figures+=("$(median "$mode" "$backend" "$workload" "$field")"); done
        done
        read -r rw bs depth <<<"$workload"
        say "$(awk -v what="$mode, $rw, $bs, depth $depth" '{
            printf "| %s | %d | %d | %d | %.2f | %.2f | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f |",
                what, $1, $2, $3, $3 / $1, $3 / $2, $4, $5, $6, $7, $8, $9 }' <<<"${figures[*]}")"
        rows+=("$(awk -v mode="$mode" -v rw="$rw" -v bs="$bs" -v depth="$depth" '
            function three(a, b, c) { return sprintf("{\"kernel\":%s,\"qdisk\":%s,\"blkback\":%s}", a, b, c) } {
            printf "{\"mode\":\"%s\",\"rw\":\"%s\",\"bs\":\"%s\",\"depth\":%d,\"iops\":%s,\"to_kernel\":%.3f,\"to_qdisk\":%.3f,\"cpu_us\":%s,\"dom0_us\":%s}",
                mode, rw, bs, depth, three($1, $2, $3), $3 / $1, $3 / $2, three($4, $5, $6), three($7, $8, $9) }' <<<"${figures[*]}")")
        awk '{ exit !($3 < $1 || $3 < 1.4 * $2) }' <<<"${figures[*]}" && missed=$((missed + 1))
    done
done
(IFS=,; echo "[${rows[*]}]" >/logs/bench.json)
say "the aim, level with the kernel's and 1.4 times qdisk's, is missed in $missed of ${#rows[@]}"

for mode in "${modes[@]}"; do
    blkback ctl --image "/work/$mode-blkback.img" detach >/dev/null || fail "blkback ctl detach"
    wait "${process[$mode-blkback]}" || fail "blkback ended with $?"
done
# xl ends the guest's QEMU with it.
guest_destroy bench
wait "$qemu" || true
