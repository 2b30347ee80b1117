# All that a newcomer types. Each target installs what it needs first; see setup/install.sh.
.PHONY: help demo test test-v2 bench lint fuzz setup policies build

NEXTEST_PROFILE ?= $(if $(CI),ci,default)
# How long each fuzz target runs.
FUZZ_SECONDS ?= 30
# The policies and their kit, built for this machine: a workspace of their own.
GUESTS = --manifest-path policies/Cargo.toml --target-dir target/policies

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

demo: setup policies ## real jobs on a throw-away service; DEMO_IMAGE=debian plays CI as well
	cargo build --release --bin ampoule --bin ampoule-launcher
	setup/demo.sh target/release/ampoule

test: setup policies ## the whole test-suite, the one inside a cgroup-v2 machine included
	cargo build --workspace --all-targets
	cargo nextest run --workspace --profile $(NEXTEST_PROFILE)
	cargo test --quiet $(GUESTS)
	tests/v2/run.sh

test-v2: setup policies ## the sandbox suites inside a virtual machine with cgroup v2 only
	tests/v2/run.sh

bench: policies ## Ampoule beside crun, runc, bubblewrap, docker and podman; table and chart in target/bench
	setup/install.sh bench
	cargo build --release --bin ampoule --bin ampoule-launcher --bin ampoule-bench
	target/release/ampoule-bench
	setup/bench-images.sh
	target/release/ampoule-bench images
	target/release/ampoule-bench builds

lint: policies ## format, clippy, documentation, rules of our own
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo fmt --manifest-path policies/Cargo.toml --all --check
	cargo clippy $(GUESTS) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	cargo nextest run -p ampoule-tests --test tidy --profile $(NEXTEST_PROFILE)

fuzz: setup ## each fuzz target for FUZZ_SECONDS
	tests/fuzz/run.sh $(FUZZ_SECONDS)

setup: ## installs what is missing
	setup/install.sh

policies: setup ## builds the policies from source
	policies/build.sh

build: policies ## a debug build of everything
	cargo build --workspace --all-targets
