#!/bin/sh
# Runs each fuzz target for so many seconds. The corpus grows in target/fuzz/corpus; a finding is written beside it.
#
# usage: tests/fuzz/run.sh [SECONDS [TARGET…]]
set -eu

cd "$(dirname "$0")/../.."
seconds=${1:-30}
[ $# -eq 0 ] || shift
targets=${*:-"archive build_dockerfile build_expand build_ignore build_mount compression image_changes image_layer image_manifest image_reference job_request registry_challenge"}
export CARGO_TARGET_DIR=target/fuzz
# Coverage counters as libFuzzer reads them; a stable compiler has these options too.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
# With a target of its own, build scripts and macros are built without the counters.
triple=$(rustc -vV | sed -n 's/^host: //p')
cargo build --quiet --release --target "$triple" --manifest-path tests/fuzz/Cargo.toml
for target in $targets; do
    mkdir -p "target/fuzz/corpus/$target"
    echo "fuzzing $target for $seconds s"
    "target/fuzz/$triple/release/$target" -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -verbosity=0 \
        -artifact_prefix="target/fuzz/$target-" "target/fuzz/corpus/$target"
done
