#!/usr/bin/env bash
# conclave.sh: deploy/conclave inside a Slurm allocation.
#
# Each kind of process is one job step: the frontend on the first node, routers and workers in blocks
# over all nodes.  They meet at TCP addresses, with a secret that `up` makes, and rows travel through
# shared memory inside a node and over TCP between nodes.  The run directory must be one that all
# nodes see; sockets are not made in it, logs are.
set -euo pipefail

SLURM_SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/conclave
. "$SLURM_SCRIPTS/../conclave"

usage() {
    cat <<'TEXT'
usage, in an allocation (sbatch deploy/slurm/serve.sh makes one):
       deploy/slurm/conclave.sh up --model DIR [options]    start a fleet and wait until it serves
       deploy/slurm/conclave.sh status [--json]
       deploy/slurm/conclave.sh rebalance | logs [NAME] [-f] | down

Options are those of deploy/conclave (see its --help), and
  --run-dir DIR            on a file system that all nodes share (default ./conclave-JOBID)
  --control-port N         router I listens at port N + I of its node (20000 + JOBID % 100 * 100)
  --router-cpus N          CPUs of a router's task; by default tasks of all kinds use all of their
  --worker-cpus N          node's CPUs that this job has; with these, Slurm keeps them apart
TEXT
}

in_allocation() {
    [[ -n ${SLURM_JOB_ID:-} && -n ${SLURM_JOB_NODELIST:-} ]] ||
        die "no Slurm allocation here; submit deploy/slurm/serve.sh, or use salloc"
    command -v srun >/dev/null || die "no srun here"
}

# ---------------------------------------------------------------- nodes

# The address of a node as other nodes reach it.
address_of() {
    local name ip
    name=$(scontrol show node -o "$1" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')
    ip=$(getent ahostsv4 "${name:-$1}" | awk '{ print $1; exit }')
    if [[ -z $ip ]]; then
        ip=$(getent ahostsv6 "${name:-$1}" | awk '{ print $1; exit }')
        ip=${ip:+[$ip]}
    fi
    [[ -n $ip ]] || die "node $1: no address"
    printf '%s' "$ip"
}

# Sets nodes, addresses and node_cpus (the least that this job has on one of them).
read_nodes() {
    local node part
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    ((${#nodes[@]})) || die "no nodes in $SLURM_JOB_NODELIST"
    addresses=()
    for node in "${nodes[@]}"; do addresses+=("$(address_of "$node")"); done
    node_cpus=
    for part in ${SLURM_JOB_CPUS_PER_NODE//,/ }; do # 8(x3),4
        part=${part%%(*}
        if [[ -z $node_cpus ]] || ((part < node_cpus)); then node_cpus=$part; fi
    done
    : "${node_cpus:=1}"
}

# node_of TASK TASKS: in blocks, so that neighbours share a node's memory.
node_of() { echo $(($1 * ${#nodes[@]} / $2)); }

# ---------------------------------------------------------------- steps

# set_launcher KIND TASKS CPUS: CPUS empty: all tasks of a node share its CPUs, also with other kinds.
set_launcher() {
    local kind=$1 tasks=$2 cpus=$3 i per_node
    local hosts=$RUN_DIR/$kind.hosts
    for ((i = 0; i < tasks; i++)); do echo "${nodes[$(node_of "$i" "$tasks")]}"; done >"$hosts"
    # SLURM_HOSTFILE gives every task its node.
    launcher=(env "SLURM_HOSTFILE=$hosts" srun "--job-name=conclave-$kind" "--ntasks=$tasks"
        --distribution=arbitrary --mem=0 --kill-on-bad-exit=1 --input=none)
    if [[ -n $cpus ]]; then
        launcher+=(--exact "--cpus-per-task=$cpus")
    else
        per_node=$(((tasks + ${#nodes[@]} - 1) / ${#nodes[@]}))
        cpus=$((node_cpus / per_node))
        launcher+=(--overlap --overcommit --cpu-bind=none "--cpus-per-task=$((cpus > 0 ? cpus : 1))")
    fi
    launcher+=("$SLURM_SCRIPTS/task.sh")
}

# The options that say where the cell is; every process and conclave-ctl read them.
write_cell() {
    local i urls=""
    for ((i = 0; i < routers; i++)); do
        urls+="${urls:+,}tcp://${addresses[$(node_of "$i" "$routers")]}:$((control_port + i))"
    done
    (umask 077 && head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >"$RUN_DIR/secret")
    printf '{"router-urls":"%s","cluster-secret-file":%s}\n' "$urls" "$(json_string "$RUN_DIR/secret")" \
        >"$RUN_DIR/cell.json"
    for ((i = 0; i < ${#nodes[@]}; i++)); do echo "${nodes[i]} ${addresses[i]}"; done >"$RUN_DIR/nodes"
}

start_all() {
    local log words common=("--run-dir=$RUN_DIR" "--model=$model" "--config=$RUN_DIR/cell.json")
    read_nodes
    for log in "$RUN_DIR"/*.log; do
        if [[ -f $log ]]; then mv -f "$log" "$log.1"; fi
    done
    write_fleet
    printf 'routers=%s\njob=%s\n' "$routers" "$SLURM_JOB_ID" >>"$RUN_DIR/fleet"
    write_cell
    export CONCLAVE_TASK_TRACE=$trace_dir
    mapfile -t words < <(printf '%s' "${passed[router]}")
    set_launcher router "$routers" "$router_cpus"
    start router-all "${common[@]}" "--routers=$routers" "--workers=$workers" "${words[@]}"
    mapfile -t words < <(printf '%s' "${passed[worker]}")
    set_launcher worker "$workers" "$worker_cpus"
    start worker-all "${common[@]}" "${words[@]}"
    mapfile -t words < <(printf '%s' "${passed[frontend]}")
    if [[ -n $api_key ]]; then export CONCLAVE_API_KEY=$api_key; fi
    set_launcher frontend 1 "${router_cpus:+1}"
    start frontend "${common[@]}" "--routers=$routers" "--host=$host" "--port=$port" "${words[@]}"
}

# A step is signalled through Slurm: srun itself would kill it.
signal_service() {
    local pid step
    pid=$(live_pid "$2") || return 0
    step=$(cat "$RUN_DIR/$2.step" 2>/dev/null) || step=""
    if [[ -z $step ]]; then
        kill "-$1" "$pid" 2>/dev/null || true
    elif [[ $1 == TERM ]]; then
        scancel --signal=TERM "$SLURM_JOB_ID.$step" 2>/dev/null || true
    else
        scancel "$SLURM_JOB_ID.$step" 2>/dev/null || true
    fi
}

# Shared memory lies on every node.
remove_leftovers() {
    local run_id
    run_id=$(ask_run_id)
    if [[ $run_id =~ ^[0-9a-f]{16}$ ]]; then
        timeout 20 srun --overlap --overcommit --mem=0 --input=none "--nodes=$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
            sh -c "rm -f /dev/shm/conclave-$run_id-*" >/dev/null 2>&1 || true
    fi
    find "$RUN_DIR" -maxdepth 1 \( -name '*.pid' -o -name '*.step' -o -name '*.hosts' \) -delete
    rm -f "$RUN_DIR"/{fleet,cell.json,secret,nodes}
}

report_dead() {
    local log
    say "the step of $1 ended; the last lines of its logs in $RUN_DIR:"
    for log in "$RUN_DIR/$1.log" "$RUN_DIR/${1%-all}"-[0-9]*.log; do
        [[ -s $log ]] || continue
        tail -n "$LAST_LINES" "$log" | sed "s/^/    $(basename "$log" .log): /" >&2
    done
}

# The frontend runs on the first node, and so does a batch script; a port that is taken ends its step.
frontend_listens() { live_pid frontend >/dev/null; }

ctl() { "$BIN/conclave-ctl" "--run-dir=$RUN_DIR" "--config=$RUN_DIR/cell.json" "$@" </dev/null; }

router_runs() { live_pid router-all >/dev/null; }

json_list() {
    local i count state sep=""
    count=$(fleet_get "${1}s")
    state=$(state_of "$1-all")
    printf '['
    for ((i = 0; i < ${count:-0}; i++)); do
        printf '%s{"id":%d,"pid":null,"state":"%s"}' "$sep" "$i" "$state"
        sep=,
    done
    printf ']'
}

command_scale() { die "scale: the number of a step's tasks is fixed; start another fleet"; }

# ---------------------------------------------------------------- the command line

main_slurm() {
    local command=${1:-} words=()
    (($#)) && shift
    control_port="" router_cpus="" worker_cpus=""
    case $command in help | --help | -h) usage && exit 0 ;; esac
    in_allocation
    : "${CONCLAVE_RUN_DIR:=conclave-$SLURM_JOB_ID}"
    if [[ $command == up ]]; then
        while (($#)); do
            case $1 in
            --control-port | --router-cpus | --worker-cpus)
                (($# > 1)) || die "$1 needs a value"
                set -- "$1=$2" "${@:3}"
                continue
                ;;
            --control-port=*) control_port=${1#*=} ;;
            --router-cpus=*) router_cpus=${1#*=} ;;
            --worker-cpus=*) worker_cpus=${1#*=} ;;
            *) words+=("$1") ;;
            esac
            shift
        done
        set -- "${words[@]}"
        : "${control_port:=$((20000 + SLURM_JOB_ID % 100 * 100))}"
        need_count control-port "$control_port" 1 65000
        [[ -z $router_cpus ]] || need_count router-cpus "$router_cpus" 1 4096
        [[ -z $worker_cpus ]] || need_count worker-cpus "$worker_cpus" 1 4096
        if [[ -n $router_cpus && -z $worker_cpus || -z $router_cpus && -n $worker_cpus ]]; then
            die "--router-cpus and --worker-cpus go together"
        fi
    fi
    main "$command" "$@"
}

main_slurm "$@"
