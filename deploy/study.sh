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
# shellcheck source=deploy/study_grid.sh
. "$ROOT/deploy/study_grid.sh"
# shellcheck source=deploy/study_folders.sh
. "$ROOT/deploy/study_folders.sh"

usage() {
    cat <<'TEXT'
usage: deploy/study.sh [--quick] --model DIR --out DIR [options]   run the grid, then report
       deploy/study.sh report DIR [--png]                          build report.html again; pictures
       deploy/study.sh list [options]                              the cells, one a line

  --plan           print the cells and how long they will take, and end
  --quick          six cells, two repeats, short loads
  --point          only 32 / 8192: both modes, EPLB on and off, prompts of 64 to 192 token ids;
                   for models that are slow here
  --repeats N      runs of each cell (3; 2 with --quick, 5 with --point); more may be added later
  --seconds N      how long a run's load is held and counted (5; 3 with --quick, 12 with --point)
  --ramp N         seconds before and after that which are not counted (2; 1 with --quick, 8 with --point)
  --minutes N      begin nothing more after that time; the same command goes on
  --cells REGEX    only cells whose folder's name matches
  --workers N      expert workers of the grid's cells (4)
  --dtype D        f32, bf16, int8 or int4 (bf16)
  --platform NAME  the middle of the folders' names (cpu)
  --group NAME     their end (conclave)
  --port N         where the fleets listen (a free one)

Exit status: 0 all cells are measured or skipped with a reason, 1 some failed, 2 bad options,
3 --minutes were over before all was measured.
TEXT
}

say() { printf 'study: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 2
}

# ---------------------------------------------------------------- options

parse() {
    quick=0 point=0 plan_only=0 repeats="" seconds="" ramp="" minutes="" model="" out=""
    filter=. workers=4 dtype=bf16 platform=cpu group=conclave fixed_port=""
    while (($#)); do
        case $1 in
        --help) usage && exit 0 ;;
        --quick) quick=1 ;;
        --point) point=1 ;;
        --plan) plan_only=1 ;;
        --repeats | --seconds | --ramp | --minutes | --model | --out | --cells | --workers | --dtype | --platform | --group | --port)
            (($# > 1)) || die "$1 needs a value"
            case $1 in
            --repeats) repeats=$2 ;;
            --seconds) seconds=$2 ;;
            --ramp) ramp=$2 ;;
            --minutes) minutes=$2 ;;
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
    ((!quick || !point)) || die "--quick and --point exclude each other"
    if [[ -z $repeats ]]; then repeats=$((quick ? 2 : point ? 5 : 3)); fi
    if [[ -z $seconds ]]; then seconds=$((quick ? 3 : point ? 12 : 5)); fi
    if [[ -z $ramp ]]; then ramp=$((quick ? 1 : point ? 8 : 2)); fi
    [[ $ramp =~ ^[0-9]{1,4}$ ]] || die "--ramp: \"$ramp\" must be a whole number of 0..9999"
    [[ $seconds =~ ^[1-9][0-9]{0,3}$ ]] || die "--seconds: \"$seconds\" must be a whole number of 1..9999"
    [[ -z $minutes || $minutes =~ ^[1-9][0-9]{0,4}$ ]] || die "--minutes: \"$minutes\" must be a whole number of 1..99999"
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
    model_name=$(basename "$model")
    model=$(realpath -e -- "$model")
    if [[ $model_name == . ]]; then model_name=$(basename "$model"); fi
    [[ $model != *[\'\"\$\`\\]* ]] || die "--model: quotes in the path"
    if [[ -d $out ]]; then out=$(realpath -e -- "$out"); fi
    # A run: `warmups` requests, then a load that is held for `ramp`, `seconds` and `ramp` again, of which
    # only the middle counts: in the last part the load stays up while counted requests end.  Then what
    # is under way ends.  Answers are short, so that a short run has many.
    warmups=8 random_output_len=$((point ? 48 : 16)) random_ratio=$((point ? 5 : 0))e-1 prompts=$((100 * (2 * ramp + seconds)))
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

# ---------------------------------------------------------------- running

REQUESTS_MIN=5 # of a run: medians of fewer say nothing
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

# number_of KEY RESULT: the first with this key; series further down have some of the names, too.
number_of() { grep -o "\"$1\": *[0-9.]*" "$2" | sed -n '1s/.*: *//p'; }

# Output tokens per second, of the window where there is one, and TPOT.
figures() {
    local rate
    rate=$(number_of steady_output_throughput "$1") || true
    echo "${rate:-$(number_of output_throughput "$1")} $(number_of median_tpot_ms "$1")"
}

# Are there requests enough among those that count?  No command substitution here and in run_load:
# bash 5.2 can't run the trap of a signal that comes during one.
has_requests() {
    local completed=0
    read -r completed < <(number_of completed "$1") || true
    ((${completed:-0} >= REQUESTS_MIN))
}

# run_load ROUND: the load of the cell that was read, on the fleet that runs.
run_load() {
    local status=0 part=$folder/results_json/.part started=$SECONDS longer
    local arguments=("$dataset" "$input_len" "$port")
    if [[ $load == engine ]]; then arguments=("$model"); fi
    # A slow or busy machine may end too few requests in that time: then it is held longer.
    for longer in 1 3 9; do
        RESULT_DIR=$part RESULT=r$1 SEED=$1 ROUND=$1 WARMUP_S=$((ramp * longer)) SECONDS_HELD=$((seconds * longer)) \
            run_child bash "$folder/client.sh" "${arguments[@]}" >"$folder/logs/r$1-client.log" 2>&1 || status=$?
        if ((status)) || has_requests "$part/r$1.json"; then break; fi
        say "round $1 of $name: fewer than $REQUESTS_MIN requests count in $((seconds * longer)) s"
        if ((longer == 9)); then status=1; fi
    done
    keep_logs "r$1"
    if ((status)); then
        say "FAILED round $1 of $name: see logs/r$1-client.log"
        failed=$((failed + 1))
        rm -rf "$part"
        return 0
    fi
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

# Are the --minutes over?  Said once.
is_over() {
    if [[ -z $minutes ]] || ((SECONDS < 60 * minutes)); then return 1; fi
    if ((!over)); then say "$minutes minutes are over; the same command goes on"; fi
    over=1
}

# note_time KIND SINCE: what write_plan reckons with; SINCE in us.
note_time() {
    local now=${EPOCHREALTIME/[.,]/}
    printf '%s %d.%03d %s\n' "$1" $(((now - $2) / 1000000)) $(((now - $2) / 1000 % 1000)) "$name" >>"$out/times.log"
}

# run_fleet ROUND CELLS...: cells that can share a fleet.
run_fleet() {
    local round=$1 cell status=0 todo=() running=0 since
    shift
    for cell in "$@"; do
        read_cell "$cell"
        if [[ ! -f $folder/results_json/r$round.json ]]; then todo+=("$cell"); fi
    done
    for cell in "${todo[@]}"; do
        read_cell "$cell"
        if is_over; then break; fi
        since=${EPOCHREALTIME/[.,]/}
        if ((!running)); then
            status=0
            if [[ $load != engine ]]; then start_fleet || status=$?; fi
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
            note_time run "$since"
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
    local status=0 raw=$run_dir.traces since=${EPOCHREALTIME/[.,]/} held=$((point ? 10 : 2))
    case $load in balanced | skewed) held=$((held + 4)) ;; esac # long enough to show that EPLB acts
    if [[ -f $folder/traces/summary.json || ! -f $folder/results_json/r1.json ]]; then return 0; fi
    if ! wants_trace || is_over; then return 0; fi
    rm -rf "$raw"
    if start_fleet "$raw"; then
        RESULT_DIR=$raw/result RESULT=run OUTPUT_LEN=32 WARMUP_S=0 SECONDS_HELD=$held run_child bash "$folder/client.sh" \
            "$dataset" "$input_len" "$port" >"$folder/logs/trace-client.log" 2>&1 || status=$?
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
    note_time trace "$since"
}

# A folder of results belongs to one setting.
check_settings() {
    local now
    now=$(printf 'model=%s\nquick=%s\npoint=%s\nseconds=%s\nramp=%s\ndtype=%s\n' \
        "$model" "$quick" "$point" "$seconds" "$ramp" "$dtype")
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
    if ((plan_only)); then
        choose_cells
        write_plan
        return
    fi
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
    failed=0 over=0 done_runs=0 all_runs=$((repeats * ${#cells[@]}))
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
    if ((over)); then exit 3; fi
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
