# The commands of the project. `make run` and `make test` install what is missing (Debian packages), build, and go.
#
#   make run                  a node on its defaults: store in ./data, API on 127.0.0.1:7770   (ARGS="--shards 1")
#   make test                 every test: Rust, whole connector, JavaScript peers
#   make bench                bundled benches and the load test, as one table                   (QUICK=1: a minute)
#   make crash ROUNDS=200     more rounds of the crash tests: packets, and a tenth as many of each kill of settlement
#   make fuzz SECONDS=60      every parser under a fuzzer, so long each
#   make lint                 formatting and clippy

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# Outside the clone, so that RocksDB (ten minutes) is compiled once and not once per clone.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/clearway/target
# One profile for everything, for the same reason.
PROFILE := --release --locked
ROUNDS ?= 100
SECONDS ?= 60
ARGS ?=

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# $(call install,a test that the thing is there,packages)
define install
@if ! ( $(1) ) >/dev/null 2>&1; then \
	echo "installing $(2)"; \
	command -v apt-get >/dev/null || { echo "please install the equivalents of these Debian packages: $(2)" >&2; exit 1; }; \
	$(SUDO) apt-get update -qq; \
	DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq $(2) >/dev/null; \
fi
endef

.PHONY: build run test lint bench crash fuzz needs-build needs-test needs-bench

needs-build:
	@command -v cargo >/dev/null || { echo "Rust is missing: see https://rustup.rs" >&2; exit 1; }
	$(call install,command -v g++ make,g++ make)
	$(call install,ls /usr/lib/llvm-*/lib/libclang.so* && ls /usr/lib/llvm-*/lib/clang/*/include/stddef.h,libclang-dev)

needs-test: needs-build
	$(call install,command -v node && command -v npm,nodejs npm)
	$(call install,command -v redis-server,redis-server)
	$(call install,command -v curl,curl)
	$(call install,python3 -m ensurepip --version && python3 -m venv --help,python3 python3-venv)

needs-bench: needs-build
	$(call install,command -v curl,curl)
	$(call install,command -v taskset,util-linux)
	$(call install,test -x /usr/sbin/nginx || command -v nginx,nginx-light)
	$(call install,test -x /usr/sbin/haproxy || command -v haproxy,haproxy)

build: needs-build
	@[ -e "$(CARGO_TARGET_DIR)/release/clearway" ] || echo "first build: RocksDB alone takes some ten minutes on two cores"
	cargo build $(PROFILE) --bin clearway

run: build
	"$(CARGO_TARGET_DIR)/release/clearway" $(ARGS)

test: needs-test
	cargo test $(PROFILE) --workspace --all-targets

lint: needs-build
	cargo fmt --all --check
	cargo clippy $(PROFILE) --workspace --all-targets -- -D warnings

bench: needs-bench
	CARGO_INCREMENTAL=0 cargo build $(PROFILE) --workspace --bins
	CARGO_INCREMENTAL=0 cargo bench --quiet --locked --profile release --bench '*' | grep -a '^ratio'
	perf/run $(if $(QUICK),--quick)

crash: needs-build
	CRASH_ROUNDS=$(ROUNDS) cargo test $(PROFILE) --test crash -- --nocapture
	CRASH_ROUNDS=$$(($(ROUNDS) / 10 + 1)) cargo test $(PROFILE) --test settlement_crash -- --nocapture

fuzz: needs-build
	fuzz/run $(SECONDS)
