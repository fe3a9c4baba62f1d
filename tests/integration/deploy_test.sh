#!/usr/bin/env bash
# deploy/conclave as a user runs it: up, status, logs, down; faults are reported and leave nothing behind.
set -euo pipefail

root=${CONCLAVE_TEST_ROOT:?} run=$(mktemp -d /tmp/deploy-test-XXXXXX) other=$(mktemp -d /tmp/deploy-test-XXXXXX)
conclave=$root/deploy/conclave
port=$((20000 + RANDOM % 20000))
trap '"$conclave" down --run-dir "$run" >/dev/null 2>&1; "$conclave" down --run-dir "$other" >/dev/null 2>&1; rm -rf "$run" "$other"' EXIT

fail() {
    echo "FAILED: $*"
    exit 1
}

"$conclave" up --model "$root/models/demo" --workers 3 --run-dir "$run" --port "$port" || fail "up"
status=$("$conclave" status --json --run-dir "$run") || fail "status"
for want in '"frontend":{"pid":' '"routers":[{"id":0,"pid":' '"id":2,"pid":' "\"url\":\"http://127.0.0.1:$port\""; do
    [[ $status == *"$want"* ]] || fail "status --json lacks $want: $status"
done
curl -sf "http://127.0.0.1:$port/v1/completions" -d '{"prompt":"HAMLET.","max_tokens":4}' | grep -q '"text"' || fail "no text"
"$conclave" logs router-0 --run-dir "$run" | grep -q "all experts are hosted" || fail "logs"

if "$conclave" up --model "$root/models/demo" --run-dir "$run" --port "$port" 2>/dev/null; then fail "a second up in one run directory"; fi
out=$("$conclave" up --model "$root/models/demo" --run-dir "$other" --port "$port" 2>&1) && fail "the port is in use"
[[ $out == *frontend* && $out == *$port* ]] || fail "who failed, and why, is not said: $out"
[[ -z $(find "$other" -name '*.pid' -o -name '*.sock') ]] || fail "the failed fleet left files"
out=$("$conclave" up --model /nowhere --run-dir "$other" --port 0 2>&1) && fail "a model that is not there"
out=$("$conclave" up --model "$root/models/demo" --no-such-option 1 --run-dir "$other" 2>&1) && fail "an unknown option"
[[ $out == *no-such-option* ]] || fail "the unknown option is not named: $out"

run_id=$("${CONCLAVE_BIN_DIR:?}/conclave-router" --run-dir "$run" --print-run-id)
ls /dev/shm/conclave-"$run_id"-* >/dev/null || fail "no shared memory while it runs"
"$conclave" down --run-dir "$run" || fail "down"
"$conclave" down --run-dir "$run" || fail "a second down is no error"
if compgen -G "/dev/shm/conclave-$run_id-*" >/dev/null; then fail "shared memory is left"; fi
[[ -z $(find "$run" -name '*.pid' -o -name '*.sock') ]] || fail "files are left"
if "$conclave" status --run-dir "$run" >/dev/null 2>&1; then fail "status of a fleet that is down"; fi
echo "deploy/conclave: all checks passed"
