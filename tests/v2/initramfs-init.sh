#!/bin/busybox sh
# The first process of the test machine: loads what the disk needs and goes over to it.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do
    /bin/busybox insmod "$module" || /bin/busybox echo "v2-machine: cannot load $module"
done
/bin/busybox mount -t ext4 /dev/vda /disk
/bin/busybox umount /proc
/bin/busybox mount --move /dev /disk/dev
exec /bin/busybox switch_root /disk /sbin/init
