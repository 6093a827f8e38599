# Two commands for everyone: `make demo` shows the whole thing working, `make test` proves it.

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-large bench

help:
	@echo 'make demo        build, fetch a clip, transcode it to two renditions, check it, play it   (URL=… for your own)'
	@echo 'make test        format, lints, documentation, build, and all tests'
	@echo 'make test-large  200 shutdowns of ext4 and of XFS, 1,000 kills, 10,000 resets, 50 minutes of noise, 4 GiB up and down (root; 9 GiB of disk)'
	@echo 'make bench       Reelring beside fio, nginx, aria2 and ffmpeg on this machine; writes docs/benchmarks.md'
	@echo 'make setup       only install the system packages that building and the demo need'

setup:
	@bash tests/demo/setup.sh demo

demo:
	@URL='$(subst ','\'',$(URL))' bash tests/demo/demo.sh

# The cheap checks come first; `--all-targets` builds the two workers, which the whole-binary tests start.
test:
	@bash tests/demo/setup.sh test
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --quiet
	cargo build --locked --workspace --all-targets
	cargo test --locked --workspace

test-large:
	@bash tests/demo/setup.sh test
	cargo build --locked --workspace --all-targets
	REELRING_SHUTDOWNS=200 cargo test --locked -p reelring-storage --test shutdown -- --nocapture
	REELRING_KILLS=1000 cargo test --locked -p reelring-storage --test crash -- --nocapture
	REELRING_FUZZ_SECONDS=600 cargo test --locked -p reelring --lib -- --nocapture fuzz
	REELRING_FUZZ_SECONDS=600 cargo test --locked --test node -- --nocapture fuzz
	REELRING_DROPS=10000 cargo test --locked --test node -- --nocapture dropped
	REELRING_IDLE_CONNECTIONS=100000 cargo test --locked --test node -- --nocapture idle_connections
	REELRING_UPLOAD_CUTS=500 cargo test --locked --test node -- --nocapture uploads::clients
	cargo test --locked --test node -- --ignored --nocapture large
	cargo test --locked --test node -- --ignored --nocapture overload

bench:
	@bash tests/demo/setup.sh bench
	cargo build --locked --release -p reelring -p reelring-transcode -p reelring-plugin -p reelring-bench
	$${CARGO_TARGET_DIR:-target}/release/reelring-bench report $(ARGS)
