#!/bin/sh
# Makes once what `ampoule-bench images` packs into images: a Debian root with python3, numpy and pip, and
# what npm installs for a web application. Both are plain tars in target/test-data.
set -eu

cd "$(dirname "$0")/.."
data=target/test-data
mkdir -p "$data"

root=$data/debian-python.tar
if [ ! -e "$root" ]; then
    [ "$(id -u)" -eq 0 ] && mode=root || mode=unshare
    echo "setup: making a Debian root file system with numpy and pip"
    SOURCE_DATE_EPOCH=1700000000 mmdebstrap --quiet --mode=$mode --variant=minbase \
        --include=python3,python3-numpy,python3-pip \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --format=tar bookworm "$root.part"
    mv "$root.part" "$root"
fi

modules=$data/node-modules.tar
if [ ! -e "$modules" ]; then
    echo "setup: having npm install a web application's dependencies"
    folder=$(mktemp -d "$data/npm.XXXXXX")
    trap 'rm -rf "$folder"' EXIT
    # No script of any package runs.
    (cd "$folder" && npm install --silent --no-audit --no-fund --ignore-scripts react-scripts@5.0.1)
    tar --create --file "$modules.part" --directory "$folder" --sort=name --owner=0 --group=0 --numeric-owner \
        --mtime=@1700000000 --transform='s,^\.,app,' ./package.json ./node_modules
    mv "$modules.part" "$modules"
fi
