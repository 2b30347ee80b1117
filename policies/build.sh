#!/bin/sh
# Builds every policy of this folder from source: the package NAME in the folder NAME becomes NAME/NAME.wasm.
# What is up to date is left alone.
#
# Uses rustup's wasm32-unknown-unknown when it is installed. Otherwise Debian's rustc-web, whose standard library for
# wasm is built from its source package once (a minute or two) and then kept in target/policies.
set -eu

folder=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$folder")
target=wasm32-unknown-unknown
build="$root/target/policies"
built="$build/$target/release"
host_cargo=${CARGO:-cargo}

# Panic messages hold source paths: without these two a policy's digest would differ from machine to machine.
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="--remap-path-prefix=$root=ampoule --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
export CARGO_TARGET_DIR="$build"

has_rustup_target() {
    command -v rustup >/dev/null && rustup target list --installed 2>/dev/null | grep -qx "$target"
}

debian_linker() {
    ls /usr/bin/wasm-ld-* /usr/bin/wasm-ld 2>/dev/null | sort -V | tail -n 1
}

build_modules() {
    if has_rustup_target; then
        cargo build --release --target "$target" --manifest-path "$folder/Cargo.toml"
    elif [ -x /usr/bin/rustc ] && [ -d /usr/lib/rustlib/src/rust/library ] && [ -n "$(debian_linker)" ]; then
        # RUSTC_BOOTSTRAP allows -Zbuild-std with a stable compiler; the compiler and the source are of one package.
        RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$(debian_linker) \
            /usr/bin/cargo build --release --target "$target" -Zbuild-std=std,panic_abort \
            --manifest-path "$folder/Cargo.toml"
    else
        echo "cannot build policies: there is no Rust for $target" >&2
        echo "hint: rustup target add $target" >&2
        echo "hint: or, on Debian: apt-get install rustc-web cargo-web rust-web-src lld-22" >&2
        exit 1
    fi
}

# A component is made anew when its module is newer.
make_component() {
    module=$1 component=$2
    if [ "$component" -nt "$module" ]; then
        return
    fi
    env -u CARGO_TARGET_DIR "$host_cargo" run --quiet --manifest-path "$root/Cargo.toml" \
        -p ampoule-componentize -- "$module" "$component"
    echo "built ${component#"$root"/}"
}

build_modules
for manifest in "$folder"/*/Cargo.toml "$folder"/testing/*/Cargo.toml; do
    place=$(dirname "$manifest")
    policy=$(basename "$place")
    make_component "$built/$(echo "$policy" | tr - _).wasm" "$place/$policy.wasm"
done
