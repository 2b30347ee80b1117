#!/bin/sh
# Installs what is missing for building and testing (and, with `bench`, the peers that are measured beside us).
# Does nothing, quickly, when all is there. Debian and its kin; run as root, or with sudo at hand.
#
# usage: setup/install.sh [bench]
set -eu

cd "$(dirname "$0")/.."

# busybox-static: the image of most tests. mmdebstrap: a real Debian root. qemu: the machine with cgroup v2 only.
# skopeo, umoci: read our image store and archives, and write such that we import. docker.io, podman: load what we save.
# nftables: the way out of sandboxes. iproute2: a small world beside the machine, which sandboxes reach in tests.
# docker-registry: pulled from and pushed to, with apache2-utils and openssl for its logins. libcap2-bin: setcap, for
# files with capabilities. rustc-web and what follows: policies written in Rust, where rustup has no wasm target at hand.
packages="gcc libc6-dev make python3 curl jq gzip bzip2 xz-utils e2fsprogs busybox-static mmdebstrap qemu-system-x86 skopeo umoci"
packages="$packages nftables iproute2 docker-registry apache2-utils openssl libcap2-bin docker.io podman"
packages="$packages rustc-web cargo-web rust-web-src lld-22 wasi-libc"
[ "${1:-}" != bench ] || packages="$packages crun runc bubblewrap buildah npm"

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "setup: this needs root: $*" >&2
        exit 1
    fi
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# A program that came another way (a compiler image, a docker CLI beside its daemon) counts as well.
is_there() {
    case $1 in
        gcc | make | python3 | curl | jq | gzip | bzip2 | npm) command -v "$1" >/dev/null ;;
        libc6-dev) [ -e /usr/lib/x86_64-linux-gnu/libc.a ] ;;
        e2fsprogs) [ -x /sbin/mke2fs ] ;;
        docker.io) command -v dockerd >/dev/null && command -v docker >/dev/null ;;
        *) is_installed "$1" ;;
    esac
}

missing=""
for package in $packages; do is_there "$package" || missing="$missing $package"; done
if [ -n "$missing" ]; then
    echo "setup: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    as_root apt-get -qq update
    # The list is split into words on purpose.
    # shellcheck disable=SC2086
    as_root apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install $missing >/dev/null
fi

cargo nextest --version >/dev/null 2>&1 || cargo install --locked cargo-nextest
setup/debian-root.sh
