# about: where the kernel's backend is not loaded, blkback serves a disk of which the xl configuration says nothing special
# takes: 60 s
# ci: no
rmmod xen_blkback
disk=$(image plain.img 64M)
serve plain --watch --type vbd
guest_start demo pv "format=raw,vdev=xvda,access=rw,target=$disk"
expect_has "who serves it" "$(blkback ctl list)" "$disk"
guest_run demo 'echo written by the guest | dd of=/dev/xvda bs=512 seek=7 conv=sync oflag=direct status=none'
expect "what the guest wrote" "$(dd if="$disk" bs=512 skip=7 count=1 status=none | tr -d '\0')" "written by the guest"
guest_stop demo
wait_for 60 '[ "$(blkback ctl list --json)" = "[]" ]'
unserve plain
