#!/usr/bin/env bash
# conclave-bench: what each subcommand prints, with sizes of a moment.  Never how fast it was.
#
# usage: smoke_test.sh REPOSITORY BIN_DIR SUBCOMMAND
set -euo pipefail

ROOT=$1
BIN=$2
subcommand=$3
bench=$BIN/conclave-bench
model=$ROOT/models/demo
for name in $(env | sed -n 's/^\(CONCLAVE_[A-Z_]*\)=.*/\1/p'); do unset "$name"; done
failures=0

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    failures=$((failures + 1))
}

# measure ARGS...: JSON lines into $out; each must have the form of a result or of a skip.
measure() {
    local bad number='-?[0-9.]+(e[+-]?[0-9]+)?'
    out=$("$bench" "$subcommand" --json "$@" </dev/null) || fail "exit status $? of: $subcommand $*"
    [[ -n $out ]] || fail "no output of: $subcommand $*"
    bad=$(grep -vE "^\{\"bench\": \"$subcommand\", \"test\": \"[a-z0-9_.]+\", (\"skipped\": \".+\"|\"unit\": \"[A-Za-z/]+\", \"better\": \"(higher|lower)\", \"value\": $number, \"min\": $number, \"median\": $number, \"max\": $number, \"n\": [0-9]+, \"values\": \[[-0-9., e+]+\].*)\}\$" <<<"$out") || true
    [[ -z $bad ]] || fail "not the form of a result: $bad"
}

# has TEST...: each was measured or skipped.
has() {
    local test
    for test in "$@"; do
        grep -qF "\"test\": \"$test\"" <<<"$out" || fail "no \"$test\" in: $out"
    done
}

# refuses WORDS ARGS...: exit status 2, and WORDS on standard error.
refuses() {
    local words=$1 got=0 text
    shift
    text=$("$bench" "$subcommand" "$@" 2>&1 </dev/null) || got=$?
    [[ $got == 2 && $text == *"$words"* ]] || fail "exit status $got, not 2 with \"$words\": $text"
}

# The hash of what one test's model sampled.
tokens_of() { sed -n "s/.*\"test\": \"$1\".*\"tokens\": \"\([0-9a-f]*\)\".*/\1/p" <<<"$out"; }

"$bench" "$subcommand" --help | grep -q -- --repeat || fail "--help does not list --repeat"
refuses "unknown option" --no-such-option 1

case $subcommand in
hw)
    measure --ms 1 --trips 20 --repeat 2
    has roundtrip.futex.spin roundtrip.futex.sleep roundtrip.exchange.shm peak.f32.avx2.t1 \
        peak.int8.avx512vnni.t1 read.l2.t1 read.l3.t1 read.dram.t1
    out=$(CONCLAVE_CPU_MASK=ref "$bench" hw --ms 1 --trips 2 --repeat 1)
    grep -qE 'peak.int8.avx512vnni.t1 +skipped: no AVX-512 VNNI' <<<"$out" || fail "no skip: $out"
    ;;
kernels)
    measure --ms 1 --repeat 1 --m 1,5 --shapes 128x96 --contexts 40 --threads 1
    has gemm.f32.ref.t1.m1.128x96 gemm.int8.ref.t1.m5.128x96 attention.bf16.ref.t1.r1.c40 \
        rmsnorm.ref.t1.n4096 act_pack.int8.ref.t1.n4096
    refuses "--shapes" --shapes 128
    refuses "--tiers" --tiers sse9
    refuses "--m" --m 1,,2
    ;;
engine)
    small=(--model "$model" --dtype int8 --prefill 24 --decode 2 --decode-prompt 5 --tg 2 --batch 1,3 --repeat 1)
    hashes=""
    for workers in 0 1 2; do
        measure "${small[@]}" --workers "$workers"
        has pp24 tg2 b1 b3
        # One arithmetic, in one process or in several.
        [[ -n $(tokens_of b3) ]] || fail "no hash of tokens"
        hashes+="$(tokens_of pp24) $(tokens_of b3)"$'\n'
    done
    [[ $(sort -u <<<"${hashes%$'\n'}" | wc -l) == 1 ]] || fail "tokens differ: $hashes"
    measure "${small[@]}" --workers 0 --compare "$(dirname "$BIN")"
    has pp24 b3
    grep -q '"unit": "ratio".*"this":.*"other":' <<<"$out" || fail "no ratio: $out"
    refuses "--model" --model /nonexistent
    refuses "--batch" --model "$model" --batch 1,x
    refuses "--compare" --model "$model" --compare /nonexistent
    ;;
serve)
    measure --model "$model" --concurrency 2 --num-prompts 2 --input-len 8 --output-len 4 --repeat 1
    has output.c2.in8.out4 ttft.median.c2.in8.out4 tpot.median.c2.in8.out4
    refuses "--model" --concurrency 2
    ;;
esac
exit $((failures > 0))
