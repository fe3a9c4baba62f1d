# study_folders: what an experiment folder holds before it is run: its scripts, its card, a README.
# deploy/study.sh sources this; a cell is read (study_grid.sh) before each of these is called.

config_value() { sed -n "s/.*\"$1\": *\\([0-9]*\\).*/\\1/p" "$model/config.json" | head -n 1; }

# write FILE: standard input, whole or not at all.
write() {
    cat >"$1.part"
    mv -f "$1.part" "$1"
}

server_options() {
    local options="--parallelism $parallelism --dtype $cell_dtype --no-enable-prefix-caching"
    # Options that an older deploy/conclave does not know are given only where they are the point.
    if [[ $routers != 1 ]]; then options+=" --routers $routers"; fi
    if [[ $eplb == on || $known_options == *" --eplb "* ]]; then options+=" --eplb $eplb"; fi
    # Runs are short: balancing must look at the load more often than its default of 3000 steps.
    if [[ $eplb == on ]]; then options+=" --eplb-config '{\"window_size\":200,\"step_interval\":200}'"; fi
    case $extra in micro-batches=* | threads=*) options+=" --$extra" ;; esac
    printf '%s' "$options"
}

write_server() {
    write "$folder/server.sh" <<TEXT
#!/usr/bin/env bash
# Starts the services of this cell and returns when they serve.
# usage: server.sh [MODEL [PORT [BATCH_TOKENS [MAX_SEQS [MAX_MODEL_LEN [EP_SIZE]]]]]]
#   RUN_DIR    the fleet's folder; stop it with: deploy/conclave down --run-dir RUN_DIR
#   TRACE_DIR  where to write traces; none by default
set -euo pipefail
CONCLAVE_ROOT=\${CONCLAVE_ROOT:-$ROOT}
MODEL=\${1:-$model} PORT=\${2:-8000} BATCH_TOKENS=\${3:-$tokens} MAX_SEQS=\${4:-$seqs}
MAX_MODEL_LEN=\${5:-$max_model_len} EP_SIZE=\${6:-$cell_workers}
exec "\${CONCLAVE_FLEET:-\$CONCLAVE_ROOT/deploy/conclave}" up --run-dir "\${RUN_DIR:-/tmp/conclave-study-\$UID-\$PORT}" \\
    --model "\$MODEL" --port "\$PORT" --workers "\$EP_SIZE" --max-num-seqs "\$MAX_SEQS" \\
    --max-num-batched-tokens "\$BATCH_TOKENS" --max-model-len "\$MAX_MODEL_LEN" \\
    \${TRACE_DIR:+--trace "\$TRACE_DIR"} $(server_options)
TEXT
}

write_client() {
    write "$folder/client.sh" <<TEXT
#!/usr/bin/env bash
# Waits for the server and runs this cell's load.
# usage: client.sh [DATASET [INPUT_LEN [PORT [NUM_PROMPTS]]]]
#   DATASET      sharegpt (the study's filter), uniform or khot (domains of domains.json), random
#                token ids, repetitive (random, of eight different ids)
#   INPUT_LEN    of random and repetitive prompts, tokens
#   NUM_PROMPTS  no more than that; the load is held for a time: SECONDS_HELD that count, and WARMUP_S
#                before and after them, in s
#   RESULT_DIR, RESULT, SEED, OUTPUT_LEN   of the run; by default answers have their own length, at
#                most 96 tokens, and those to random prompts $random_output_len
set -euo pipefail
here=\$(cd "\$(dirname "\${BASH_SOURCE[0]}")" && pwd)
CONCLAVE_ROOT=\${CONCLAVE_ROOT:-$ROOT}
DATASET=\${1:-$dataset} INPUT_LEN=\${2:-$input_len} PORT=\${3:-8000} NUM_PROMPTS=\${4:-$prompts}
WARMUP_S=\${WARMUP_S:-$ramp} SECONDS_HELD=\${SECONDS_HELD:-$seconds}
data=\$CONCLAVE_ROOT/loadgen/data
case \$DATASET in
sharegpt) load=(--dataset-name sharegpt --dataset-path "\$data/study50.json") ;;
uniform | khot) load=(--dataset-name expert-skew --dataset-path "\$data/domains.json" --skew "\$DATASET") ;;
random | repetitive)
    load=(--dataset-name random --random-input-len "\$INPUT_LEN" --random-output-len "\${OUTPUT_LEN:-$random_output_len}"
        --random-range-ratio $random_ratio)
    if [[ \$DATASET == repetitive ]]; then load+=(--random-vocab 3:11); fi
    ;;
*) echo "client.sh: unknown DATASET \$DATASET" >&2 && exit 2 ;;
esac
case \$DATASET in
sharegpt | uniform | khot) load+=(--sharegpt-output-len "\${OUTPUT_LEN:-0}" --sharegpt-max-output-len 96) ;;
esac
for ((i = 0; i < 30; i++)); do
    curl --silent --fail --noproxy '*' --output /dev/null "http://127.0.0.1:\$PORT/health" && break
    sleep 2
done
exec "\${CONCLAVE_BIN_DIR:-\$CONCLAVE_ROOT/build/bin}/conclave-loadgen" --port "\$PORT" "\${load[@]}" \\
    --num-prompts "\$NUM_PROMPTS" --max-concurrency $concurrency --ignore-eos --num-warmups $warmups \\
    --warmup-seconds "\$WARMUP_S" --cooldown-seconds "\$WARMUP_S" --max-seconds \$((2 * WARMUP_S + SECONDS_HELD)) \\
    --seed "\${SEED:-0}" --no-progress --save-result --result-dir "\${RESULT_DIR:-\$here/results_json}" \\
    --result-filename "\${RESULT:-\$(date +%Y%m%d-%H%M%S)}.json" \\
    --metadata "load=$load" "cell=$mode $seqs $tokens $eplb $load $extra" "round=\${ROUND:-0}"
TEXT
}

# Cells without services: the router's engine alone, in one process or split from its workers.
write_engine_scripts() {
    local split=$cell_workers
    if [[ $mode == colocated ]]; then split=0; fi
    write "$folder/server.sh" <<TEXT
#!/usr/bin/env bash
# This cell has no services: client.sh starts the engine and ends it.
TEXT
    write "$folder/client.sh" <<TEXT
#!/usr/bin/env bash
# Runs this cell's load on router and workers, without HTTP: a prompt of 512 tokens, and MAX_SEQS
# sequences that decode together.  EP_SIZE 0 is one process without an exchange.
# usage: client.sh [MODEL [MAX_SEQS [BATCH_TOKENS [EP_SIZE]]]]
#   RESULT_DIR, RESULT, SEED   of the run
set -euo pipefail
here=\$(cd "\$(dirname "\${BASH_SOURCE[0]}")" && pwd)
CONCLAVE_ROOT=\${CONCLAVE_ROOT:-$ROOT}
BIN=\${CONCLAVE_BIN_DIR:-\$CONCLAVE_ROOT/build/bin}
RESULT_DIR=\${RESULT_DIR:-\$here/results_json}
mkdir -p "\$RESULT_DIR"
"\$BIN/conclave-bench" engine --model "\${1:-$model}" --batch "\${2:-$seqs}" \\
    --max-num-batched-tokens "\${3:-$tokens}" --workers "\${4:-$split}" --dtype $cell_dtype \\
    --prefill 512 --decode 128 --decode-prompt 128 --repeat 3 --seed "\${SEED:-1}" --json |
    "\$BIN/conclave-study" engine-result "\$RESULT_DIR/\${RESULT:-\$(date +%Y%m%d-%H%M%S)}.json"
TEXT
}

write_readme() {
    write "$folder/README.md" <<TEXT
# $name

Model \`$model_name\`, $parallelism over $cell_workers workers and $routers router(s), at most $seqs sequences and
$tokens tokens in a step, EPLB $eplb, load \`$load\`, options \`$extra\`. \`card.yaml\` has the rest.

\`\`\`sh
bash server.sh                              # starts the services on port 8000
bash client.sh                              # runs the load; the result goes to results_json/
deploy/conclave down --run-dir /tmp/conclave-study-\$UID-8000
\`\`\`

Both take their settings as arguments, too: see their first lines. CONCLAVE_ROOT names the project's folder.

- The server is warm: $warmups requests go before each run and are not measured. Prefix caching is off: the runs repeat prompts.
- A run holds $concurrency requests in flight for $((2 * ramp + seconds)) s, and counts those that are sent in the $seconds s in the middle: $ramp s
  before them fill the queue, and those after them keep the load up until most of the counted ones have ended.
- \`results_json/rN.json\` is round N. The study's rounds visit all cells, forwards and backwards in turn.
- \`traces/\` is from a run of its own, so that tracing is not within the figures: one file a process, and summary.json
  (of router 0's steps). Not every cell is traced.
- \`logs/\` has each round's logs of the services.
TEXT
}

# write_card KERNELS: the tier as the router names it, or none before it ran.
write_card() {
    local tp=1 ep=1 threads=$cell_threads
    if [[ $parallelism == tp ]]; then tp=$cell_workers; else ep=$cell_workers; fi
    if ((!threads)); then threads=$(nproc); fi
    "$BIN/conclave-study" card "$folder/card.yaml" \
        "description=$model_name, $parallelism over $cell_workers workers, $seqs sequences, $tokens tokens, EPLB $eplb, load $load" \
        "workload.model.model_family=$model_name" "workload.model.precision=$cell_dtype" \
        "workload.data.max-model-len=$max_model_len" "workload.data.max-num-seqs=$seqs" \
        "workload.data.max-num-batched-tokens=$tokens" "workload.data.dataset=$dataset" \
        "workload.hardware.xpu_spec.model=$cpu_model" "workload.hardware.xpu_spec.total_count=$(nproc)" \
        "workload.hardware.xpu_spec.count_per_node=$(nproc)" "workload.hardware.driver_version=$(uname -sr)" \
        "Model-executor.model_plan_parallelization.dp_shard=$routers" \
        "Model-executor.model_plan_parallelization.tp=$tp" "Model-executor.model_plan_parallelization.ep=$ep" \
        "Model-executor.expert_parallel.mode=$parallelism" "Model-executor.expert_parallel.eplb=$eplb" \
        "Model-executor.expert_parallel.top_k=$top_k" "metric_source.traces=traces/summary.json" \
        "metric_source.metrics_specific_trace=results_json" "conclave.mode=$mode" "conclave.load=$load" "conclave.options=${extra/#-/none}" \
        "conclave.build=$build" "conclave.kernel_tier=$1" "conclave.routers=$routers" \
        "conclave.workers=$cell_workers" "conclave.threads=$threads"
}

make_folders() {
    local cell
    for cell in "${cells[@]}"; do
        read_cell "$cell"
        mkdir -p "$folder"/{results_json,logs,traces}
        rm -rf "$folder/results_json/.part"
        if [[ $load == engine ]]; then
            write_engine_scripts
        else
            write_server
            write_client
        fi
        write_readme
        if [[ ! -f $folder/card.yaml ]]; then write_card none; fi
    done
}
