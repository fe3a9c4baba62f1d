#!/usr/bin/env bash
# deploy/conclave: up, status, logs and down of whole fleets, and what they say when they can't.
#
# usage: deploy_test.sh REPOSITORY BIN_DIR
set -euo pipefail

ROOT=$1
export CONCLAVE_BIN_DIR=$2
conclave=$ROOT/deploy/conclave
model=$ROOT/models/demo
unset CONCLAVE_MODEL CONCLAVE_RUN_DIR CONCLAVE_PORT CONCLAVE_HOST CONCLAVE_WORKERS CONCLAVE_ROUTERS CONCLAVE_API_KEY CONCLAVE_ADMIN_API_KEY

work=$(mktemp -d /tmp/conclave-test-XXXXXX)
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

finish() {
    local dir
    for dir in "$work"/*/; do "$conclave" down --run-dir "$dir" >/dev/null 2>&1 || true; done
    rm -rf "$work"
}
trap finish EXIT

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
    return 1
}

run_id_of() { "$CONCLAVE_BIN_DIR/conclave-router" --run-dir "$1" --print-run-id; }

# No process, socket, pid file or shared memory of a run directory is left; logs are.
expect_nothing_left() {
    local dir=$1 left
    left=$(find "$dir" -mindepth 1 ! -name '*.log' ! -name '*.log.1' ! -name lock)
    [[ -z $left ]] || fail "left in the run directory: $left"
    left=$(find /dev/shm -maxdepth 1 -name "conclave-$(run_id_of "$dir")-*")
    [[ -z $left ]] || fail "left in /dev/shm: $left"
    left=$(grep -lzxF -- "--run-dir=$dir" /proc/[0-9]*/cmdline 2>/dev/null || true)
    [[ -z $left ]] || fail "processes left: $left"
    if grep -lE 'Sanitizer|runtime error:' "$dir"/*.log; then fail "a sanitizer's report in a log"; fi
}

ask() {
    curl --silent --noproxy '*' --max-time 60 "$@" -H 'Content-Type: application/json' \
        -d '{"prompt":"In the beginning","max_tokens":4,"temperature":0}' "http://127.0.0.1:$port/v1/completions"
}

dir=$work/one port=$(free_port)

# --- options that can't be
try 2 "--no-such-option" "$conclave" up --no-such-option 1
try 2 "--model" "$conclave" up --run-dir "$dir"
try 2 "--model" "$conclave" up --run-dir "$dir" --model /no/such/folder
try 2 "--workers" "$conclave" up --run-dir "$dir" --model "$model" --workers 0
try 2 "--port" "$conclave" up --run-dir "$dir" --model "$model" --port 99999
try 2 "--routers" "$conclave" up --run-dir "$dir" --model "$model" --routers 65
try 2 "--run-dir" "$conclave" up --run-dir "$work/$(printf '%090d' 0)" --model "$model"
try 0 "nothing runs" "$conclave" down --run-dir "$dir"
try 3 "nothing runs" "$conclave" status --run-dir "$dir"
[[ ! -e $dir ]] || fail "a run directory was made though nothing was started"

# --- a process that refuses its options: up says which and why, and leaves nothing
try 1 "--dtype" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --dtype int3
[[ $said == *"router-0 ended"* || $said == *"worker-"*" ended"* ]] || fail "up does not say who ended: $said"
expect_nothing_left "$dir"

# --- a fleet
try 0 "serving" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --workers 3 --dtype int8
try 0 '"completion_tokens":4' ask
try 0 '"state":"ready"' "$conclave" status --json --run-dir "$dir"
for words in '"run_dir":"'"$dir"'"' '"url":"http://127.0.0.1:'"$port"'"' '"routers":[{"id":0,' \
    '{"id":2,"pid":' '"run_id":"'"$(run_id_of "$dir")"'"'; do
    [[ $said == *"$words"* ]] || fail "no $words in $said"
done
if command -v python3 >/dev/null; then
    python3 -c 'import json, sys; json.loads(sys.argv[1])' "$said" || fail "status --json is no JSON: $said"
fi
try 0 "worker-2" "$conclave" status --run-dir "$dir"
try 0 "dtype=int8" "$conclave" logs worker-2 --run-dir "$dir"
try 0 "all experts are hosted" "$conclave" logs --run-dir "$dir"
try 2 'no log of "worker-3"' "$conclave" logs worker-3 --run-dir "$dir"
try 2 "already up" "$conclave" up --run-dir "$dir" --model "$model" --port "$(free_port)"

# --- another fleet can't have the port; the first serves on
try 1 "port $port" "$conclave" up --run-dir "$work/two" --model "$model" --port "$port"
expect_nothing_left "$work/two"
try 0 '"completion_tokens":4' ask
try 0 ready "$conclave" status --run-dir "$dir"

# --- it grows and shrinks while it serves
try 0 "5 workers" "$conclave" scale 5 --run-dir "$dir"
try 0 '"completion_tokens":4' ask
[[ -f $dir/worker-4.pid ]] || fail "scale 5 started no worker-4"
try 0 "2 workers" "$conclave" scale 2 --run-dir "$dir"
[[ ! -f $dir/worker-2.pid ]] || fail "scale 2 left worker-2"
try 0 '"completion_tokens":4' ask
try 0 '"step_waits":0' "$conclave" status --json --run-dir "$dir"
if command -v python3 >/dev/null; then
    python3 -c 'import json, sys; json.loads(sys.argv[1])' "$said" || fail "status --json is no JSON: $said"
fi
try 0 "" "$conclave" rebalance --run-dir "$dir"
# A policy can be tried on a recorded load, without a fleet.
try 0 "" "$conclave" eplb synth "$work/routing.trace"
try 0 "balancedness" "$conclave" eplb replay "$work/routing.trace" --workers 8 --redundant 8
try 0 "last decision" "$conclave" status --run-dir "$dir"
try 2 "how many" "$conclave" scale --run-dir "$dir"
try 2 "scale" "$conclave" scale 0 --run-dir "$dir"
try 0 "3 workers" "$conclave" scale 3 --run-dir "$dir"

# --- a process is killed: status tells, down tidies up after it
kill -KILL "$(cat "$dir/worker-1.pid")"
while kill -0 "$(cat "$dir/worker-1.pid")" 2>/dev/null; do sleep 0.05; done
try 3 "dead" "$conclave" status --run-dir "$dir"
try 3 '{"id":1,"pid":null,"state":"dead"}' "$conclave" status --json --run-dir "$dir"
try 0 "stopped" "$conclave" down --run-dir "$dir"
expect_nothing_left "$dir"
try 0 "nothing ran" "$conclave" down --run-dir "$dir"

# --- everything is killed: up again starts afresh
try 0 "serving" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --api-key sk-of-the-test
for name in frontend router-0 worker-0 worker-1; do
    tr '\0' ' ' <"/proc/$(cat "$dir/$name.pid")/cmdline" | grep -q sk-of-the-test &&
        fail "$name shows the key on its command line"
    kill -KILL "$(cat "$dir/$name.pid")"
done
try 0 "serving" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --api-key sk-of-the-test
try 0 invalid_api_key ask
try 0 '"completion_tokens":4' ask -H 'Authorization: Bearer sk-of-the-test'
try 0 "stopped" "$conclave" down --run-dir "$dir"
expect_nothing_left "$dir"

# --- the admin API: its key is on no command line; a worker drained by it ended as it was meant to
admin() { curl --silent --noproxy '*' --max-time 60 -H 'Authorization: Bearer ops-of-the-test' "$@"; }
try 1 "admin port needs" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --admin-port 0
try 1 "the same as --api-key" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --admin-socket "$dir/admin.sock" \
    --api-key twice --admin-api-key twice
expect_nothing_left "$dir"
admin_port=$(free_port)
try 0 "serving" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --workers 3 --admin-port "$admin_port" \
    --admin-api-key ops-of-the-test
if tr '\0' ' ' <"/proc/$(cat "$dir/frontend.pid")/cmdline" | grep -q ops-of-the-test; then
    fail "the frontend shows the admin key on its command line"
fi
try 0 invalid_api_key curl --silent --noproxy '*' "http://127.0.0.1:$admin_port/admin/placement"
try 0 '"experts":[{"expert":0,' admin "http://127.0.0.1:$admin_port/admin/placement"
try 0 '"draining":[1]' admin -d '{"workers":[1]}' "http://127.0.0.1:$admin_port/admin/drain"
pid=$(cat "$dir/worker-1.pid")
for ((i = 0; i < 600; i++)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
done
try 0 '"workers":[{"id":0,' "$conclave" status --json --run-dir "$dir"
[[ $said != *'"state":"dead"'* ]] || fail "a drained worker counts as dead: $said"
try 0 "3 workers" "$conclave" scale 3 --run-dir "$dir"
try 0 '"completion_tokens":4' ask
try 0 "stopped" "$conclave" down --run-dir "$dir"
expect_nothing_left "$dir"

# --- two routers: one is killed and the other serves; workers come and go under both
try 0 "serving" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --routers 2
try 0 "router-1" "$conclave" status --run-dir "$dir"
try 0 '"completion_tokens":4' ask
for ((i = 0; i < 600; i++)); do
    grep -q "router 1 is ready" "$dir/frontend.log" && break
    sleep 0.05
done
try 0 "4 workers" "$conclave" scale 4 --run-dir "$dir"
try 0 '"completion_tokens":4' ask
try 0 "2 workers" "$conclave" scale 2 --run-dir "$dir"
try 0 '"completion_tokens":4' ask
kill -KILL "$(cat "$dir/router-1.pid")"
try 0 '"completion_tokens":4' ask
try 3 '"routers":[{"id":0,"pid":' "$conclave" status --json --run-dir "$dir"
try 0 "stopped" "$conclave" down --run-dir "$dir"
expect_nothing_left "$dir"

# --- memory for some workers only: scale says how many bytes are short, and goes on serving
one=$((6 * 8 / 2 * (256 * 256 * 3 * 2))) # half of the experts, bf16
try 0 "serving" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --workers 3 --expert-memory "$one"
try 1 "$one bytes short" "$conclave" scale 1 --run-dir "$dir"
try 0 "2 workers" "$conclave" scale 2 --run-dir "$dir"
try 0 '"completion_tokens":4' ask
try 0 "stopped" "$conclave" down --run-dir "$dir"
expect_nothing_left "$dir"

# --- a trace of every process, whole when they have ended
try 0 "serving" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --workers 3 --trace "$work/traces/new"
try 0 '"completion_tokens":4' ask
try 0 "stopped" "$conclave" down --run-dir "$dir"
expect_nothing_left "$dir"
try 0 "Steps" "$CONCLAVE_BIN_DIR/conclave-trace" summary "$work"/traces/new/*.json
[[ $said != *warning* && $said == *"2:"* ]] || fail "a trace is not whole: $said"

# --- and of each of two routers
try 0 "serving" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --routers 2 --trace "$work/traces/two"
try 0 '"completion_tokens":4' ask
try 0 "stopped" "$conclave" down --run-dir "$dir"
expect_nothing_left "$dir"
try 1 "a second router" "$CONCLAVE_BIN_DIR/conclave-trace" summary "$work"/traces/two/*.json
steps=0 # which of them had the request is the frontend's to choose
for name in router-0 router-1; do
    if "$CONCLAVE_BIN_DIR/conclave-trace" summary "$work/traces/two/$name.json" "$work"/traces/two/worker-*.json >"$work/summary" 2>&1; then
        grep -q "^Steps" "$work/summary" && steps=1
    fi
done
((steps)) || fail "no router's trace has the steps of a request"

# --- in front, as a service manager runs it
"$conclave" up --run-dir "$dir" --model "$model" --port "$port" --foreground >"$work/front" 2>&1 </dev/null &
front=$!
for ((i = 0; i < 600; i++)); do
    grep -q serving "$work/front" && break
    kill -0 "$front" 2>/dev/null || break
    sleep 0.1
done
grep -q serving "$work/front" || fail "--foreground does not serve: $(cat "$work/front")"
kill -TERM "$front"
status=0
wait "$front" || status=$?
[[ $status == 0 ]] || fail "--foreground ended with $status: $(cat "$work/front")"
expect_nothing_left "$dir"

# --- what one start packed, the next one reads, and answers the same
answers=()
for from in checkpoint cache; do
    try 0 "serving" "$conclave" up --run-dir "$dir" --model "$model" --port "$port" --dtype int8 --packed-cache "$work/packed"
    try 0 '"completion_tokens":4' ask
    answers+=("$(sed 's/.*"text":"\([^"]*\)".*/\1/' <<<"$said")")
    for name in router-0 worker-0 worker-1; do
        try 0 "loaded from=$from " "$conclave" logs $name --run-dir "$dir"
        for ((i = 0; i < 200; i++)); do
            [[ $from == cache ]] && break
            if grep -q "packed-cache: filled" "$dir/$name.log"; then break; fi
            sleep 0.05
        done
    done
    try 0 "stopped" "$conclave" down --run-dir "$dir"
    expect_nothing_left "$dir"
done
[[ ${answers[0]} == "${answers[1]}" ]] || fail "packed weights answer otherwise: ${answers[*]}"

if ((failures)); then
    echo "$failures checks failed"
    exit 1
fi
echo "deploy: all checks passed"
