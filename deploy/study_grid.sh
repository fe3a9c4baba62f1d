# study_grid: the cells of a study, what each of them is called, and how long they will take.
# deploy/study.sh sources this.  It reads the options that parse() there sets.

# A cell is "MODE SEQS TOKENS EPLB LOAD EXTRA": MODE tp4, ep4, ep4r4 (4 routers) or colocated (router
# and experts in one process); EXTRA is "-", or an option of deploy/conclave (micro-batches=2).
#
# Loads: mixed (the study's requests), balanced and skewed (all domains of domains.json, or one),
# prefill (prompts of 1024 tokens and short answers, so that BATCH_TOKENS can bind), engine (no
# server: conclave-bench feeds the router, so that the build in one process can be compared).
#
# Cells that are compared stand beside each other: a machine drifts less from one to the next.
grid_cells() {
    if ((quick)); then
        quick_cells
    elif ((point)); then
        point_cells
        eplb_cells ""
    else
        full_cells
        eplb_cells ""
        eplb_cells threads=1
        beyond_cells
    fi
}

quick_cells() {
    local n=$workers
    printf '%s\n' "tp$n 32 8192 off mixed -" "ep$n 32 8192 off mixed -" "tp$n 8 8192 off mixed -" \
        "ep$n 8 8192 off mixed -" "ep$n 32 8192 off balanced -" "ep$n 32 8192 off skewed -"
}

point_cells() { echo "tp$workers 32 8192 off balanced -"; }

full_cells() {
    local mode seqs tokens
    for seqs in 8 16 32 64; do
        for tokens in 2048 4096 8192 16384; do
            for mode in "tp$workers" "ep$workers" "ep${workers}r4"; do
                echo "$mode $seqs $tokens off mixed -"
            done
        done
    done
    for tokens in 2048 4096 8192 16384; do
        for mode in "tp$workers" "ep$workers" "ep${workers}r4"; do
            echo "$mode 32 $tokens off prefill -"
        done
    done
}

# eplb_cells EXTRA: with threads=1, two workers have a core each, and the router waits for the fuller
# one: the point where balance can pay.  Where all workers share the cores it can't.
eplb_cells() {
    local load eplb mode="ep$workers"
    if [[ $1 == threads=1 ]]; then mode=ep2; fi
    for load in balanced skewed; do
        for eplb in off on; do echo "$mode 32 8192 $eplb $load ${1:--}"; done
    done
}

beyond_cells() {
    local n extra mode
    for n in 1 2 3 4 5 6 7 8; do
        if ((n == workers)); then continue; fi # it is in the grid
        for mode in tp ep; do echo "$mode$n 32 8192 off mixed -"; done
    done
    for extra in micro-batches=2 micro-batches=3 micro-batches=4 dtype=f32 dtype=int8 dtype=int4; do
        if [[ $extra == dtype=$dtype ]]; then continue; fi
        echo "ep$workers 32 8192 off mixed $extra"
    done
    for mode in colocated ep1 ep2 "ep$workers"; do echo "$mode 32 8192 off engine -"; done | awk '!seen[$0]++'
}

# Sets the parts of a cell, and `name`, its folder's.
read_cell() {
    read -r mode seqs tokens eplb load extra <<<"$1"
    [[ $mode =~ ^((tp|ep)([0-9]+)(r([0-9]+))?|colocated)$ ]] || die "no cell: $1"
    parallelism=${BASH_REMATCH[2]:-ep} cell_workers=${BASH_REMATCH[3]:-1} routers=${BASH_REMATCH[5]:-1}
    cell_dtype=$dtype cell_threads=0
    local suffix=""
    if [[ $eplb == on ]]; then suffix+=_eplbon; fi
    if [[ $load != mixed ]]; then suffix+=_$load; fi
    case $extra in
    -) ;;
    micro-batches=*) suffix+=_mb${extra#*=} ;;
    dtype=*) suffix+=_${extra#*=} cell_dtype=${extra#*=} ;;
    threads=*) suffix+=_t${extra#*=} cell_threads=${extra#*=} ;;
    *) die "no cell: $1" ;;
    esac
    name="$model_name-conclave${mode^^}-${platform}[${seqs}_$tokens$suffix]-$group"
    folder=$out/$name
    case $load in # as client.sh calls them
    mixed) dataset=sharegpt ;;
    balanced) dataset=uniform ;;
    skewed) dataset=khot ;;
    prefill | engine) dataset=random ;;
    *) die "no cell: $1" ;;
    esac
    if ((point)); then # the texts are the demo model's; token ids have exact lengths with any model
        case $load in
        balanced) dataset=random ;;
        skewed) dataset=repetitive ;;
        esac
    fi
    input_len=0
    if [[ $dataset == random || $dataset == repetitive ]]; then input_len=$((point ? 128 : 1024)); fi
}

# The cells that were asked for, in `cells`; and of all of the plan, how many requests are in flight:
# a quarter more than the largest MAX_SEQS, so that some always wait.
choose_cells() {
    local cell most=1
    cells=()
    while read -r cell; do
        read_cell "$cell"
        if ((seqs > most)); then most=$seqs; fi
        [[ $name =~ $filter ]] && cells+=("$cell")
    done < <(grid_cells)
    concurrency=$((most + most / 4))
    ((${#cells[@]})) || die "--cells: no cell matches $filter"
}

# Cells with the same key can share a running fleet: only their load differs.  With EPLB each has its
# own, since experts stay where the load before has moved them.
fleet_key() {
    printf '%s %s %s %s %s' "$mode" "$seqs" "$tokens" "$eplb" "$extra"
    if [[ $eplb == on || $load == engine ]]; then printf ' %s' "$load"; fi
}

# Traced are the cells of the pictures: all of a small plan, else those at 32 / 8192.
wants_trace() {
    if [[ $load == engine ]]; then return 1; fi
    ((quick)) || [[ "$seqs $tokens" == "32 8192" ]]
}

# ---------------------------------------------------------------- how long it takes

# Every run leaves "run SECONDS FOLDER" (or "trace ...") in OUT/times.log, with the start of its fleet
# where it needed one.  seconds_of KIND NAME: the mean of this cell's, else of all, else of a guess,
# in tenths, in `tenths`; sets `guessed` when nothing was measured yet.
seconds_of() {
    local kind=$1 found=""
    if [[ -f $out/times.log ]]; then
        found=$(awk -v kind="$kind" -v name="$2" '
            $1 != kind { next }
            { all += $2; n++ }
            $3 == name { own += $2; m++ }
            END { if (m) printf "%d", 10 * own / m; else if (n) printf "%d", 10 * all / n }' "$out/times.log")
    fi
    if [[ -z $found ]]; then guessed=1; fi
    tenths=${found:-$((kind_guess_s * 10))}
}

write_plan() {
    local cell n left all_left=0 runs=0 total=0 tenths guessed=0 traces=0 kind_guess_s
    printf '%-64s %5s %8s\n' "cell" "runs" "s a run"
    for cell in "${cells[@]}"; do
        read_cell "$cell"
        left=$repeats
        for ((n = 1; n <= repeats; n++)); do
            if [[ -f $folder/results_json/r$n.json ]]; then left=$((left - 1)); fi
        done
        kind_guess_s=$((2 * ramp + seconds + 6))
        seconds_of run "$name"
        printf '%-64s %5d %6d.%d\n' "$name" "$left" $((tenths / 10)) $((tenths % 10))
        total=$((total + left * tenths)) all_left=$((all_left + left)) runs=$((runs + repeats))
        if wants_trace && [[ ! -f $folder/traces/summary.json ]]; then
            kind_guess_s=8
            seconds_of trace "$name"
            total=$((total + tenths)) traces=$((traces + 1))
        fi
    done
    printf '%d cells, %d runs each; %d of %d runs and %d traces are left: about %d minutes (%s)\n' \
        "${#cells[@]}" "$repeats" "$all_left" "$runs" "$traces" $(((total + 599) / 600)) \
        "$( ((guessed)) && echo "partly guessed: not every kind was measured here yet" || echo "as measured here")"
}
