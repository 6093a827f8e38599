#!/usr/bin/env bash
# `make demo`: fetches a clip from an origin, stores it, encodes it to two renditions, checks the result, and plays it.
#
#   URL=https://…   fetch this instead of a clip made here
#   PORT=8090       where the node listens (by default 8080, or any free port when that is taken)
#   DEMO_EXIT=1     end after the checks instead of serving; so it does where there is no terminal
#
# Everything it writes lies under target/demo and is made anew each time.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
demo=$target/demo
key=demo/clip.mp4
profile=release
bin=$target/$profile
url=${URL:-}
pids=()
steps=()
checks=()

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# Ends what was started here, by process id.
clean_up() {
    local status=$? pid
    trap - EXIT INT TERM
    for pid in ${pids[@]+"${pids[@]}"}; do kill "$pid" 2>/dev/null || true; done
    for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" 2>/dev/null || true; done
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Runs a step and remembers how long it took.
step() {
    local name=$1 began ended
    shift
    say "$name"
    began=$(date +%s%N)
    "$@"
    ended=$(date +%s%N)
    steps+=("$(printf '%-44s %8s s' "$name" "$(seconds $((ended - began)))")")
}

seconds() { printf '%d.%d' $(($1 / 1000000000)) $(($1 / 100000000 % 10)); }

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

make_clip() {
    mkdir -p "$demo/origin/www"
    ffmpeg -v error -y -f lavfi -i testsrc2=size=1280x720:rate=30:duration=20 \
        -f lavfi -i sine=frequency=440:sample_rate=48000:duration=20 \
        -pix_fmt yuv420p -c:v libx264 -preset veryfast -g 75 -c:a aac -ac 2 -movflags +faststart \
        "$demo/origin/www/clip.mp4" </dev/null
    echo "20 s of 1280x720 at 30 frames a second, H.264 and AAC, made by FFmpeg"
}

# nginx cannot pick a free port itself, so try some.
start_origin() {
    local nginx port pid
    nginx=$(PATH=$PATH:/usr/sbin:$target/tools/nginx/usr/sbin command -v nginx) || fail "nginx is missing; run: make setup"
    for _ in 1 2 3 4 5; do
        port=$((20000 + RANDOM))
        ! port_is_taken "$port" || continue
        sed "s/@PORT@/$port/" "$here/nginx.conf.in" >"$demo/origin/nginx.conf"
        "$nginx" -p "$demo/origin" -e error.log -c nginx.conf </dev/null &
        pid=$!
        for _ in $(seq 100); do
            if port_is_taken "$port" && kill -0 "$pid" 2>/dev/null; then
                pids+=("$pid")
                url=http://127.0.0.1:$port/clip.mp4
                echo "$url"
                return 0
            fi
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.05
        done
        kill "$pid" 2>/dev/null || true
    done
    fail "nginx did not start; see $demo/origin/error.log"
}

build() {
    local verbosity=()
    [ -t 1 ] || verbosity=(--quiet)
    (cd "$root" && cargo build --locked --"$profile" ${verbosity[@]+"${verbosity[@]}"} \
        -p reelring -p reelring-transcode -p reelring-plugin)
}

start_node() {
    local port=${PORT:-} hls=$target/tools/hls/node_modules/hls.js/dist/hls.min.js private=false
    if [ -z "$port" ]; then
        port=8080
        ! port_is_taken "$port" || port=0
    fi
    # Only the demo's own origin is on loopback; an address given by the user keeps the usual protection.
    [ -n "${URL:-}" ] || private=true
    [ ! -f "$hls" ] || export REELRING_PLAYER_JS=$hls
    REELRING_ALLOW_PRIVATE_ORIGINS=$private "$bin/reelring" serve --listen "127.0.0.1:$port" --data "$demo/data" \
        </dev/null >"$demo/node.log" 2>&1 &
    pids+=("$!")
    for _ in $(seq 300); do
        if [ -s "$demo/data/http.addr" ]; then
            REELRING_NODE=http://$(cat "$demo/data/http.addr")
            export REELRING_NODE
            echo "$REELRING_NODE"
            return 0
        fi
        kill -0 "${pids[-1]}" 2>/dev/null || break
        sleep 0.05
    done
    cat "$demo/node.log" >&2
    fail "the node did not start"
}

fetch() {
    "$bin/reelring" fetch "$url" --key "$key" --transcode 720p,360p
}

# --- the checks ---

# No `head` behind a pipe here: it would end early, and the writer's SIGPIPE would count as a failure.
get() { curl -fsS "$REELRING_NODE$1"; }
frames() { ffprobe -v error -count_frames -select_streams v:0 -show_entries stream=nb_read_frames -of default=nk=1:nw=1 "$1" | sed -n 1p; }
# From the first presented instant to the end of the last packet.
length() {
    ffprobe -v error -select_streams "$2:0" -show_entries packet=pts_time,duration_time -of csv=p=0 "$1" |
        awk -F, '$1 != "N/A" { if (n++ == 0 || $1 < first) first = $1; if ($1 + $2 > last) last = $1 + $2 }
                 END { if (first < 0) first = 0; printf "%.6f", last - first }'
}
# baseMediaDecodeTime of the first fragment: the bytes after the box's name and version.
first_tfdt() {
    local at version width
    get "$1" >"$demo/segment"
    at=$(grep -obUa -m1 tfdt "$demo/segment" | sed -n 1p | cut -d: -f1)
    version=$(od -An -tu1 -j $((at + 4)) -N1 "$demo/segment" | tr -d ' ')
    width=$((version == 1 ? 8 : 4))
    printf '%d' "0x$(od -An -tx1 -j $((at + 8)) -N "$width" "$demo/segment" | tr -d ' \n')"
}
entries() { get "$1" | grep -v '^#' | grep . | sed "s|^|${1%/*}/|"; }
check() {
    checks+=("$(printf '%-4s %s' "$1" "$2")")
    [ "$1" = ok ] || { printf '%s\n' "${checks[@]}" >&2; fail "the result is not what it should be"; }
}

verify() {
    local main source source_frames audio audio_length rendition name count video_length tfdt apart
    asset=$(get /v1/assets | grep -o '"id":"[0-9a-f]*"' | sed -n 1p | cut -d'"' -f4)
    [ -n "$asset" ] || fail "the node knows no asset"
    main=/v1/assets/$asset/hls/main.m3u8
    source=$REELRING_NODE/v1/objects/$key
    source_frames=$(frames "$source")
    audio=$(get "$main" | sed -n 's/^#EXT-X-MEDIA:TYPE=AUDIO.*URI="\([^"]*\)".*/\1/p' | sed -n 1p)
    [ -z "$audio" ] || audio_length=$(length "$REELRING_NODE${main%/*}/$audio" a)
    for rendition in $(entries "$main"); do
        name=$(basename "$(dirname "$rendition")")
        count=$(frames "$REELRING_NODE$rendition")
        check "$([ "$count" = "$source_frames" ] && echo ok || echo BAD)" "$name: $count frames, the source has $source_frames"
        tfdt=$(first_tfdt "$(entries "$rendition" | sed -n 1p)")
        check "$([ "$tfdt" = 0 ] && echo ok || echo BAD)" "$name: the first segment begins at $tfdt"
        [ -n "$audio" ] || continue
        video_length=$(length "$REELRING_NODE$rendition" v)
        # One AAC frame at 48 kHz is 21.3 ms.
        apart=$(awk "BEGIN { d = $video_length - $audio_length; print (d < 0 ? -d : d) * 1000 }")
        check "$(awk "BEGIN { print ($apart < 21.3 ? \"ok\" : \"BAD\") }")" \
            "$name: video ${video_length} s, audio ${audio_length} s, $apart ms apart (limit: one AAC frame, 21.3 ms)"
    done
    [ ${#checks[@]} -gt 0 ] || fail "the main playlist names no rendition"
    printf '%s\n' "${checks[@]}"
}

# --- the steps ---

say "setting up"
bash "$here/setup.sh" demo
rm -rf "$demo"
mkdir -p "$demo"
step "build (once; nothing to do the second time)" build
if [ -z "$url" ]; then
    step "make a clip" make_clip
    step "start an origin" start_origin
fi
step "start the node" start_node
step "fetch, store, encode to 720p and 360p" fetch
step "check with ffprobe" verify

printf '\n%-44s %10s\n' step time
printf '%s\n' "${steps[@]}"
printf '\nIt plays here:  %s/play/%s\n' "$REELRING_NODE" "$asset"
printf 'HLS playlist:   %s/v1/assets/%s/hls/main.m3u8\n' "$REELRING_NODE" "$asset"
printf 'Command line:   %s ls --node %s\n' "$bin/reelring" "$REELRING_NODE"
if [ -t 1 ] && [ "${DEMO_EXIT:-0}" != 1 ]; then
    printf '\nThe node goes on serving; Ctrl-C ends everything.\n'
    wait "${pids[-1]}"
fi
