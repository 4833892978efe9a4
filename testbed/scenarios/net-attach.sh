# about: interfaces come and go on a running stock guest: netback's own, and xl network-attach's
# takes: 170 s
# limit: 1200
# ci: no
modprobe -r xen-netback
bridge br0 10.0.0.1/24
iperf_server
serve_net all --watch
guest_start demo pv --vcpus 2
in_guest() { guest_run demo "$@"; }
id=$(xl domid demo)
# The guest's name of the interface with that address, and that interface set up.
met() {
    in_guest "for _ in \$(seq 300); do
            name=\$(cd /sys/class/net && grep -l '^$1\$' */address | cut -d/ -f1)
            [ -n \"\$name\" ] && ip addr add 10.0.0.$2/24 dev \$name && ip link set \$name up && exit
            sleep 0.1
        done; exit 1" || fail "the guest has no interface $1"
    answers demo 10.0.0.1
}
gone() {
    in_guest "for _ in \$(seq 300); do grep -q '^$1\$' /sys/class/net/*/address || exit 0; sleep 0.1; done; exit 1" ||
        fail "the guest still has an interface $1"
}
left() { xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep -c 'vif3*/[0-9]' || true; }

mac=00:16:3e:00:00:05
for round in 1 2 3; do
    serve_net "own$round" --bridge br0 --domain demo --devid 5 --mac $mac
    met $mac 5
    case $round in
    1) unserve own1 ;;
    2)
        netback ctl --domain demo --devid 5 detach >/dev/null
        wait "${SERVED[own2]}" || fail "netback ended with $?"
        ;;
    3)
        guest_spawn demo load 'iperf3 -c 10.0.0.1 -t 60'
        netback ctl --domain demo --devid 5 detach --force >/dev/null
        wait "${SERVED[own3]}" || fail "netback ended with $?"
        ;;
    esac
    gone $mac
    expect "what is left in the store" "$(left)" 0
    [ ! -e "/sys/class/net/vif$id.5" ] || fail "vif$id.5 is left behind"
    say "round $round: attached, used, detached"
done
said=$(netback --bridge br0 --domain 4711 </dev/null 2>&1) && fail "a domain that is not there was served"
expect_has "netback's words" "$said" "no such domain"

serve_net own --bridge br0 --domain demo --devid 5 --mac $mac
met $mac 5
theirs=00:16:3e:00:00:06
for round in 1 2 3; do
    xl network-attach demo bridge=br0 mac=$theirs || fail "xl network-attach"
    in_guest 'ip link set eth0 down'
    met $theirs 6
    in_guest 'ip link set eth0 up'
    xl network-list demo | while read -r line; do say "xl: $line"; done
    xl network-detach demo 0 || fail "xl network-detach"
    gone $theirs
    say "round $round: attached by xl, used, detached by xl"
done
answers demo 10.0.0.1
netback ctl list | while read -r line; do say "$line"; done

say "by a configuration with a name, a rate and an address"
xl network-attach demo bridge=br0 mac=$theirs vifname=web0 rate=8Mb/s ip=10.0.0.6 || fail "xl network-attach"
[ -e /sys/class/net/br0/brif/web0 ] || fail "the script has not put web0 on the bridge"
in_guest 'ip link set eth0 down'
met $theirs 6
rate=$(iperf demo 10.0.0.1 -t 4)
say "with 8 Mbit/s the guest sends $rate"
awk '{ exit !($1 < 12) }' <<<"$rate" || fail "the rate does not hold"
in_guest "name=\$(cd /sys/class/net && grep -l '^$theirs\$' */address | cut -d/ -f1)
    ip addr flush dev \$name; ip addr add 10.0.0.77/24 dev \$name"
! in_guest 'ping -n -q -c 2 -W 2 10.0.0.1' >/dev/null || fail "the guest sends as somebody else"
xl network-detach demo 0
in_guest 'ip link set eth0 up'

say "what cannot be served is said by xl"
for wrong in "bridge=nobridge" "bridge=br0 ip=10.0.0.0/8"; do
    begun=$SECONDS
    # shellcheck disable=SC2086
    ! xl network-attach demo $wrong >/logs/no.log 2>&1 || fail "$wrong was attached"
    say "$wrong: refused after $((SECONDS - begun)) s: $(xenstore-read "/local/domain/0/backend/vif/$id/0/hotplug-error")"
    # xl itself leaves its directories.
    xl network-detach demo 0 || fail "xl network-detach of what was refused"
done
answers demo 10.0.0.1
unserve own
expect "what is left in the store" "$(left)" 0
wait_for 30 '[ "$(pgrep -c -x netback)" = 1 ]'
guest_log demo >/logs/guest-kernel.log
expect "complaints of the guest's kernel" "$(grep -c -i 'BUG:\|WARNING:\|Oops' /logs/guest-kernel.log || true)" 0
guest_stop demo
unserve all
