#!/bin/sh
# pid 1 of the test machine: mounts what a cgroup-v2 host has, runs the suites and powers off.
PATH=/bin:/sbin
export PATH
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=1777 tmp /tmp
ip link set lo up
echo "v2-machine: kernel $(uname -r), controllers $(cat /sys/fs/cgroup/cgroup.controllers)"

# Everything here runs in a group of its own, as it would under an init system.
mkdir /sys/fs/cgroup/suites
echo $$ >/sys/fs/cgroup/suites/cgroup.procs
echo "+memory +pids +cpu" >/sys/fs/cgroup/cgroup.subtree_control

# Ampoule's own part of the disk: a real file system, where overlay and id-mapped mounts work as on a host.
export TMPDIR=/var/lib HOME=/root
export AMPOULE_TEST_PROGRAM=/bin/ampoule AMPOULE_TEST_SLOWNESS=20
# A test finds what a service leaves by its own children, so there is one test at a time in a process, and the
# suites run side by side instead.
for suite in /suites/*; do
    name=$(basename "$suite")
    # The filter is empty or one word, so it is split on purpose.
    { "$suite" $(cat /suites.filter) --test-threads=1 </dev/null || echo "v2-machine: suite $name failed"; } \
        >"/tmp/$name.log" 2>&1 &
done
wait
for log in /tmp/*.log; do
    echo "v2-machine: suite $(basename "$log" .log)"
    cat "$log"
done
echo "v2-machine: done"
poweroff -f
