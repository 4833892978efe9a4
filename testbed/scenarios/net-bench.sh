# about: two backends side by side in one stock guest: the kernel's xen-netback and netback
# takes: 5 min
# limit: 2400
# ci: no

# Each serves an interface of the guest's, on a bridge of its own with Dom0's end of the traffic. Each round measures
# every workload on both in turn and begins with the other one than the round before.
#
# What counts is a ratio within one run: all is emulated. Units: Mbit/s as the receiver counted them; packets a second
# that were received, of 64 bytes of UDP; microseconds there and back (ping, the mean of 300). CPU is that of
# all of Dom0, iperf3's end included, as Xen counts it: milliseconds a MiB, or microseconds a packet, received.
# Results: the table that is printed, the same in /logs/net-bench.json, and every measurement in /logs/rounds.json.
rounds=${NET_ROUNDS:-3} seconds=${NET_SECONDS:-3}
backends=(kernel netback)
declare -A network=([kernel]=10.0.0 [netback]=10.0.1)
workloads=("tcp 1" "tcp 1 -R" "tcp 4" "tcp 4 -R" "udp" "udp -R" "ping")

for n in 0 1; do bridge br$n 10.0.$n.1/24; done
iperf_server
guest_start bench pv --vif 'bridge=br0,mac=00:16:3e:00:00:02'
serve_net ours --bridge br1 --domain bench --devid 1 --mac 00:16:3e:00:00:03
[ -e /sys/class/net/br0/brif/vif"$(xl domid bench)".0 ] || fail "the kernel serves nothing"
guest_run bench 'for n in 0 1; do
    for _ in $(seq 300); do [ -e /sys/class/net/eth$n ] && break; sleep 0.1; done
    ip addr add 10.0.$n.2/24 dev eth$n && ip link set eth$n up || exit
done' || fail "the guest lacks an interface"
for backend in "${backends[@]}"; do answers bench "${network[$backend]}.1"; done
say "Dom0: $(nproc) CPUs; guest: 1; $rounds rounds of $seconds s"

# Milliseconds that Dom0 has run.
dom0() { xl list 0 | awk 'NR == 2 { print $NF * 1000 }'; }

# measure ROUND BACKEND WORKLOAD...
measure() {
    local round=$1 backend=$2 what=$3 workload=${*:3} address=${network[$2]}.1 cpu said value cost=0
    shift 3
    cpu=$(dom0)
    case $what in
    tcp)
        said=$(iperf bench "$address" -t "$seconds" -P "$@")
        cpu=$(($(dom0) - cpu)) value=${said%% *}
        cost=$(awk -v ms="$cpu" -v rate="$value" -v s="$seconds" 'BEGIN { print ms / (rate * s / 8.388608) }')
        ;;
    udp)
        said=$(iperf bench "$address" -t "$seconds" -u -b 0 -l 64 "$@")
        cpu=$(($(dom0) - cpu))
        value=$(awk -v rate="${said%% *}" 'BEGIN { printf "%d", rate * 1000000 / 8 / 64 }')
        cost=$(awk -v ms="$cpu" -v rate="$value" -v s="$seconds" 'BEGIN { print ms * 1000 / (rate * s) }')
        ;;
    ping)
        said=$(guest_run bench "ping -n -q -c 300 -i 0.005 $address")
        cpu=$(($(dom0) - cpu))
        value=$(sed -n 's,^rtt [^=]*= [0-9.]*/\([0-9.]*\)/.*,\1,p' <<<"$said" | awk '{ print $1 * 1000 }')
        cost=$((cpu * 1000 / 300))
        ;;
    esac
    [ -n "$value" ] || fail "$backend, $what $*: $said"
    printf '{"round":%d,"backend":"%s","workload":"%s","value":%s,"cpu":%s,"said":"%s"}\n' \
        "$round" "$backend" "$workload" "$value" "$cost" "$(tail -n 1 <<<"$said")" >>/logs/rounds.json
}

: >/logs/rounds.json
for round in $(seq "$rounds"); do
    say "round $round of $rounds"
    for workload in "${workloads[@]}"; do
        # shellcheck disable=SC2086
        for turn in 0 1; do measure "$round" "${backends[(turn + round) % 2]}" $workload; done
    done
done
netback ctl counters >/logs/counters.log || true

# median BACKEND WORKLOAD FIELD
median() {
    grep "\"backend\":\"$1\",\"workload\":\"$2\"," /logs/rounds.json | sed "s/.*\"$3\":\([0-9.e+-]*\).*/\1/" |
        sort -g | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'
}
missed=0 rows=()
declare -A title=(
    ["tcp 1"]="guest sends, Mbit/s" ["tcp 1 -R"]="guest receives, Mbit/s"
    ["tcp 4"]="guest sends, 4 streams, Mbit/s" ["tcp 4 -R"]="guest receives, 4 streams, Mbit/s"
    ["udp"]="guest sends 64 bytes, packets/s" ["udp -R"]="guest receives 64 bytes, packets/s"
    ["ping"]="there and back, us"
)
say "| | kernel | netback | to kernel | Dom0's CPU: kernel | netback |"
say "| --- | ---: | ---: | ---: | ---: | ---: |"
for workload in "${workloads[@]}"; do
    figures=()
    for field in value cpu; do
        for backend in "${backends[@]}"; do figures+=("$(median "$backend" "$workload" "$field")"); done
    done
    say "$(awk -v what="${title[$workload]}" '{
        printf "| %s | %d | %d | %.2f | %.1f | %.1f |", what, $1, $2, $2 / $1, $3, $4 }' <<<"${figures[*]}")"
    rows+=("$(awk -v workload="$workload" '{
        printf "{\"workload\":\"%s\",\"value\":{\"kernel\":%s,\"netback\":%s},\"to_kernel\":%.3f,\"cpu\":{\"kernel\":%s,\"netback\":%s}}",
            workload, $1, $2, $2 / $1, $3, $4 }' <<<"${figures[*]}")")
    # Level is the aim; of a time, not more.
    awk -v workload="$workload" '{ exit !(workload == "ping" ? $2 > $1 : $2 < $1) }' <<<"${figures[*]}" && missed=$((missed + 1))
done
(IFS=,; echo "[${rows[*]}]" >/logs/net-bench.json)
say "the aim, at least level with the kernel's, is missed in $missed of ${#rows[@]}"
grep -h udp /logs/rounds.json | sed 's/.*"backend":"\([a-z]*\)","workload":"\([^"]*\)".*"said":"\([^"]*\)".*/\1, \2: \3/' | while read -r line; do say "$line"; done

unserve ours
guest_destroy bench
