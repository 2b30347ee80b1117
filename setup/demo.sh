#!/bin/sh
# Plays real jobs on a service of its own and shows how each ended; then stops it and leaves nothing.
#
# usage: setup/demo.sh PROGRAM
# DEMO_IMAGE=debian   runs the jobs in a real Debian instead of busybox, and plays CI on a Python project as well
set -eu

cd "$(dirname "$0")/.."
program=$(realpath "$1")
image=${DEMO_IMAGE:-busybox}
folder=$(mktemp -d "${TMPDIR:-/tmp}/ampoule-demo-XXXXXX")
chmod 755 "$folder"
export AMPOULE_HOST="unix://$folder/run/ampoule.sock"
service=

leave() {
    status=$?
    trap - EXIT INT TERM
    if [ -n "$service" ]; then
        kill "$service" 2>/dev/null || true
        wait "$service" || status=$?
    fi
    [ "$status" -eq 0 ] || cat "$folder/log"
    rm -rf "$folder"
    [ "$status" -ne 0 ] || echo "The service is stopped and $folder is gone."
    exit "$status"
}
trap leave EXIT INT TERM

start() {
    "$program" serve --state "$folder/state" --socket "$folder/run/ampoule.sock" --policies policies/policies.toml \
        >"$folder/log" 2>&1 </dev/null &
    service=$!
    tries=0
    until "$program" ps >/dev/null 2>&1; do
        kill -0 "$service" 2>/dev/null || { echo "the service did not start" >&2; exit 1; }
        tries=$((tries + 1))
        [ "$tries" -le 300 ] || { echo "the service does not answer" >&2; exit 1; }
        sleep 0.1
    done
}

busybox_root() {
    mkdir -p "$folder/root/bin" "$folder/root/etc" "$folder/root/tmp" "$folder/root/proc" "$folder/root/dev"
    cp /bin/busybox "$folder/root/bin/busybox"
    for applet in $(/bin/busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$folder/root/bin/$applet"
    done
    echo 'root:x:0:0:root:/:/bin/sh' >"$folder/root/etc/passwd"
    tar -C "$folder/root" --owner=0 --group=0 --numeric-owner -cf "$folder/root.tar" .
    rm -rf "$folder/root"
}

import_image() {
    if [ "$image" = debian ]; then
        setup/debian-root.sh
        "$program" image import target/test-data/debian.tar --name debian
    else
        busybox_root
        "$program" image import "$folder/root.tar" --name busybox
    fi
}

# One line of the table: what is tried, and how the service says that it ended.
play() {
    title=$1
    expected=$2
    shift 2
    "$program" run --json "$@" >"$folder/job.json" 2>"$folder/job.err" || true
    if [ -s "$folder/job.json" ]; then
        ended=$(jq -r '.ending | .kind + (if .exit_code then " " + (.exit_code | tostring) else "" end)' "$folder/job.json")
        took=$(jq -r '.figures.wall_us // 0 | . / 1000 | tostring | .[0:7] + " ms"' "$folder/job.json")
        peak=$(jq -r '.figures.memory_peak_bytes // 0 | . / 104857.6 | floor / 10 | tostring + " MiB"' "$folder/job.json")
        said=$(jq -r '.ending.detail // .stdout.text // "" | split("\n")[0] // ""' "$folder/job.json")
    else
        ended=denied took=- peak=-
        said=$(head -n 1 "$folder/job.err")
    fi
    printf '%-36s %-15s %12s %8s  %.70s\n' "$title" "$ended" "$took" "$peak" "$said"
    case $ended in
        "$expected"*) ;;
        *) echo "expected: $expected" >&2; cat "$folder/job.err" >&2; exit 1 ;;
    esac
}

play_all() {
    printf '\n%-36s %-15s %12s %8s  %s\n' "job" "ended" "took" "memory" "says"
    play "hello" "exited 0" "$image" -- echo "hello from a sealed vessel"
    play "hello again, in a warm sandbox" "exited 0" "$image" -- echo "hello once more"
    play "a program that fails" "exited 3" "$image" --shell 'echo "cannot do it"; exit 3'
    play "a program that crashes" "signaled" "$image" --shell 'kill -SEGV $$'
    play "ever more memory, 16 MiB allowed" "out_of_memory" --memory 16m "$image" -- tail /dev/zero
    play "a fork bomb" "pids_limit" --pids 24 --timeout 10s "$image" --shell 'while :; do sleep 60 & done'
    play "an endless loop" "wall_limit" --timeout 1s "$image" --shell 'while :; do :; done'
    play "more processor time than is allowed" "cpu_limit" --cpu-time 500ms --timeout 20s "$image" --shell 'while :; do :; done'
    play "more output than is allowed" "output_limit" --output 1m "$image" -- cat /dev/zero
    play "writing to the image" "exited" "$image" --shell 'echo x 2>&1 >/bin/x || exit 1'
    play "what a policy refuses" "denied" --env LD_PRELOAD=/tmp/x.so "$image" -- echo hello
}

# CI on a small Python project: its folder goes up, its tests run read-only, the report comes back.
play_ci() {
    project=$folder/project
    mkdir -p "$project/tests"
    printf 'def add(a, b):\n    return a + b\n' >"$project/calculator.py"
    printf 'from calculator import add\n\ndef test_adds():\n    assert add(2, 3) == 5\n\ndef test_negative():\n    assert add(-2, 2) == 0\n' \
        >"$project/tests/test_calculator.py"
    printf '\nCI: a Python project is tested in Debian\n'
    "$program" run --file "$project:/work/project" --workdir /work/project --writable /work:64m --env PYTHONPATH=. \
        --artifact junit.xml --artifacts-to "$folder/results" debian -- \
        python3 -m pytest -q -p no:cacheprovider --junitxml=junit.xml tests
    report=$(find "$folder/results" -name junit.xml)
    echo "junit.xml: $(head -c 200 "$report")..."
}

start
import_image
play_all
[ "$image" != debian ] || play_ci
printf '\n'
