#!/bin/sh
# Runs the sandbox suites inside a virtual machine whose kernel has cgroup v2 only, and fails when they fail.
# The machine is qemu's TCG with Debian's cloud kernel; nothing is installed, everything lands below target/v2.
#
# usage: tests/v2/run.sh [test filter]
# AMPOULE_V2_TIMEOUT   seconds that the whole machine may take (default 900)
# AMPOULE_V2_SUITES    suites to run, in words (default below)
set -eu

cd "$(dirname "$0")/../.."
filter=${1:-}
timeout_seconds=${AMPOULE_V2_TIMEOUT:-900}
suites=${AMPOULE_V2_SUITES:-endings limits isolation}
vm=target/v2
log=$vm/serial.log
mkdir -p "$vm"

say() { printf 'v2: %s\n' "$*"; }

fetch_kernel() {
    ls "$vm"/kernel/boot/vmlinuz-* >/dev/null 2>&1 && return
    rm -rf "$vm/kernel" "$vm/deb"
    mkdir -p "$vm/deb"
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$package" ] || { say "apt knows no linux-image-cloud-amd64; run: apt-get update"; exit 1; }
    say "downloading $package"
    (cd "$vm/deb" && apt-get -qq -o APT::Sandbox::User=root download "$package")
    dpkg-deb -x "$vm"/deb/*.deb "$vm/kernel.part"
    mv "$vm/kernel.part" "$vm/kernel"
    rm -rf "$vm/deb"
}

# The modules without which there is no disk, in the order in which they depend on each other.
make_initramfs() {
    root=$vm/initramfs
    rm -rf "$root"
    mkdir -p "$root/bin" "$root/modules" "$root/proc" "$root/dev" "$root/disk"
    cp /bin/busybox "$root/bin/busybox"
    kernel_modules=$(echo "$vm"/kernel/lib/modules/*/kernel)
    number=10
    for module in drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev \
        drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci drivers/block/virtio_blk fs/overlayfs/overlay; do
        cp "$kernel_modules/$module.ko" "$root/modules/$number-$(basename "$module").ko"
        number=$((number + 1))
    done
    cp tests/v2/initramfs-init.sh "$root/init"
    chmod 755 "$root/init"
    (cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$vm/initramfs.gz"
}

# Builds the suites and prints the path of each test program, one a line.
build_suites() {
    set --
    for suite in $suites; do set -- "$@" --test "$suite"; done
    # The whole workspace is named so that features, and with them all that is built already, stay the same.
    cargo build --quiet --workspace --bin ampoule --bin ampoule-launcher 1>&2
    cargo test --quiet --no-run --workspace "$@" --message-format=json |
        python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and "test" in message["target"]["kind"]:
        print(message["target"]["name"], message["executable"])'
}

# Copies a program to /bin of the disk, with the libraries that it needs.
install_program() {
    cp "$1" "$disk/bin/$2"
    # "Not a dynamic executable" is fine: it needs nothing.
    { ldd "$1" 2>/dev/null || true; } | grep -o '/[^ ]*' | sort -u | while read -r library; do
        mkdir -p "$disk$(dirname "$library")"
        cp -Ln "$library" "$disk$library" 2>/dev/null || [ -e "$disk$library" ]
    done
}

make_disk() {
    disk=$vm/disk
    rm -rf "$disk" "$vm/disk.img"
    mkdir -p "$disk/bin" "$disk/sbin" "$disk/etc" "$disk/proc" "$disk/sys" "$disk/dev" "$disk/tmp" "$disk/root" \
        "$disk/var/lib" "$disk/run" "$disk/suites"
    chmod 1777 "$disk/tmp"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$disk/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$disk/etc/group"
    install_program /bin/busybox busybox
    for applet in $(busybox --list); do [ -e "$disk/bin/$applet" ] || ln -s busybox "$disk/bin/$applet"; done
    build_suites >"$vm/suites.txt"
    install_program target/debug/ampoule ampoule
    install_program target/debug/ampoule-launcher ampoule-launcher
    # Panics in a test's own process unwind with it, and it is loaded at run time, so ldd does not name it.
    libgcc=$(gcc -print-file-name=libgcc_s.so.1)
    mkdir -p "$disk/lib/x86_64-linux-gnu"
    cp -Ln "$libgcc" "$disk/lib/x86_64-linux-gnu/" || true
    while read -r name program; do
        install_program "$program" "suite-$name"
        mv "$disk/bin/suite-$name" "$disk/suites/$name"
    done <"$vm/suites.txt"
    cp tests/v2/disk-init.sh "$disk/sbin/init"
    chmod 755 "$disk/sbin/init"
    printf '%s\n' "$filter" >"$disk/suites.filter"
    truncate -s 2G "$vm/disk.img"
    mke2fs -q -t ext4 -d "$disk" "$vm/disk.img"
}

boot() {
    rm -f "$log"
    status=0
    timeout --foreground "$timeout_seconds" qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 \
        -nodefaults -no-user-config -nographic -no-reboot -serial "file:$log" \
        -kernel "$(echo "$vm"/kernel/boot/vmlinuz-*)" -initrd "$vm/initramfs.gz" \
        -append "console=ttyS0 quiet panic=-1 random.trust_cpu=on" \
        -drive "file=$vm/disk.img,format=raw,if=none,id=disk,cache=unsafe" -device virtio-blk-pci,drive=disk \
        </dev/null || status=$?
    [ "$status" -eq 0 ] || say "qemu ended with status $status (124: more than $timeout_seconds s)"
}

# Prints what failed, and the sum; the last line is for .ci/run.
judge() {
    tr -d '\r' <"$log" >"$log.text"
    grep -E '^(test .* \.\.\. |test result|v2-machine)' "$log.text" || true
    passed=$(sed -n 's/^test result: .* \([0-9]*\) passed; .*/\1/p' "$log.text" | awk '{ sum += $1 } END { print sum + 0 }')
    failed=$(sed -n 's/^test result: .* passed; \([0-9]*\) failed; .*/\1/p' "$log.text" | awk '{ sum += $1 } END { print sum + 0 }')
    ignored=$(sed -n 's/^test result: .* failed; \([0-9]*\) ignored; .*/\1/p' "$log.text" | awk '{ sum += $1 } END { print sum + 0 }')
    if ! grep -q '^v2-machine: done' "$log.text"; then
        tail -n 40 "$log.text"
        say "the machine did not reach its end"
        failed=$((failed + 1))
    elif [ "$failed" -gt 0 ] || grep -q '^v2-machine: suite .* failed' "$log.text"; then
        sed -n '/^failures:/,/^test result/p' "$log.text"
        [ "$failed" -gt 0 ] || failed=1
    fi
    printf 'v2: %s passed, %s failed, %s skipped\n' "$passed" "$failed" "$ignored"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}

fetch_kernel
make_initramfs
make_disk
say "booting; the console is in $log"
boot
judge
