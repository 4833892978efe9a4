# about: A stock guest's lives on disks of blkback: driver unbound, reboot, crash, destroyed in the midst of I/O, served by a new watcher
# takes: 240 s
# limit: 2400
# ci: no
GUEST_LIMIT=900
disk=$(image disk.img 64M)
serve all --watch
guest_start demo pv --vcpus 2 --config "on_crash = 'restart'" "$(ours xvda "$disk")"
check() { guest_run demo "dd if=/dev/xvda bs=512 skip=$1 count=1 iflag=direct status=none" | tr -d '\0'; }
put() { guest_run demo "echo $2 | dd of=/dev/xvda bs=512 seek=$1 conv=sync,fsync oflag=direct status=none"; }
put 1 first
busy() {
    guest_spawn demo load 'fio --name=load --filename=/dev/xvda --rw=randrw --bs=4k --iodepth=16 --ioengine=libaio --direct=1 \
        --offset=1M --size=32M --time_based --runtime=900 --output=/dev/null'
    sleep 2
}

for round in 1 2 3 4 5; do
    guest_run demo 'echo vbd-51712 >/sys/bus/xen/drivers/vbd/unbind; [ ! -b /dev/xvda ]; echo vbd-51712 >/sys/bus/xen/drivers/vbd/bind
        until [ -b /dev/xvda ]; do sleep 0.1; done'
done
expect "after five bindings of the driver" "$(check 1)" first
say "driver unbound and bound five times"

before=$(xl domid demo)
guest_run demo '(sleep 3; reboot -f) >/dev/null 2>&1 &'
wait_for 300 '[ "$(xl domid demo 2>/dev/null || echo '"$before"')" != '"$before"' ]'
guest_ready demo
expect "after a reboot" "$(check 1)" first
say "rebooted, as domain $(xl domid demo)"

put 2 second
busy
before=$(xl domid demo)
guest_run demo '(sleep 3; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &'
wait_for 300 '[ "$(xl domid demo 2>/dev/null || echo '"$before"')" != '"$before"' ]'
guest_ready demo
expect "after a crash under load" "$(check 2)" second
say "crashed under load and restarted, as domain $(xl domid demo)"

busy
guest_destroy demo
wait_for 60 '[ "$(blkback ctl list --json)" = "[]" ]'
expect "what is left in the store" "$(xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep -c 'vbd3*/[0-9]' || true)" 0
expect "processes of blkback" "$(pgrep -c -x blkback)" 1
say "destroyed under load; nothing is left"

# The watcher goes and comes back under a guest.
guest_start demo pv "$(ours xvda "$disk")"
unserve all
serve again --watch
put 3 third
expect "after a new watcher" "$(check 2) $(check 3)" "second third"
say "a new watcher took over the disk of a running guest"
guest_stop demo
unserve again
