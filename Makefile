# Everything a developer runs. `make` alone lists the targets. Each of them works in a clean clone, may be repeated, and writes
# only into this checkout (target/, .venv/) and cargo's own folders; only setup may install system packages, as root, by apt-get.

TARGET := $(or $(CARGO_TARGET_DIR),target)
GUESTS := $(TARGET)/guests
GUEST_BUILD := cargo build --locked --profile wasm --target wasm32-wasip1 --target-dir $(GUESTS)
BENCH_GUEST := $(GUESTS)/wasm32-wasip1/wasm/examples/noop.wasm
FILTERS := $(patsubst filters/%/Cargo.toml,selvedge-filter-%,$(wildcard filters/*/Cargo.toml))
# The SDK's examples are tested on this host too, not only natively.
TEST_FEATURES := selvedge-sdk-testing/wasm
# Where a binary is made with a profile of what it does. The host is named as a target so that build scripts are not profiled.
TUNED := $(abspath $(TARGET))/tuned
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
TUNED_BUILD = cargo build --release --locked -p selvedge --target $(HOST) --target-dir $(TUNED)/target
TUNED_BINARY = $(TUNED)/target/$(HOST)/release/selvedge

.DEFAULT_GOAL := help
.PHONY: help setup setup-full run build tuned test faults lint conformance-envoy cache-suite bench bench-added bench-guest bench-micro filters clean

help: ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## Checks what a build needs; as root with apt-get it installs what is missing.
	@sh .ci/setup

setup-full: ## setup, plus the peers and tools of `make bench` and of the tests that compare with them.
	@sh .ci/setup full

run: setup ## Builds the release binary and starts it with config.yaml.
	cargo build --release --locked -p selvedge
	exec $(TARGET)/release/selvedge run --config config.yaml

build: setup ## Builds the release binary.
	cargo build --release --locked -p selvedge

tuned: setup bench-guest ## The release binary for a tenth to a sixth less CPU: built twice, with a profile of its own load runs (setup-full: nginx, wrk).
	rustup component add llvm-tools
	RUSTFLAGS="-Cprofile-generate=$(TUNED)/runs" $(TUNED_BUILD)
	rm -rf $(TUNED)/runs
	LLVM_PROFILE_FILE=$(TUNED)/runs/%p.profraw python3 benches/load/run.py --rounds 1 --seconds 2 --who selvedge \
		--selvedge $(TUNED_BINARY) --guest $(dir $(BENCH_GUEST))touch.wasm
	$$(rustc --print sysroot)/lib/rustlib/$(HOST)/bin/llvm-profdata merge -o $(TUNED)/profile $(TUNED)/runs/*.profraw
	RUSTFLAGS="-Cprofile-use=$(TUNED)/profile" $(TUNED_BUILD)
	install $(TUNED_BINARY) $(TUNED)/selvedge
	@ls -l $(TUNED)/selvedge

test: setup ## Runs every test of the workspace.
	cargo test --workspace --locked --features $(TEST_FEATURES)

faults: setup ## The fault tests in full: 200 times kill -9 under write load, bodies cut at 1,000 places by each kind of origin.
	SELVEDGE_TEST_KILLS=200 cargo test --locked --workspace --features $(TEST_FEATURES) --test disk -- --nocapture killed::
	SELVEDGE_TEST_CUTS=1000 cargo test --locked --workspace --features $(TEST_FEATURES) --test suite -- cuts::

lint: setup ## Formatting, clippy, documentation and, where cargo-deny is installed, dependencies.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --features $(TEST_FEATURES) -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	@if command -v cargo-deny >/dev/null 2>&1; then cargo deny --locked check; else echo "cargo deny: skipped: cargo-deny not installed"; fi

conformance-envoy: setup ## Runs the conformance cases and all filters on Envoy, and publishes what differs in docs/{conformance,portability}.md.
	cargo test --workspace --locked --features $(TEST_FEATURES) --test suite -- --ignored --nocapture conformance::every_difference_of_envoy
	PORTABLE_PUBLISH=1 cargo test --workspace --locked --features $(TEST_FEATURES) --test suite -- --nocapture portable::

cache-suite: setup ## Runs the public HTTP cache tests of a checkout: SUITE=path, of github.com/http-tests/cache-tests with `undici` installed.
	HTTP_CACHE_TESTS=$(abspath $(SUITE)) cargo test --workspace --locked --features $(TEST_FEATURES) --test suite -- --ignored --nocapture cache_suite::

bench-guest: setup ## Builds the small filters of the benches: ours and, the very same files, Envoy's.
	$(GUEST_BUILD) -p selvedge-test-guests --example noop --example touch --example dear
	$(GUEST_BUILD) -p selvedge-sdk --example hello

bench: build bench-guest ## Load runs against nginx, Envoy, HAProxy and Varnish. ROUNDS=5, ARGS="--json --only cache".
	python3 benches/load/run.py --selvedge $(TARGET)/release/selvedge --guest $(BENCH_GUEST) $(ARGS)

bench-added: build bench-guest ## What one filter and five add to a request, beside Envoy. ARGS="--rounds 300".
	python3 benches/load/added.py --selvedge $(TARGET)/release/selvedge $(ARGS)

bench-micro: bench-guest ## Criterion benches of the hot parts.
	SELVEDGE_BENCH_GUESTS=$(abspath $(dir $(BENCH_GUEST))) cargo bench -p selvedge-benches --locked

filters: setup ## Builds the bundled filters to wasm, for use in this or any other proxy-wasm host.
	$(GUEST_BUILD) $(addprefix -p ,$(FILTERS))
	@ls -l $(GUESTS)/wasm32-wasip1/wasm/*.wasm

clean: ## Removes what was built, compiled filters and the .venv.
	cargo clean
	rm -rf .venv .selvedge-cache
