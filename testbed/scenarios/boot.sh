# about: Xen, Dom0 and a stock PV guest come up; the guest uses a disk of the kernel's own backend
# takes: 60 s
# ci: yes
say "$(xl info | sed -n 's/^xen_version *: /Xen /p'), Dom0 $(uname -r), $(nproc) CPUs"
disk=$(image boot.img 64M)
guest_start demo pv "format=raw,vdev=xvda,access=rw,target=$disk"
say "guest: $(guest_run demo 'uname -r; lsblk -bno NAME,SIZE /dev/xvda' | tr '\n' ' ')"
guest_run demo 'echo written by the guest | dd of=/dev/xvda bs=512 seek=7 conv=sync oflag=direct status=none'
expect "what the guest wrote" "$(dd if="$disk" bs=512 skip=7 count=1 status=none | tr -d '\0')" "written by the guest"
guest_run demo 'mke2fs -q /dev/xvda && mount /dev/xvda /mnt && echo hello >/mnt/file && umount /mnt'
expect "a failing command's status" "$(guest_run demo 'exit 3' || echo $?)" 3
guest_stop demo
e2fsck -fn "$disk" >/dev/null 2>&1
