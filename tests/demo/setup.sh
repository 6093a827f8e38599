#!/usr/bin/env bash
# Installs the system packages Reelring needs on Debian 12 or Ubuntu 24.04, and nothing that is there already.
#
#   setup.sh demo    what building and `make demo` need
#   setup.sh test    also a browser, a player and npm, for the tests that play a video, clients to read with, and the programs that `bench` needs
#   setup.sh bench   also fio, wrk and aria2, to compare with
#
# A second run finds everything installed: it needs neither root nor a network.
set -euo pipefail

purpose=${1:-demo}
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
tools=$target/tools
rust_min=1.89

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

check_rust() {
    if ! have cargo && [ -f "$HOME/.cargo/env" ]; then
        fail "cargo is installed but not in PATH; run: . \"\$HOME/.cargo/env\""
    fi
    have cargo || fail "Rust is not installed: get it from https://rustup.rs (Reelring needs $rust_min or newer), then run this again"
    local version
    version=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$rust_min" "$version" | sort -V | sed -n 1p)" != "$rust_min" ]; then
        fail "Rust $version is too old, Reelring needs $rust_min or newer; run: rustup update stable"
    fi
    [ "$purpose" = test ] || return 0
    cargo fmt --version >/dev/null 2>&1 || fail "rustfmt is missing; run: rustup component add rustfmt"
    cargo clippy --version >/dev/null 2>&1 || fail "clippy is missing; run: rustup component add clippy"
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
available() { [ -n "$(apt-cache madison "$1" 2>/dev/null)" ]; }

# As root, or through sudo; sudo may ask for a password only where there is a person to answer.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

# Before anything is begun: whether it can be finished, and if not, what somebody else should run.
need_root_for() {
    if [ "$(id -u)" = 0 ] || { have sudo && [ -t 0 ]; } || { have sudo && sudo -n true 2>/dev/null; }; then
        return 0
    fi
    fail "packages are missing, and only root may install them; let root run: apt-get update && apt-get install -y --no-install-recommends $*"
}

listed=no
refresh_lists() {
    [ "$listed" = no ] || return 0
    listed=yes
    say "apt-get update"
    as_root apt-get update -qq || say "some package lists could not be refreshed; going on with the ones that are here"
}

install() {
    local missing=() package
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    need_root_for "${missing[@]}"
    refresh_lists
    say "apt-get install ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "${missing[@]}" </dev/null >"$tools/apt.log" 2>&1 || {
        tail -n 20 "$tools/apt.log" >&2
        fail "apt-get could not install: ${missing[*]}"
    }
}

# The origin the demo and the tests fetch from. It is unpacked, not installed: installing nginx would start a web
# server on port 80 of this machine.
unpack_nginx() {
    if have nginx || [ -x /usr/sbin/nginx ] || [ -x "$tools/nginx/usr/sbin/nginx" ]; then
        return 0
    fi
    local package folder
    available nginx || refresh_lists
    for package in nginx nginx-core; do
        folder=$(mktemp -d "$tools/nginx.XXXXXX")
        say "unpacking $package under $tools/nginx"
        (cd "$folder" && apt-get download -qq "$package" 2>"$tools/apt.log" && dpkg -x ./*.deb . && rm ./*.deb) ||
            { cat "$tools/apt.log" >&2; fail "apt-get could not download $package"; }
        if [ -x "$folder/usr/sbin/nginx" ]; then
            rm -rf "$tools/nginx"
            mv "$folder" "$tools/nginx"
            return 0
        fi
        rm -rf "$folder"
    done
    fail "no nginx executable in the packages nginx and nginx-core of this distribution"
}

# hls.js for browsers without HLS of their own. It is another project's code, so it is fetched and checked, not committed.
hls_version=1.7.4
hls_sha256=cfc70cc9e9fc63d071919e087670abc760c8fd1bc889b88588026e4d22193bbe
fetch_hls() {
    local folder=$tools/hls
    local script=$folder/node_modules/hls.js/dist/hls.min.js
    [ ! -f "$script" ] || return 0
    if ! have npm; then
        [ "$purpose" != test ] || fail "npm is missing although it was installed"
        say "no npm here: the player page uses the browser's own HLS (Safari, Chromium 142 and newer)"
        return 0
    fi
    say "npm install hls.js@$hls_version under $folder"
    mkdir -p "$folder"
    npm install --loglevel=error --no-save --no-package-lock --ignore-scripts --no-audit --no-fund --prefix "$folder" \
        "hls.js@$hls_version" </dev/null >"$tools/npm.log" 2>&1 || {
        tail -n 20 "$tools/npm.log" >&2
        [ "$purpose" != test ] || fail "npm could not install hls.js"
        say "npm could not install hls.js: the player page uses the browser's own HLS"
        return 0
    }
    if [ "$(sha256sum <"$script" | cut -d' ' -f1)" != "$hls_sha256" ]; then
        rm -rf "$folder"
        fail "hls.js@$hls_version is not the file it was when this version was chosen; nothing of it was kept"
    fi
}

# A program from PyPI, into a folder of its own: pip_install PACKAGE VERSION.
pip_install() {
    local folder=$tools/$1
    [ ! -f "$folder/installed" ] || return 0
    python3 -c 'import venv, ensurepip' 2>/dev/null || install python3 python3-venv
    say "pip install $1==$2 under $folder"
    rm -rf "$folder"
    if ! { python3 -m venv "$folder" && "$folder/bin/pip" install --quiet --disable-pip-version-check "$1==$2" &&
        touch "$folder/installed"; } </dev/null >"$tools/pip.log" 2>&1; then
        tail -n 20 "$tools/pip.log" >&2
        rm -rf "$folder"
        fail "pip could not install $1"
    fi
}

# A program from crates.io, as its authors locked it: cargo_install PACKAGE VERSION BINARY.
cargo_install() {
    local folder=$tools/$3
    [ ! -x "$folder/bin/$3" ] || return 0
    say "cargo install $1@$2 under $folder"
    cargo install --quiet --locked --root "$folder" --version "$2" "$1" </dev/null >"$tools/cargo.log" 2>&1 || {
        tail -n 20 "$tools/cargo.log" >&2
        fail "cargo could not install $1"
    }
}

# Tests of HTTP/2 (RFC 9113) that are not ours.
httpwg_version=0.2.5

# A plotter of fio's JSON, for the test that shows it reads ours.
fio_plot_version=1.1.21

# Two clients for resumable uploads, for the tests that cut them off, each in a folder of its own.
tus_js_version=4.3.1
install_tus_js() {
    local folder=$tools/tus
    [ ! -f "$folder/node_modules/tus-js-client/package.json" ] || return 0
    say "npm install tus-js-client@$tus_js_version under $folder"
    mkdir -p "$folder"
    if ! npm install --loglevel=error --no-save --no-package-lock --ignore-scripts --no-audit --no-fund --prefix "$folder" \
        "tus-js-client@$tus_js_version" </dev/null >"$tools/npm.log" 2>&1; then
        tail -n 20 "$tools/npm.log" >&2
        rm -rf "$folder"
        fail "npm could not install tus-js-client"
    fi
}

tuspy_version=1.1.0

check_rust
mkdir -p "$tools"
if ! have apt-get || ! have dpkg-query; then
    fail "this is no Debian or Ubuntu; install by hand: a C and C++ compiler, clang with libclang, cmake, SIMDe headers, pkg-config, FFmpeg 5.1-7 with its development files, nginx, curl; then build with cargo"
fi

packages=(build-essential cmake clang libclang-dev libsimde-dev curl ffmpeg
    libavcodec-dev libavformat-dev libavutil-dev libavfilter-dev libavdevice-dev libswscale-dev libswresample-dev)
have pkg-config || packages+=(pkg-config)
install "${packages[@]}"
unpack_nginx

if [ "$purpose" = test ]; then
    # Clients that read from a node as people's do.
    have wget || install wget
    have mpv || install mpv
    have rclone || install rclone
    # The file systems that are shut down under the store; they lie in images and need no disk of their own.
    [ -x /usr/sbin/mkfs.ext4 ] || have mkfs.ext4 || install e2fsprogs
    [ -x /usr/sbin/mkfs.xfs ] || have mkfs.xfs || install xfsprogs
    # Debian's npm and another source's nodejs exclude each other: ask for the command, not for the package.
    have npm || install nodejs npm
    if ! have chromium && ! have google-chrome && ! have chromium-headless-shell; then
        available chromium || refresh_lists
        if available chromium; then
            install chromium
        else
            # Ubuntu has Chromium as a snap only, which needs a running snapd.
            say "this distribution has no package of Chromium: the test that plays a video in a browser will say that it is skipped"
        fi
    fi
fi
if [ "$purpose" = bench ] || [ "$purpose" = test ]; then
    have fio || install fio
    have wrk || install wrk
    have aria2c || install aria2
fi
if [ "$purpose" = test ]; then
    pip_install fio-plot "$fio_plot_version"
    install_tus_js
    cargo_install httpwg-cli "$httpwg_version" httpwg
    pip_install tuspy "$tuspy_version"
fi
[ "$purpose" = bench ] || fetch_hls
say "everything needed for '$purpose' is here"
