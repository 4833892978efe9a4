# about: two stock guests of netback's on one bridge: traffic, reboot, crash and end under it, interfaces up and down a thousand times
# takes: 200 s
# limit: 2400
# ci: no

# One has two queues, and its host's interface another name (vifname), which the stock script gives it. What is
# compared before and after is what Xen counts (pages of guests that somebody has mapped, Dom0's event channels),
# and descriptors and threads of the process that serves the interface.
GUEST_LIMIT=600
updowns=${NET_UPDOWNS:-1000} binds=${NET_BINDS:-30}
modprobe -r xen-netback
bridge br0 10.0.0.1/24
serve_net all --watch
guest_start one pv --vcpus 2 --config "on_crash = 'restart'" --vif 'bridge=br0,mac=00:16:3e:00:00:02,vifname=web0'
guest_start two pv --vif 'bridge=br0,mac=00:16:3e:00:00:03'
# addressed NAME NUMBER: gives the guest its address.
addressed() {
    guest_run "$1" "for _ in \$(seq 300); do [ -e /sys/class/net/eth0 ] && break; sleep 0.1; done
        ip addr add 10.0.0.$2/24 dev eth0 && ip link set eth0 up" || fail "$1 has no eth0"
}
addressed one 2
addressed two 3
netback ctl list | while read -r line; do say "$line"; done
[ -e /sys/class/net/br0/brif/web0 ] || fail "the script has not put web0 on the bridge"
answers one 10.0.0.3
guest_spawn two server 'iperf3 -s'
say "one sends to two: $(iperf one 10.0.0.3 -t 2)"
say "two sends to one: $(iperf one 10.0.0.3 -t 2 -R)"
say "one sends to two, four streams: $(iperf one 10.0.0.3 -t 2 -P 4)"
fetched 'guest_run two' 10.0.0.3 'guest_run one'
fetched 'guest_run one' 10.0.0.2 'guest_run two'

process() { netback ctl --domain one list --json | sed -n 's/.*"pid":\([0-9]*\).*/\1/p'; }
descriptors() { find "/proc/$(process)/fd" -type l | wc -l; }
threads() { find "/proc/$(process)/task" -mindepth 1 -maxdepth 1 | wc -l; }
taken() { echo "$(mapped_grants) pages, $(open_channels) channels, $(descriptors) descriptors, $(threads) threads"; }
before=$(taken)
say "before: $before"
guest_run one "for n in \$(seq $updowns); do echo link set eth0 down; echo link set eth0 up; done | ip -batch -"
answers one 10.0.0.3
say "up and down $updowns times: $(taken)"
expect "after it was up and down" "$(taken)" "$before"
guest_run one "for n in \$(seq $binds); do
    echo vif-0 >/sys/bus/xen/drivers/vif/unbind || exit
    [ ! -e /sys/class/net/eth0 ] || exit
    echo vif-0 >/sys/bus/xen/drivers/vif/bind || exit
    for _ in \$(seq 300); do [ -e /sys/class/net/eth0 ] && break; sleep 0.1; done
done" || fail "binding the guest's driver"
addressed one 2
answers one 10.0.0.3
wait_for 30 '[ "$(taken)" = "$before" ]'
say "driver unbound and bound $binds times: $(taken)"
say "$(netback ctl --domain one list --json | grep -o '"connections":[0-9]*')"

# Both ways, and without an end.
traffic() { guest_spawn two load 'while :; do iperf3 -c 10.0.0.2 -t 300 --bidir || sleep 0.5; done'; }
busy() {
    guest_spawn one server 'iperf3 -s'
    local counter=/sys/class/net/web0/statistics/rx_packets from
    from=$(cat "$counter")
    wait_for 120 "[ \$(cat $counter) -gt $((from + 500)) ]"
}
traffic
busy
before=$(xl domid one)
guest_run one '(sleep 2; reboot -f) >/dev/null 2>&1 &'
wait_for 300 '[ "$(xl domid one 2>/dev/null || echo '"$before"')" != '"$before"' ]'
guest_ready one
addressed one 2
answers one 10.0.0.3
say "rebooted under traffic, as domain $(xl domid one)"
busy
before=$(xl domid one)
guest_run one '(sleep 2; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &'
wait_for 300 '[ "$(xl domid one 2>/dev/null || echo '"$before"')" != '"$before"' ]'
guest_ready one
addressed one 2
answers one 10.0.0.3
say "crashed under traffic and restarted, as domain $(xl domid one)"
busy
guest_destroy one
wait_for 60 '[ ! -e /sys/class/net/web0 ]'
wait_for 30 '[ "$(pgrep -c -x netback)" = 2 ]'
say "destroyed under traffic; its interface is gone"

# The watcher goes and comes back under a guest.
answers two 10.0.0.1
unserve all
serve_net again --watch
answers two 10.0.0.1
say "a new watcher took over the interface of a running guest"
guest_log two >/logs/two-kernel.log
expect "complaints of the guest's kernel" "$(grep -c -i 'BUG:\|WARNING:\|Oops' /logs/two-kernel.log || true)" 0
guest_destroy two
wait_for 60 '[ "$(pgrep -c -x netback)" = 1 ]'
expect "what is left in the store" "$(xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep -c 'vif/[0-9]' || true)" 0
expect "domains that cannot go" "$(xl list | grep -c '(null)' || true)" 0
unserve again
