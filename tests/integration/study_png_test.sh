#!/usr/bin/env bash
# deploy/study_png.sh: pictures of a study made by hand, with the programs that are here, and what is
# said of those that are not.
#
# usage: study_png_test.sh REPOSITORY BIN_DIR
set -euo pipefail

ROOT=$1
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"
work=$(mktemp -d /tmp/conclave-test-XXXXXX)
# shellcheck disable=SC2064
trap "rm -rf '$work'" EXIT

# cell MODE SEQS SUFFIX VALUES...: a folder with one run for each value.
cell() {
    local folder="$work/study/demo-conclave$1-cpu[$2_8192$3]-conclave" value n=0
    mkdir -p "$folder/results_json"
    for value in "${@:4}"; do
        n=$((n + 1))
        printf '{"median_ttft_ms": %s, "median_tpot_ms": %s, "request_throughput": 1, "output_throughput": 2.5e1}\n' \
            "$value" "$value" >"$folder/results_json/r$n.json"
    done
}
cell TP4 8 "" 10 30 20
cell TP4 32 "" 40 50
cell EP4 8 "" 15
cell EP4 32 "" 45
cell EP4 32 _skewed 1000
cell EP4R4 32 "" 60 # one point: no line
cat >"$work/study/report.html" <<'TEXT'
<!doctype html><title>A study</title>
<style>
figure{margin:0}
</style>
<figure id="square">
<svg width="100" height="100"><title>square</title><rect width="100" height="100" fill="red"/></svg>
</figure>
TEXT

is_png() { [[ -s $1 && $(head -c 4 "$1" | tail -c 3) == PNG ]]; }

# --- without the programs nothing is drawn, and it is said which are wanted
mkdir "$work/bin"
for program in bash awk sort sed grep find basename realpath mktemp mkdir rm head wc cut env dirname cat; do
    ln -s "$(command -v "$program")" "$work/bin/$program"
done
try 1 "gnuplot is not here" env PATH="$work/bin" bash "$ROOT/deploy/study_png.sh" "$work/study"
[[ $said == *"chromium is not here"* && $said == *"0 pictures"* ]] || fail "nothing said of chromium: $said"
try 2 "usage" bash "$ROOT/deploy/study_png.sh" "$work"

# --- a program in gnuplot's place is given medians and ranges, of plain cells
cat >"$work/bin/gnuplot" <<'TEXT'
#!/bin/bash
while read -r line; do
    case $line in
    "set output"*) out=${line#*\'} out=${out%\'} ;;
    plot*) for file in $(grep -o "'[^' ]*\.dat'" <<<"$line" | sed "s/'//g"); do echo "$(basename "$file"): $(grep . "$file")"; done >"$out" ;;
    esac
done
TEXT
chmod +x "$work/bin/gnuplot"
try 0 "4 pictures" env PATH="$work/bin" bash "$ROOT/deploy/study_png.sh" "$work/study"
want=$'EP4.dat: 8 15 15 15\n32 45 45 45\nTP4.dat: 8 20 10 30\n32 45 40 50'
got=$(cat "$work/study/plots/median_tpot_ms-by-max_seqs.png")
[[ $got == "$want" ]] || fail "gnuplot was given: $got"
rm -r "$work/study/plots"

# --- with the programs that are here
if command -v gnuplot >/dev/null || command -v chromium >/dev/null; then
    try 0 "pictures" bash "$ROOT/deploy/study_png.sh" "$work/study"
    if command -v gnuplot >/dev/null; then
        for name in median_ttft_ms median_tpot_ms request_throughput output_throughput; do
            is_png "$work/study/plots/$name-by-max_seqs.png" || fail "$name is no PNG: $said"
        done
    fi
    if command -v chromium >/dev/null; then
        is_png "$work/study/plots/figure-square.png" || fail "the figure is no PNG: $said"
    fi
fi

if ((failures)); then
    echo "$failures checks failed"
    exit 1
fi
echo "study_png: all checks passed"
