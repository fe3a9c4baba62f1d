#!/usr/bin/env bash
# deploy/study.sh: two cells, interrupted and taken up again, and the page they make.
#
# usage: study_test.sh REPOSITORY BIN_DIR
set -euo pipefail

ROOT=$1
export CONCLAVE_BIN_DIR=$2
study=$ROOT/deploy/study.sh
model=$ROOT/models/demo
unset CONCLAVE_MODEL CONCLAVE_RUN_DIR CONCLAVE_PORT CONCLAVE_HOST CONCLAVE_WORKERS CONCLAVE_API_KEY

work=$(mktemp -d /tmp/conclave-test-XXXXXX)
out=$work/out
runner=""
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

finish() {
    if [[ -n $runner ]]; then kill "$runner" 2>/dev/null || true; fi
    wait
    rm -rf "$work"
}
trap finish EXIT

# --- options that can't be
try 2 "--model" bash "$study" --out "$out"
try 2 "--out" bash "$study" --model "$model"
try 2 "config.json" bash "$study" --model "$work" --out "$out"
try 2 "--frobnicate" bash "$study" --frobnicate
try 2 "no cell matches" bash "$study" list --quick --model "$model" --out "$out" --cells nothing
try 2 "report DIR" bash "$study" report "$work/nothing"
try 1 "no experiment folder" bash "$study" report "$work"
[[ $(bash "$study" list --quick --model "$model" --out "$out" | sort -u | wc -l) == 6 ]] || fail "not six quick cells"
[[ $(bash "$study" list --model "$model" --out "$out" | sort | uniq -d) == "" ]] || fail "two cells with one folder"
try 2 "exclude each other" bash "$study" --quick --point --model "$model" --out "$out"
try 2 "--minutes" bash "$study" --minutes 0 --model "$model" --out "$out"
[[ $(bash "$study" list --point --model "$model" --out "$out" | sort -u | wc -l) == 5 ]] || fail "not five cells at 32 / 8192"

# --- the whole grid, as a plan: nothing is made
try 0 "3 runs each" bash "$study" --plan --model "$model" --out "$out"
for seqs in 8 16 32 64; do
    for tokens in 2048 4096 8192 16384; do
        for mode in TP4 EP4 EP4R4; do
            [[ $said == *"demo-conclave$mode-cpu[${seqs}_$tokens]-conclave "* ]] || fail "no $mode $seqs $tokens in the plan"
        done
    done
done
for cell in 'EP4-cpu[32_8192_eplbon_skewed]' 'EP2-cpu[32_8192_eplbon_balanced_t1]' 'TP4-cpu[32_2048_prefill]' 'EP7-cpu[32_8192]' \
    'EP4-cpu[32_8192_mb4]' 'EP4-cpu[32_8192_int4]' 'COLOCATED-cpu[32_8192_engine]' 'EP1-cpu[32_8192_engine]'; do
    [[ $said == *"demo-conclave$cell-conclave "* ]] || fail "no $cell in the plan"
done
[[ ! -e $out ]] || fail "the plan made $out"

# --- interrupted after the first run: nothing goes on running, and that run is kept
tp="$out/demo-conclaveTP4-cpu[8_8192]-conclave"
ep="$out/demo-conclaveEP4-cpu[8_8192]-conclave"
two=(--quick --repeats 1 --model "$model" --out "$out" --cells '\[8_8192\]')
bash "$study" "${two[@]}" >"$work/first" 2>&1 </dev/null &
runner=$!
for ((i = 0; i < 1200; i++)); do
    [[ -f $tp/results_json/r1.json || -f $ep/results_json/r1.json ]] && break
    kill -0 "$runner" 2>/dev/null || break
    sleep 0.05
done
try 2 "another study runs" bash "$study" "${two[@]}"
kill -TERM "$runner"
status=0
wait "$runner" || status=$?
runner=""
[[ $status == 143 ]] || fail "interrupted, it ended with $status: $(cat "$work/first")"
left=$(grep -lzE -- "--model=$model\$" /proc/[0-9]*/cmdline 2>/dev/null | xargs -r grep -lzE -- '--run-dir=/tmp/conclave-study\.' 2>/dev/null || true)
[[ -z $left ]] || fail "processes left: $left"
done_before=$(find "$out" -name 'r1.json' | wc -l)
[[ $done_before == 1 ]] || fail "$done_before runs are there after the interruption: $(cat "$work/first")"

# --- the same command goes on; another setting can't share the folder
kept=$(find "$out" -name r1.json -exec stat -c '%n %Y' {} +)
try 0 "1 of 2 runs are there already" bash "$study" "${two[@]}"
[[ $said == *"[2/2]"* && $said != *"[1/2]"* ]] || fail "it did not go on where it was: $said"
[[ $(find "$out" -name r1.json -exec stat -c '%n %Y' {} +) == *"$kept"* ]] || fail "a run was done twice"
try 2 "other settings" bash "$study" --quick --model "$model" --out "$out" --dtype int8
try 0 "2 cells, 1 runs each; 0 of 2 runs and 0 traces are left: about 0 minutes (as measured here)" \
    bash "$study" --plan "${two[@]}"
# SECONDS is how long the shell believes to run.
try 3 "1 minutes are over; the same command goes on" env SECONDS=60 bash "$study" "${two[@]}" --repeats 2 --minutes 1
[[ $(find "$out" -name 'r*.json' | wc -l) == 2 ]] || fail "it ran on after its minutes were over"

# --- the folders are complete
for folder in "$tp" "$ep"; do
    for file in server.sh client.sh README.md card.yaml results_json/r1.json traces/summary.json \
        traces/router-0.json.gz traces/worker-3.json.gz logs/r1-router-0.log logs/r1-client.log; do
        [[ -s $folder/$file ]] || fail "no $file in $folder"
    done
    try 0 "" "$CONCLAVE_BIN_DIR/conclave-study" check "$folder/card.yaml"
done
grep -q 'mode: "tp"' "$tp/card.yaml" || fail "the card of TP says otherwise"
grep -q 'kernel_tier: "none"' "$tp/card.yaml" && fail "the card does not know the kernels"
try 0 "" "$CONCLAVE_BIN_DIR/conclave-study" extract "$tp" output_throughput
[[ $said =~ ^[0-9.]+$ ]] || fail "extract says $said"
sed -i 's/phase: "inference"/phase: "training"/' "$tp/card.yaml"
try 1 "only inference" "$CONCLAVE_BIN_DIR/conclave-study" extract "$tp" output_throughput
sed -i 's/phase: "training"/phase: "inference"/' "$tp/card.yaml"

# --- the report stands alone
rm "$out/report.html"
try 0 "" bash "$study" report "$out"
for words in 'EP4, 8 / 8192' 'id="timeline"' 'id="heat"' 'too few runs' 'MAX_SEQS' 'EP4 instead of TP4: 8 / 8192'; do
    grep -qF -- "$words" "$out/report.html" || fail "no \"$words\" in the report"
done
if grep -qE 'src="?https?:|@import|<script|<link[^>]*stylesheet' "$out/report.html"; then fail "the report needs other files"; fi

# --- a folder runs by itself
port=$((20000 + RANDOM % 12000))
try 0 "serving" env RUN_DIR="$work/run" TRACE_DIR= bash "$ep/server.sh" "$model" "$port" 2048 4 512 2
try 0 "Successful requests:                     6" env RESULT_DIR="$work/alone" RESULT=x \
    OUTPUT_LEN=4 WARMUP_S=0 bash "$ep/client.sh" random 16 "$port" 6
[[ -s $work/alone/x.json ]] || fail "client.sh wrote no result"
try 0 "stopped" "$ROOT/deploy/conclave" down --run-dir "$work/run"

# --- cells without services: the engine in one process, and split
try 0 "done in" bash "$study" --repeats 1 --model "$model" --out "$work/engine" --cells '(COLOCATED|EP1).*engine'
for folder in "$work/engine/demo-conclave"{COLOCATED,EP1}"-cpu[32_8192_engine]-conclave"; do
    try 0 "" "$CONCLAVE_BIN_DIR/conclave-study" extract "$folder" output_throughput
    [[ $said =~ ^[0-9.]+$ ]] || fail "extract says $said"
done
grep -qF 'EP1 instead of Colocated' "$work/engine/report.html" || fail "the split is not compared with one process"

# --- what this version can't do is skipped with a reason
export CONCLAVE_ROOT=$work/fake # what the folder's scripts call
mkdir -p "$work/fake/deploy"
printf '#!/bin/sh\necho "conclave: up: no service knows --eplb" >&2\nexit 2\n' >"$work/fake/deploy/conclave"
chmod +x "$work/fake/deploy/conclave"
try 0 "skipped demo-conclaveEP4-cpu[8_8192]-conclave: conclave: up: no service knows --eplb" \
    bash "$study" --quick --repeats 1 --model "$model" --out "$work/skip" --cells '\[8_8192\]'
grep -qF 'no service knows --eplb' "$work/skip/report.html" || fail "the report does not say why a cell was skipped"

if ((failures)); then
    echo "$failures checks failed"
    exit 1
fi
echo "study: all checks passed"
