#!/usr/bin/env bash
# Sets up, builds, serves models/demo with two expert workers, and shows text and latency.
# On a terminal it then keeps serving until Ctrl-C; otherwise it stops the services and exits 0.
set -euo pipefail
export LC_ALL=C.UTF-8

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
WORKERS=2
MAX_TOKENS=96

# As JSON strings without their quotes; models/demo/README.md says which voice each one wakes.
PROMPTS=(
    'It is a truth universally acknowledged, that'
    'And it came to pass in those days, that'
    'HAMLET.'
    'import os\nimport sys\n\ndef '
)

bold="" dim="" plain=""
if [[ -t 1 ]]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; fi

work=$(mktemp -d "${TMPDIR:-/tmp}/conclave-demo.XXXXXX")
run_dir=$work/run
cleanup() {
    trap '' INT TERM HUP
    deploy/conclave down --run-dir "$run_dir" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# quietly WHAT COMMAND...: its output is shown only when it fails.
quietly() {
    local what=$1
    shift
    printf '%s ... ' "$what"
    if ! "$@" >"$work/log" 2>&1; then
        printf 'failed\n'
        cat "$work/log" >&2
        return 1
    fi
    printf 'done\n'
}

build() {
    if [[ -n ${CONCLAVE_BIN_DIR:-} ]]; then return 0; fi # someone else's build is to be shown
    quietly "configuring" cmake --preset release
    quietly "building" cmake --build build --target \
        conclave-frontend conclave-router conclave-worker conclave-ctl conclave-loadgen
}

# Below the range from which the kernel takes ports for outgoing connections.
free_port() {
    local port i
    for ((i = 0; i < 50; i++)); do
        port=$((20000 + RANDOM % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return 0
        fi
    done
    echo "demo: found no free port" >&2
    return 1
}

now_us() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }

request_body() {
    printf '{"model":"%s","prompt":"%s","max_tokens":%d,"temperature":0.8,"top_p":0.95,"seed":1,' \
        demo "$1" "$MAX_TOKENS"
    printf '"stream":true,"stream_options":{"include_usage":true}}'
}

# Prints a completion as it streams, then its latency.
#   TTFT  from sending the request to the first piece of text
#   TPOT  from the first piece to the last, over the tokens after the first
show_completion() {
    local prompt=$1 line text start first=0 last=0 tokens=0 done=0
    local text_re='"text":[ ]*"(([^"\\]|\\.)*)"' usage_re='"completion_tokens":[ ]*([0-9]+)'
    printf '\n%s%b%s' "$bold" "$prompt" "$plain"
    start=$(now_us)
    while IFS= read -r line; do
        line=${line%$'\r'}
        if [[ $line == "data: [DONE]" ]]; then done=1; fi
        if [[ $line == *'"error"'* ]]; then printf '\n%s\n' "$line" >&2; fi
        if [[ $line =~ $text_re && -n ${BASH_REMATCH[1]} ]]; then
            last=${EPOCHREALTIME/[.,]/}
            if ((first == 0)); then first=$last; fi
            text=${BASH_REMATCH[1]//\\\"/\"} # %b knows JSON's escapes but for \" and \/
            printf '%b' "${text//\\\//\/}"
        fi
        if [[ $line =~ $usage_re ]]; then tokens=${BASH_REMATCH[1]}; fi
    done < <(request_body "$prompt" | curl --silent --show-error --no-buffer --noproxy '*' \
        --max-time 120 -H 'Content-Type: application/json' --data-binary @- \
        "$url/v1/completions" 2>&1)
    if ((!done || first == 0)); then
        printf '\ndemo: the answer is not complete\n' >&2
        return 1
    fi
    awk -v start="$start" -v first="$first" -v last="$last" -v tokens="$tokens" \
        -v dim="$dim" -v plain="$plain" 'BEGIN {
        tpot = tokens > 1 ? (last - first) / 1e3 / (tokens - 1) : 0
        printf "\n%s[%d tokens; TTFT %.1f ms, TPOT %.2f ms, %.1f tokens/s]%s\n", dim, tokens,
            (first - start) / 1e3, tpot, tokens / ((last - start) / 1e6), plain
    }'
}

# Sixteen requests, eight at a time, of 64 tokens in and 64 out.
show_load() {
    printf '\n16 requests of 64 tokens in and 64 out, 8 at a time:\n'
    if ! "$bin/conclave-loadgen" --base-url "$url" --num-prompts 16 --max-concurrency 8 \
        --random-input-len 64 --random-output-len 64 --ignore-eos --num-warmups 2 --no-progress \
        >"$work/load" 2>"$work/log"; then
        cat "$work/load" "$work/log" >&2
        return 1
    fi
    grep -E '^(Successful|Failed|Benchmark dur|Request through|Output token|(Mean|P99) (TTFT|TPOT|E2EL))' \
        "$work/load" | sed 's/^/  /'
}

main() {
    # shellcheck source=deploy/packages.sh
    . deploy/packages.sh
    build
    bin=${CONCLAVE_BIN_DIR:-build/bin}
    local port
    port=$(free_port)
    url=http://127.0.0.1:$port
    deploy/conclave up --model models/demo --served-model-name demo --workers "$WORKERS" \
        --port "$port" --run-dir "$run_dir"
    local prompt
    for prompt in "${PROMPTS[@]}"; do
        show_completion "$prompt"
    done
    show_load
    if [[ -t 0 ]]; then
        printf '\nStill serving; Ctrl-C stops it.  Try:\n\n'
        printf '  curl -N %s/v1/completions -H "Content-Type: application/json" \\\n' "$url"
        printf "    -d '%s'\n" '{"model":"demo","prompt":"In the beginning","max_tokens":60,"stream":true}'
        trap 'exit 0' INT
        while deploy/conclave status --run-dir "$run_dir" >/dev/null; do sleep 2; done
        echo "demo: a service has ended" >&2
        deploy/conclave logs --run-dir "$run_dir" >&2
        return 1
    fi
}

main
