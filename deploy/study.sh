#!/usr/bin/env bash
# study: tensor parallel against expert parallel, over batching limits, EPLB and load.
#
# Every cell of the grid is an experiment folder that also runs by itself: server.sh and client.sh
# in it are what this script runs.  Cells are visited in rounds, one repeat a round, forwards and
# backwards in turn, so that a machine that gets slower does not favour anyone.  What is done stays:
# the same command again goes on where it was interrupted.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BIN=${CONCLAVE_BIN_DIR:-$ROOT/build/bin}
# What starts and stops fleets: deploy/conclave, or deploy/slurm/conclave.sh over the nodes of a job.
FLEET=${CONCLAVE_FLEET:-$ROOT/deploy/conclave}

usage() {
    cat <<'TEXT'
usage: deploy/study.sh [--quick] --model DIR --out DIR [options]   run the grid, then report
       deploy/study.sh report DIR [--png]                          build report.html again; pictures
       deploy/study.sh list [--quick] --model DIR --out DIR        the cells, one a line

  --quick          six cells, two repeats, short loads
  --repeats N      runs of each cell (3; 2 with --quick); more may be added later
  --cells REGEX    only cells whose folder's name matches
  --workers N      expert workers of the grid's cells (4)
  --dtype D        f32, bf16, int8 or int4 (bf16)
  --platform NAME  the middle of the folders' names (cpu)
  --group NAME     their end (conclave)
  --port N         where the fleets listen (a free one)

Exit status: 0 all cells are measured or skipped with a reason, 1 some failed, 2 bad options.
TEXT
}

say() { printf 'study: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 2
}

# ---------------------------------------------------------------- options

parse() {
    quick=0 repeats="" model="" out="" filter=. workers=4 dtype=bf16 platform=cpu group=conclave fixed_port=""
    while (($#)); do
        case $1 in
        --help) usage && exit 0 ;;
        --quick) quick=1 ;;
        --repeats | --model | --out | --cells | --workers | --dtype | --platform | --group | --port)
            (($# > 1)) || die "$1 needs a value"
            case $1 in
            --repeats) repeats=$2 ;;
            --model) model=$2 ;;
            --out) out=$2 ;;
            --cells) filter=$2 ;;
            --workers) workers=$2 ;;
            --dtype) dtype=$2 ;;
            --platform) platform=$2 ;;
            --group) group=$2 ;;
            --port) fixed_port=$2 ;;
            esac
            shift
            ;;
        *) die "unknown option $1" ;;
        esac
        shift
    done
    if [[ -z $repeats ]]; then repeats=$((quick ? 2 : 3)); fi
    [[ $repeats =~ ^[1-9][0-9]?$ ]] || die "--repeats: \"$repeats\" must be a whole number of 1..99"
    [[ $workers =~ ^[1-9][0-9]?$ ]] || die "--workers: \"$workers\" must be a whole number of 1..99"
    [[ $dtype =~ ^(f32|bf16|int8|int4)$ ]] || die "--dtype: \"$dtype\" is none of f32, bf16, int8, int4"
    [[ $platform =~ ^[A-Za-z0-9._]+$ ]] || die "--platform: letters, digits, dots and underscores"
    [[ $group =~ ^[A-Za-z0-9._]+$ ]] || die "--group: letters, digits, dots and underscores"
    [[ -z $fixed_port || $fixed_port =~ ^[1-9][0-9]{0,4}$ ]] || die "--port: \"$fixed_port\" is no port"
    port=$fixed_port
    [[ -n $model ]] || die "--model DIR is missing"
    [[ -n $out ]] || die "--out DIR is missing"
    [[ -f $model/config.json ]] || die "--model: $model has no config.json"
    model=$(realpath -e -- "$model")
    [[ $model != *[\'\"\$\`\\]* ]] || die "--model: quotes in the path"
    model_name=$(basename "$model")
    # Quick loads have answers of equal length: no long last one, so that throughput is capacity.
    if ((quick)); then
        prompts=96 concurrency=48 output_len=48 warmups=8 trace_prompts=48 trim=0,0
    else
        prompts=300 concurrency=80 output_len=0 warmups=16 trace_prompts=64 trim=2,8
    fi
}

free_port() {
    local candidate i
    for ((i = 0; i < 50; i++)); do
        candidate=$((20000 + RANDOM % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    die "found no free port"
}

# ---------------------------------------------------------------- the grid

# A cell is "MODE SEQS TOKENS EPLB LOAD EXTRA": MODE tp4, ep4, ep4r4 (4 routers); EXTRA is "-", or
# options of deploy/conclave (micro-batches=2).
#
# Loads: mixed (the study's requests), balanced and skewed (all domains of domains.json, or one),
# prefill (prompts of 1024 tokens and short answers, so that BATCH_TOKENS can bind).
plan() {
    local mode seqs tokens eplb load n=$workers
    if ((quick)); then
        printf '%s\n' "tp$n 32 8192 off mixed -" "ep$n 32 8192 off mixed -" "tp$n 8 8192 off mixed -" \
            "ep$n 8 8192 off mixed -" "ep$n 32 8192 off balanced -" "ep$n 32 8192 off skewed -"
        return
    fi
    for mode in "tp$n" "ep$n" "ep${n}r4"; do
        for seqs in 8 16 32 64; do
            for tokens in 2048 4096 8192 16384; do
                echo "$mode $seqs $tokens off mixed -"
            done
        done
        for tokens in 2048 4096 8192 16384; do
            echo "$mode 32 $tokens off prefill -"
        done
    done
    for seqs in 32 64; do
        for eplb in off on; do
            for load in balanced skewed; do
                echo "ep$n $seqs 8192 $eplb $load -"
            done
        done
    done
    for mode in ep1 ep2 ep8 tp1 tp2 tp8; do
        echo "$mode 32 8192 off mixed -"
    done
    for extra in micro-batches=2 micro-batches=3 micro-batches=4 dtype=f32 dtype=int8 dtype=int4; do
        echo "ep$n 32 8192 off mixed $extra"
    done
}

# Sets the parts of a cell, and `name`, its folder's.
read_cell() {
    read -r mode seqs tokens eplb load extra <<<"$1"
    [[ $mode =~ ^(tp|ep)([0-9]+)(r([0-9]+))?$ ]] || die "no cell: $1"
    parallelism=${BASH_REMATCH[1]} cell_workers=${BASH_REMATCH[2]} routers=${BASH_REMATCH[4]:-1}
    cell_dtype=$dtype
    local suffix=""
    if [[ $eplb == on ]]; then suffix+=_eplbon; fi
    if [[ $load != mixed ]]; then suffix+=_$load; fi
    case $extra in
    -) ;;
    micro-batches=*) suffix+=_mb${extra#*=} ;;
    dtype=*) suffix+=_${extra#*=} cell_dtype=${extra#*=} ;;
    *) die "no cell: $1" ;;
    esac
    name="$model_name-conclave${mode^^}-${platform}[${seqs}_$tokens$suffix]-$group"
    folder=$out/$name
    case $load in # as client.sh calls them
    mixed) dataset=sharegpt ;;
    balanced) dataset=uniform ;;
    skewed) dataset=khot ;;
    prefill) dataset=random ;;
    *) die "no cell: $1" ;;
    esac
}

# The cells that were asked for, in `cells`.
choose_cells() {
    local cell
    cells=()
    while read -r cell; do
        read_cell "$cell"
        [[ $name =~ $filter ]] && cells+=("$cell")
    done < <(plan)
    ((${#cells[@]})) || die "--cells: no cell matches $filter"
}

# Cells with the same key can share a running fleet: only their load differs.
fleet_key() { printf '%s %s %s %s %s' "$mode" "$seqs" "$tokens" "$eplb" "$extra"; }

# ---------------------------------------------------------------- experiment folders

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
    case $extra in micro-batches=*) options+=" --$extra" ;; esac
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
    local input_len=0 count=$prompts
    if [[ $load == prefill ]]; then input_len=1024 count=$((prompts / 2)); fi
    write "$folder/client.sh" <<TEXT
#!/usr/bin/env bash
# Waits for the server and runs this cell's load.
# usage: client.sh [DATASET [INPUT_LEN [PORT [NUM_PROMPTS]]]]
#   DATASET     sharegpt (the study's filter), uniform or khot (domains of domains.json), random
#   INPUT_LEN   of random prompts, tokens
#   RESULT_DIR, RESULT, SEED, OUTPUT_LEN   of the run; answers have their own length by default
set -euo pipefail
here=\$(cd "\$(dirname "\${BASH_SOURCE[0]}")" && pwd)
CONCLAVE_ROOT=\${CONCLAVE_ROOT:-$ROOT}
DATASET=\${1:-$dataset} INPUT_LEN=\${2:-$input_len} PORT=\${3:-8000} NUM_PROMPTS=\${4:-$count}
OUTPUT_LEN=\${OUTPUT_LEN:-$output_len}
data=\$CONCLAVE_ROOT/loadgen/data
case \$DATASET in
sharegpt) load=(--dataset-name sharegpt --dataset-path "\$data/study50.json") ;;
uniform | khot) load=(--dataset-name expert-skew --dataset-path "\$data/domains.json" --skew "\$DATASET") ;;
random) load=(--dataset-name random --random-input-len "\$INPUT_LEN" --random-output-len 16) ;;
*) echo "client.sh: unknown DATASET \$DATASET" >&2 && exit 2 ;;
esac
if [[ \$DATASET != random ]]; then load+=(--sharegpt-output-len "\$OUTPUT_LEN"); fi
for ((i = 0; i < 30; i++)); do
    curl --silent --fail --noproxy '*' --output /dev/null "http://127.0.0.1:\$PORT/health" && break
    sleep 2
done
exec "\${CONCLAVE_BIN_DIR:-\$CONCLAVE_ROOT/build/bin}/conclave-loadgen" --port "\$PORT" "\${load[@]}" \\
    --num-prompts "\$NUM_PROMPTS" --max-concurrency $concurrency --ignore-eos --num-warmups $warmups \\
    --warmup-seconds \${WARMUP_S:-${trim%,*}} --cooldown-seconds \${COOLDOWN_S:-${trim#*,}} \\
    --seed "\${SEED:-0}" --no-progress --save-result --result-dir "\${RESULT_DIR:-\$here/results_json}" \\
    --result-filename "\${RESULT:-\$(date +%Y%m%d-%H%M%S)}.json" \\
    --metadata "load=$load" "cell=$mode $seqs $tokens $eplb $load $extra" "round=\${ROUND:-0}"
TEXT
}

write_readme() {
    write "$folder/README.md" <<TEXT
# $name

Model \`$model_name\`, $parallelism over $cell_workers workers and $routers router(s), at most $seqs sequences and
$tokens tokens in a step, EPLB $eplb, load \`$load\`. \`card.yaml\` has the rest.

\`\`\`sh
bash server.sh                              # starts the services on port 8000
bash client.sh                              # runs the load; the result goes to results_json/
deploy/conclave down --run-dir /tmp/conclave-study-\$UID-8000
\`\`\`

Both take their settings as arguments, too: see their first lines. CONCLAVE_ROOT names the project's folder.

- The server is warm: $warmups requests go before each run and are not measured. Prefix caching is off: the runs repeat prompts.
- \`results_json/rN.json\` is round N. The study's rounds visit all cells, forwards and backwards in turn.
- \`traces/\` is from a run of its own, so that tracing is not within the figures: one file a process, and summary.json
  (of router 0's steps).
- \`logs/\` has each round's logs of the services.
TEXT
}

# write_card KERNELS: the tier as the router names it, or none before it ran.
write_card() {
    local tp=1 ep=1
    if [[ $parallelism == tp ]]; then tp=$cell_workers; else ep=$cell_workers; fi
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
        "conclave.workers=$cell_workers" "conclave.threads=$(nproc)"
}

make_folders() {
    local cell
    for cell in "${cells[@]}"; do
        read_cell "$cell"
        mkdir -p "$folder"/{results_json,logs,traces}
        rm -rf "$folder/results_json/.part"
        write_server
        write_client
        write_readme
        if [[ ! -f $folder/card.yaml ]]; then write_card none; fi
    done
}

# ---------------------------------------------------------------- running

child=""

stop_fleet() { "$FLEET" down --run-dir "$run_dir" >/dev/null 2>&1 || true; }

finish() {
    trap '' INT TERM HUP
    if [[ -n $child ]]; then kill "$child" 2>/dev/null || true; fi
    stop_fleet
    rm -rf "$run_dir"
}

# In the background, so that a signal to this script is heard at once.
run_child() {
    local status=0
    "$@" 8>&- &
    child=$!
    wait "$child" || status=$?
    child=""
    return $status
}

# start_fleet [TRACE_DIR]: for the cell that was read.  1: it failed; 2: this version refuses it; the
# reason is in $run_dir.up.
start_fleet() {
    local status tier attempt
    # A port that was free may be another program's by now: a failed start is tried once more.
    for attempt in 1 2; do
        status=0
        stop_fleet
        if [[ -z $fixed_port ]]; then port=$(free_port); fi
        RUN_DIR=$run_dir TRACE_DIR=${1:-} run_child bash "$folder/server.sh" "$model" "$port" \
            >"$run_dir.up" 2>&1 || status=$?
        if ((status != 1)); then break; fi
        say "attempt $attempt to start $name: $(tail -n 3 "$run_dir.up" | tr '\n' ' ')"
    done
    if ((status == 0)) && [[ ! -f $folder/results_json/r1.json ]]; then
        tier=$(sed -n 's/.* kernels=\([^ ]*\) .*/\1/p' "$run_dir/router-0.log" | head -n 1)
        write_card "${tier:-none}"
    fi
    return $status
}

skip_cell() {
    tail -n 1 "$run_dir.up" | write "$folder/skipped"
    say "skipped $name: $(<"$folder/skipped")"
}

# Prints output throughput and TPOT of a result.
figures() {
    sed -n 's/.*"output_throughput": *\([0-9.]*\).*"median_tpot_ms": *\([0-9.]*\).*/\1 \2/p' "$1" | head -n 1
}

# run_load ROUND: the load of the cell that was read, on the fleet that runs.
run_load() {
    local status=0 part=$folder/results_json/.part started=$SECONDS input_len=0
    if [[ $load == prefill ]]; then input_len=1024; fi
    RESULT_DIR=$part RESULT=r$1 SEED=$1 ROUND=$1 run_child bash "$folder/client.sh" "$dataset" "$input_len" "$port" \
        >"$folder/logs/r$1-client.log" 2>&1 || status=$?
    keep_logs "r$1"
    if ((status)); then
        say "FAILED round $1 of $name: see logs/r$1-client.log"
        failed=$((failed + 1))
        rm -rf "$part"
        return 0
    fi
    # No command substitution: bash 5.2 can't run the trap of a signal that comes during one.
    local rate='?' tpot='?'
    read -r rate tpot < <(figures "$part/r$1.json") || true
    done_runs=$((done_runs + 1))
    say "[$done_runs/$all_runs] round $1, $name: ${rate%%.*} tokens/s, TPOT ${tpot:0:5} ms ($((SECONDS - started)) s)"
    mv -f "$part/r$1.json" "$folder/results_json/r$1.json"
    rm -rf "$part"
}

keep_logs() {
    local file
    for file in "$run_dir"/*.log; do
        [[ -f $file ]] && cp "$file" "$folder/logs/$1-$(basename "$file")"
    done
    return 0
}

# run_fleet ROUND CELLS...: cells that can share a fleet.
run_fleet() {
    local round=$1 cell status=0 todo=() running=0
    shift
    for cell in "$@"; do
        read_cell "$cell"
        if [[ ! -f $folder/results_json/r$round.json ]]; then todo+=("$cell"); fi
    done
    for cell in "${todo[@]}"; do
        read_cell "$cell"
        if ((!running)); then
            status=0
            start_fleet || status=$?
        fi
        if ((status == 2)); then
            skip_cell
        elif ((status)); then
            say "FAILED to start $name"
            failed=$((failed + 1))
        else
            running=1
            rm -f "$folder/skipped"
            run_load "$round"
        fi
    done
    stop_fleet
}

# round N: all fleets in their order, in even rounds backwards.
round() {
    local n=$1 cell key keys=() list=("${cells[@]}") i
    local -A members=()
    if ((n % 2 == 0)); then
        list=()
        for ((i = ${#cells[@]} - 1; i >= 0; i--)); do list+=("${cells[i]}"); done
    fi
    for cell in "${list[@]}"; do
        read_cell "$cell"
        key=$(fleet_key)
        if [[ ! -v members[$key] ]]; then keys+=("$key"); fi
        members[$key]+=$cell$'\n'
    done
    for key in "${keys[@]}"; do
        mapfile -t list < <(printf '%s' "${members[$key]}")
        run_fleet "$n" "${list[@]}"
    done
}

# A short run with --trace, after the measured ones.
trace_cell() {
    local status=0 raw=$run_dir.traces
    if [[ -f $folder/traces/summary.json || ! -f $folder/results_json/r1.json ]]; then return 0; fi
    rm -rf "$raw"
    if start_fleet "$raw"; then
        RESULT_DIR=$raw/result RESULT=run OUTPUT_LEN=32 WARMUP_S=0 COOLDOWN_S=0 run_child bash "$folder/client.sh" \
            "$dataset" 1024 "$port" "$trace_prompts" >"$folder/logs/trace-client.log" 2>&1 || status=$?
        stop_fleet
        # A summary is of one router's steps.
        "$BIN/conclave-trace" summary --json "$raw"/router-0.json "$raw"/worker-*.json >"$raw/summary" || status=$?
    else
        status=1
        cp "$run_dir.up" "$folder/logs/trace-client.log"
    fi
    keep_logs trace
    if ((status)); then
        say "FAILED to trace $name: $(tail -n 2 "$folder/logs/trace-client.log" | tr '\n' ' ')"
        failed=$((failed + 1))
        return 0
    fi
    gzip -f "$raw"/*.json
    mv -f "$raw"/*.json.gz "$folder/traces/"
    mv -f "$raw/summary" "$folder/traces/summary.json"
    rm -rf "$raw"
}

# A folder of results belongs to one setting.
check_settings() {
    local now
    now=$(printf 'model=%s\nquick=%s\ndtype=%s\n' "$model" "$quick" "$dtype")
    if [[ -f $out/study.conf ]]; then
        [[ $(<"$out/study.conf") == "$now" ]] ||
            die "--out: $out holds a study with other settings ($(tr '\n' ' ' <"$out/study.conf"))"
    else
        printf '%s\n' "$now" | write "$out/study.conf"
    fi
}

command_run() {
    parse "$@"
    local binary cell
    for binary in conclave-router conclave-worker conclave-frontend conclave-ctl conclave-loadgen \
        conclave-study conclave-trace; do
        [[ -x $BIN/$binary ]] || die "$BIN/$binary is not built; run: cmake --preset release && cmake --build build"
    done
    mkdir -p "$out" || die "--out: can't make $out"
    out=$(realpath -e -- "$out")
    exec 8>"$out/.lock"
    flock -n 8 || die "another study runs in $out"
    check_settings
    known_options=" $("$ROOT/deploy/conclave" --help | tr -s '[:space:]' ' ') "
    cpu_model=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)
    build="$("$BIN/conclave-study" version) $(git -C "$ROOT" rev-parse --short HEAD 2>/dev/null || echo unknown)"
    max_model_len=$(config_value max_position_embeddings)
    if [[ -z $max_model_len ]] || ((max_model_len > 4096)); then max_model_len=4096; fi
    top_k=$(config_value num_experts_per_tok)
    [[ -n $top_k ]] || die "--model: config.json has no num_experts_per_tok"
    run_dir=$(mktemp -d "${CONCLAVE_STUDY_TMP:-/tmp}/conclave-study.XXXXXX")
    trap 'finish; rm -rf "$run_dir".*' EXIT
    trap 'say "interrupted; the same command goes on"; exit 130' INT HUP
    trap 'say "interrupted; the same command goes on"; exit 143' TERM

    choose_cells
    make_folders
    failed=0 done_runs=0 all_runs=$((repeats * ${#cells[@]}))
    local n started=$SECONDS
    for cell in "${cells[@]}"; do
        read_cell "$cell"
        for ((n = 1; n <= repeats; n++)); do
            if [[ -f $folder/results_json/r$n.json ]]; then done_runs=$((done_runs + 1)); fi
        done
    done
    if ((done_runs)); then say "$done_runs of $all_runs runs are there already"; fi
    for ((n = 1; n <= repeats; n++)); do round "$n"; done
    for cell in "${cells[@]}"; do
        read_cell "$cell"
        trace_cell
    done
    "$BIN/conclave-study" report "$out"
    say "done in $((SECONDS - started)) s: $out/report.html"
    if ((failed)); then
        say "$failed runs failed"
        exit 1
    fi
}

command_list() {
    parse "$@"
    local cell
    choose_cells
    for cell in "${cells[@]}"; do
        read_cell "$cell"
        printf '%s\n' "$name"
    done
}

case ${1:-} in
report)
    [[ $# == 2 || (${3:-} == --png && $# == 3) ]] && [[ -d $2 ]] || die "usage: deploy/study.sh report DIR [--png]"
    "$BIN/conclave-study" report "$2"
    if (($# == 3)); then "$ROOT/deploy/study_png.sh" "$2"; fi
    ;;
list) command_list "${@:2}" ;;
*) command_run "$@" ;;
esac
