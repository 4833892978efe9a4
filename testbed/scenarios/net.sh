# about: netback --watch serves the interface of a stock xl configuration: IPv4, IPv6, UDP, VLANs, jumbo frames, and through a router
# takes: 150 s
# limit: 900
# ci: no
modprobe -r xen-netback
bridge br0 10.0.0.1/24 fd00::1/64
iperf_server
serve_net all --watch
begun=$SECONDS
guest_start demo pv --vcpus 2 --vif 'bridge=br0,mac=00:16:3e:00:00:02'
say "the guest is up after $((SECONDS - begun)) s"
in_guest() { guest_run demo "$@"; }
# both WHAT ADDRESS [OPTION...]: what the guest sends, and what it receives.
both() { say "$1: guest sends $(iperf demo "${@:2}"), receives $(iperf demo "${@:2}" -R)"; }

id=$(xl domid demo)
vif=vif$id.0 back=/local/domain/0/backend/vif/$id/0
wait_for 60 '[ "$(xenstore-read $back/state)" = 4 ]'
expect "the script's word" "$(xenstore-read "$back/hotplug-status")" connected
[ -e "/sys/class/net/br0/brif/$vif" ] || fail "the script has not put $vif on the bridge"
netback ctl list | while read -r line; do say "$line"; done
guest_log demo | grep -i -e 'virtual ethernet' -e netfront -e vif | while read -r line; do say "guest: $line"; done
said=$(xenstore-ls "/local/domain/$id/device/vif/0")
for key in request-rx-copy feature-rx-notify feature-sg feature-gso-tcpv4 feature-gso-tcpv6 feature-ipv6-csum-offload; do
    expect_has "what the guest's kernel says it does" "$said" "$key = \"1\""
done
expect_has "its queues" "$said" 'multi-queue-num-queues = "2"'
said=$(in_guest 'ethtool -k eth0')
for feature in tx-checksum-ipv4 tx-checksum-ipv6 scatter-gather tx-tcp-segmentation tx-tcp6-segmentation; do
    expect_has "what the guest's kernel does not do itself" "$said" "$feature: on"
done

in_guest 'ip addr add 10.0.0.2/24 dev eth0; ip addr add fd00::2/64 dev eth0 nodad; ip link set eth0 up'
answers demo 10.0.0.1
answers demo fd00::1
say "the guest's round trip: $(in_guest 'ping -n -q -c 50 -i 0.02 10.0.0.1' | tail -n 1)"
both "TCP over IPv4" 10.0.0.1 -t 2
both "four streams" 10.0.0.1 -t 2 -P 4
both "TCP over IPv6" fd00::1 -t 1
both "UDP, 20 Mbit/s asked for" 10.0.0.1 -t 1 -u -b 20M
both "UDP over IPv6, 4 fragments each" fd00::1 -t 1 -u -b 20M -l 5000
fetched in_guest 10.0.0.2 'bash -c'
fetched 'bash -c' 10.0.0.1 in_guest

guest_module demo 8021q
in_guest 'ip link add link eth0 name eth0.7 type vlan id 7; ip addr add 10.0.7.2/24 dev eth0.7; ip link set eth0.7 up'
ip link add link br0 name br0.7 type vlan id 7
ip addr add 10.0.7.1/24 dev br0.7
ip link set br0.7 up
answers demo 10.0.7.1
both "with VLAN tags" 10.0.7.1 -t 1
fetched in_guest 10.0.7.2 'bash -c'
fetched 'bash -c' 10.0.7.1 in_guest

# Dom0 is a router now. What the guest left blank has to be filled in before it leaves Dom0, and whoever
# receives it looks; the other way, what comes from there is blank still when it reaches the guest.
ip netns add far
ip link add out0 type veth peer name eth0 netns far
ip addr add 10.0.1.1/24 dev out0
ip link set out0 up
far() { ip netns exec far "$@"; }
far ip addr add 10.0.1.2/24 dev eth0
far ip link set eth0 up
far ip route add default via 10.0.1.1
ethtool -K out0 tx off >/dev/null
far ethtool -K eth0 rx off >/dev/null
echo 1 >/proc/sys/net/ipv4/ip_forward
iperf_server ip netns exec far
in_guest 'ip route add 10.0.1.0/24 via 10.0.0.1'
answers demo 10.0.1.2
both "through a router" 10.0.1.2 -t 1
both "through a router, UDP" 10.0.1.2 -t 1 -u -b 10M
fetched in_guest 10.0.0.2 'ip netns exec far bash -c'
fetched 'ip netns exec far bash -c' 10.0.1.2 in_guest
wrong() {
    # A line of titles, and one of numbers.
    awk '/^(Tcp|Udp):/ { for (n = 2; n <= NF; n++) { if ($n ~ /^[A-Z]/) title[n] = $n; else if (title[n] == "InCsumErrors") sum += $n } }
        END { print sum + 0 }' /proc/net/snmp
}
expect "wrong checksums seen outside" "$(far bash -c "$(declare -f wrong); wrong")" 0
expect "wrong checksums seen by the guest" "$(in_guest "$(declare -f wrong); wrong")" 0

ip link set br0 mtu 9000
ip link set "$vif" mtu 9000
in_guest 'ip link set eth0 mtu 9000'
answers demo 10.0.0.1 -M do -s 8972
both "jumbo frames" 10.0.0.1 -t 1
both "jumbo frames, UDP" 10.0.0.1 -t 1 -u -b 50M -l 8900

netback ctl counters >/logs/counters.log
grep -E 'lost|fault' /logs/counters.log | while read -r line; do say "$line"; done || true
guest_log demo >/logs/guest-kernel.log
expect "complaints of the guest's kernel" "$(grep -c -i 'BUG:\|WARNING:\|Oops' /logs/guest-kernel.log || true)" 0
guest_stop demo
wait_for 30 '[ "$(netback ctl list --json)" = "[]" ]'
[ ! -e "/sys/class/net/$vif" ] || fail "$vif is left behind"
expect "what is left in the store" "$(xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep -c 'vif/[0-9]' || true)" 0
unserve all
