# about: a stock PV guest uses a disk of QEMU's backend
# takes: 60 s
# ci: no
disk=$(image qdisk.img 64M)
guest_start demo pv "backendtype=qdisk,format=raw,vdev=xvda,access=rw,target=$disk"
guest_run demo 'echo written by the guest | dd of=/dev/xvda bs=512 seek=7 conv=sync oflag=direct status=none'
expect "what the guest wrote" "$(dd if="$disk" bs=512 skip=7 count=1 status=none | tr -d '\0')" "written by the guest"
guest_stop demo
