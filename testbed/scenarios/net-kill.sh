# about: A stock guest's downloads and uploads arrive whole while its netback is killed fifty times
# takes: 4 min
# limit: 1800
# ci: no

# Every kill is a SIGKILL at a random moment, of the interface's process, which the watcher starts again. Packets may be lost,
# connections may not, and every file that crosses is compared.
GUEST_LIMIT=1200
KILLS=${NET_KILLS:-50}
modprobe -r xen-netback
bridge br0 10.0.0.1/24
serve_net all --watch
guest_start demo pv --vcpus 2 --memory 768 --vif 'bridge=br0,mac=00:16:3e:00:00:02'
guest_run demo 'for _ in $(seq 300); do [ -e /sys/class/net/eth0 ] && break; sleep 0.1; done
    ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
answers demo 10.0.0.1

# A file at each end, and each end fetches the other's, again and again.
serves='mkdir -p /tmp/www && cd /tmp/www && dd if=/dev/urandom of=data bs=1M count=32 status=none && sha256sum <data >sum &&
    busybox httpd -p 8000 -h /tmp/www </dev/null >/dev/null 2>&1 3>&-'
# fetches ADDRESS STOP: until there is a file STOP; says how often.
fetches() {
    echo "runs=0
        wanted=\$(busybox wget -q -O - http://$1:8000/sum) || exit
        until [ -e $2 ]; do
            got=\$(busybox wget -q -T 600 -O - http://$1:8000/data | sha256sum)
            [ \"\$got\" = \"\$wanted\" ] || { echo \"other data: \$got, not \$wanted\"; exit 1; }
            runs=\$((runs + 1))
        done
        echo \$runs"
}
bash -c "$serves"
guest_run demo "$serves"
guest_spawn demo down "$(fetches 10.0.0.1 /run/bed/stop)"
bash -c "$(fetches 10.0.0.2 /run/bed/stop)" >/logs/up 2>&1 3>&- &
up=$!

field() { netback ctl list --json | tr ',' '\n' | sed -n "s/^.*\"$1\"://p" | tr -d '"}]'; }
crossed() { cat "/sys/class/net/vif$(xl domid demo).0/statistics/$1_bytes" 2>/dev/null || echo 0; }
# flows RX TX: more than a megabyte crossed each way since.
flows() { [ "$(crossed rx)" -gt $(($1 + 1000000)) ] && [ "$(crossed tx)" -gt $(($2 + 1000000)) ]; }
kills=0
while [ $kills -lt "$KILLS" ]; do
    wait_for 120 "flows $(crossed rx) $(crossed tx)"
    sleep "0.$((RANDOM % 10))"
    pid=$(field pid)
    kill -KILL "$pid"
    kills=$((kills + 1))
    wait_for 120 '[ -n "$(field pid)" ] && [ "$(field pid)" != '"$pid"' ] && [ "$(field guest_state)" = connected ]'
    if [ $((kills % 10)) = 0 ]; then say "$kills kills"; fi
done
touch /run/bed/stop
guest_run demo 'touch /run/bed/stop'
down=$(guest_join demo down) || fail "the guest's downloads: $down"
wait $up || fail "the guest's uploads: $(tail -n 1 /logs/up)"
say "$kills kills; $down downloads and $(tail -n 1 /logs/up) uploads of 32 MiB arrived as they were sent"
sed 's/\x1b\[[0-9;]*m//g' /logs/netback-all.log | sed -n 's/.*pause_ms=\([0-9]*\).*/\1/p' | sort -n >/logs/pauses
expect "times that rings were gone on with" "$(wc -l </logs/pauses)" "$kills"
awk '{ pause[NR] = $1 } END { printf "nobody served for %d ms (median), %d ms (longest)\n", pause[int((NR + 1) / 2)], pause[NR] }' /logs/pauses >&3
answers demo 10.0.0.1
expect "complaints in the guest's kernel log" "$(guest_log demo | grep -ciE 'xen_netfront.*(fail|invalid|bad)|netif.*(error|bad)' || true)" 0
guest_stop demo
unserve all
