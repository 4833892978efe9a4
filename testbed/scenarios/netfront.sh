# about: netfront in a stock guest uses interfaces of the kernel's xen-netback and of netback
# takes: 170 s
# limit: 1200
# ci: no
bridge br0 10.0.0.1/24
bridge br1 10.0.1.1/24
iperf_server
# Its kernel has no driver for interfaces yet. The first is the kernel's to serve, the second ours.
guest_start front pv --vcpus 2 --memory 1024 --without xen_netfront --vif 'bridge=br0,mac=00:16:3e:00:00:02'
serve_net ours --bridge br1 --domain front --devid 1 --mac 00:16:3e:00:00:03
in_guest() { guest_run front "$@"; }
guest_module front tun
in_guest 'test ! -e /sys/class/net/eth0'
id=$(xl domid front)

# tap PEER VIF: presents the interface, and waits until it is there.
tap() {
    guest_spawn front "tap-$1" "netfront tap --vif $2 --name $1 & echo \$! >/run/bed/pid; wait \$!"
    in_guest "for _ in \$(seq 300); do [ -e /sys/class/net/$1 ] && break; sleep 0.1; done
        ip addr add 10.0.$2.2/24 dev $1 && ip link set $1 up" || fail "$1: no interface: $(guest_run front "cat /run/bed/tap-$1.log")"
    answers front "10.0.$2.1"
}
same_for_both() {
    local peer=$1 vif=$2 info said
    info=$(in_guest "netfront info --vif $vif --json 2>/dev/null")
    echo "$info" >"/logs/$peer-info.json"
    say "$peer: $(echo "$info" | tr -d ' \n')"
    for key in sg checksum_v4 checksum_v6 gso_tcpv4 gso_tcpv6; do
        expect_has "$peer: what it offers" "$info" "\"$key\": true"
    done
    tap "$peer" "$vif"
    said=$(in_guest "netfront info --vif $vif 2>&1" || true)
    expect_has "$peer: a second user" "$said" "another netfront uses it"
    say "$peer: round trip: $(in_guest "ping -n -q -c 50 -i 0.02 10.0.$vif.1" | tail -n 1)"
    say "$peer: guest sends $(iperf front "10.0.$vif.1" -t 2), receives $(iperf front "10.0.$vif.1" -t 2 -R)"
    say "$peer: four streams: guest sends $(iperf front "10.0.$vif.1" -t 2 -P 4), receives $(iperf front "10.0.$vif.1" -t 2 -P 4 -R)"
    say "$peer: UDP: guest sends $(iperf front "10.0.$vif.1" -t 1 -u -b 20M), receives $(iperf front "10.0.$vif.1" -t 1 -u -b 20M -R)"
    fetched in_guest "10.0.$vif.2" 'bash -c'
    fetched 'bash -c' "10.0.$vif.1" in_guest
    in_guest 'kill $(cat /run/bed/pid)'
    said=$(guest_join front "tap-$peer") || fail "$peer: netfront tap: $said"
    say "$peer: ${said##*$'\n'}"
    # A user that is killed says nothing; the next one has the interface all the same.
    tap "$peer" "$vif"
    in_guest 'kill -9 $(cat /run/bed/pid); while [ -e /sys/class/net/'"$peer"' ]; do sleep 0.1; done'
    tap "$peer" "$vif"
    say "$peer: had again after its user was killed"
}

same_for_both ours 1
# The backend goes and comes back under it.
unserve ours
in_guest 'for _ in $(seq 300); do kill -0 $(cat /run/bed/pid) 2>/dev/null || exit 0; sleep 0.1; done; exit 1' ||
    fail "ours: netfront tap does not notice that its interface was taken away"
said=$(guest_join front tap-ours || true)
say "ours: taken away: ${said##*$'\n'}"

same_for_both kernel 0
echo "vif-$id-0" >/sys/bus/xen-backend/drivers/vif/unbind
sleep 1
echo "vif-$id-0" >/sys/bus/xen-backend/drivers/vif/bind
# As its device manager would.
wait_for 30 '[ -e "/sys/class/net/vif$id.0" ]'
XENBUS_PATH=backend/vif/$id/0 vif=vif$id.0 /etc/xen/scripts/vif-bridge online type_if=vif
answers front 10.0.0.1
say "kernel: went and came back within a tap"
xl network-detach front 0
said=$(guest_join front tap-kernel || true)
expect_has "kernel: why it ended" "$said" "detached"

# An interface that the kernel's own driver has.
in_guest 'insmod $(sed -n "s/^xen_netfront //p" /load)'
xl network-attach front bridge=br0 mac=00:16:3e:00:00:04
in_guest 'for _ in $(seq 300); do [ -e /sys/class/net/eth0 ] && break; sleep 0.1; done; test -e /sys/class/net/eth0'
said=$(in_guest 'netfront info 2>&1' || true)
expect_has "who has it" "$said" "echo vif-0 > /sys/bus/xen/drivers/vif/unbind"
in_guest 'echo vif-0 > /sys/bus/xen/drivers/vif/unbind'
in_guest 'netfront info --vif 0' >/dev/null
say "taken from the kernel's driver"

guest_log front >/logs/guest-kernel.log
expect "complaints of the guest's kernel" "$(grep -c 'BUG:\|WARNING:\|Oops' /logs/guest-kernel.log || true)" 0
guest_stop front
