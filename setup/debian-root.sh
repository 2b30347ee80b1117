#!/bin/sh
# Makes target/test-data/debian.tar once: a real Debian root file system with python3 and pytest.
set -eu

cd "$(dirname "$0")/.."
root=target/test-data/debian.tar
[ ! -e "$root" ] || exit 0
[ "$(id -u)" -eq 0 ] && mode=root || mode=unshare
mkdir -p target/test-data
echo "setup: making a Debian root file system"
SOURCE_DATE_EPOCH=1700000000 mmdebstrap --quiet --mode=$mode --variant=minbase --include=python3,python3-pytest \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --format=tar bookworm "$root.part"
mv "$root.part" "$root"
