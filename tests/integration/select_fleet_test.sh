#!/usr/bin/env bash
# conclave-select: prompts chosen by the routing that a fleet measures load its experts as was asked.
# Exit status 77: skipped, because this version of the server does not tell routing.
#
# usage: select_fleet_test.sh REPOSITORY BIN_DIR
set -euo pipefail

ROOT=$1
export CONCLAVE_BIN_DIR=$2
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"
for name in $(compgen -e CONCLAVE_); do [[ $name == CONCLAVE_BIN_DIR ]] || unset "$name"; done
work=$(mktemp -d /tmp/conclave-test-XXXXXX)
finish() {
    "$ROOT/deploy/conclave" down --run-dir "$work/run" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT

up_demo "$work" || fail "no fleet: $(cat "$work/up")"
choose() {
    "$CONCLAVE_BIN_DIR/conclave-select" --base-url "http://127.0.0.1:$port" --dataset-path "$ROOT/loadgen/data/domains.json" \
        --num-candidates 48 --num-prompts 8 --output-len 4 "$@"
}
status=0
said=$(choose --output "$work/hot.jsonl" 2>&1) || status=$?
if [[ $said == *"does not tell which experts"* ]]; then
    echo "skipped: $said"
    exit 77
fi
[[ $status == 0 ]] || fail "conclave-select: $said"
try 0 "8 of 48 prompts" choose --even --output "$work/even.jsonl"

# skew FILE...: of the words "skew A, all together B".
hot=$(choose --output "$work/hot2.jsonl" | sed 's/.*: skew \([0-9.]*\).*/\1/')
even=$(sed 's/.*: skew \([0-9.]*\).*/\1/' <<<"$said")
all=$(sed 's/.*all together \([0-9.]*\).*/\1/' <<<"$said")
awk -v h="$hot" -v a="$all" -v e="$even" 'BEGIN { exit !(h > a && a > e && e >= 1) }' ||
    fail "skew of the chosen $hot, of all $all, of the even ones $even"
cmp -s "$work/hot.jsonl" "$work/hot2.jsonl" || fail "the same candidates gave another choice"
try 0 "Successful requests:                     8" "$CONCLAVE_BIN_DIR/conclave-loadgen" --port "$port" \
    --dataset-name custom --dataset-path "$work/hot.jsonl" --num-prompts 8 --no-progress
if ((failures)); then
    cat "$work"/run/*.log
    exit 1
fi
echo "select: all checks passed (skew $hot, all $all, even $even)"
