# about: a stock PVH guest comes up and uses a disk of the kernel's own backend
# takes: 120 s
# thread: single
# ci: no
disk=$(image pvh.img 64M)
guest_start demo pvh "format=raw,vdev=xvda,access=rw,target=$disk"
expect "the guest's kind" "$(guest_run demo 'cat /sys/hypervisor/guest_type')" PVH
guest_run demo 'echo written by the guest | dd of=/dev/xvda bs=512 seek=7 conv=sync oflag=direct status=none'
expect "what the guest wrote" "$(dd if="$disk" bs=512 skip=7 count=1 status=none | tr -d '\0')" "written by the guest"
guest_stop demo
