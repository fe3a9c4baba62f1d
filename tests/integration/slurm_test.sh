#!/usr/bin/env bash
# deploy/slurm: a fleet over three nodes of a Slurm that this test starts for itself, all on this
# machine; what dies comes back, and a cancelled job leaves nothing.  Exit status 77: skipped, because
# Slurm is not installed or can't be started.
#
# usage: slurm_test.sh REPOSITORY BIN_DIR
set -euo pipefail

ROOT=$1
export CONCLAVE_BIN_DIR=$2 CONCLAVE_ROOT=$1
slurm=$ROOT/deploy/slurm
model=$ROOT/models/demo
unset CONCLAVE_MODEL CONCLAVE_RUN_DIR CONCLAVE_PORT CONCLAVE_HOST CONCLAVE_WORKERS CONCLAVE_ROUTERS CONCLAVE_API_KEY
unset SLURM_JOB_ID SLURM_CONF

skip() {
    echo "skipped: $*"
    exit 77
}

for program in munged slurmctld slurmd sbatch srun scontrol; do
    PATH=$PATH:/usr/sbin command -v "$program" >/dev/null ||
        skip "$program is not here (Debian: slurm-wlm and munge)"
done
export PATH=$PATH:/usr/sbin

work=$(mktemp -d /tmp/conclave-test-XXXXXX)
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

finish() {
    local file
    if [[ -n ${SLURM_CONF:-} ]]; then
        scancel --full --me 2>/dev/null || true
        wait_for 20 no_jobs || true
        for file in "$work"/slurm/*.pid; do
            [[ -s $file ]] && kill "$(cat "$file")" 2>/dev/null
        done
    fi
    rm -rf "$work"
}
trap finish EXIT

no_jobs() { [[ -z $(squeue -h) ]]; }
holds() { grep -qF -- "$1" "$2" 2>/dev/null; }

# ---------------------------------------------------------------- a Slurm of our own

port_base=$((20000 + RANDOM % 11000))
start_slurm() {
    local dir=$work/slurm host user node
    host=$(hostname -s) user=$(id -un)
    mkdir -p "$dir"/{state,spool}
    chmod 755 "$work" "$dir" # munged wants its socket's folder open
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
    cat >"$dir/slurm.conf" <<TEXT
ClusterName=conclave
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port_base
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=20
SlurmdParameters=config_overrides
NodeName=n[1-3] NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port_base + 1))-$((port_base + 3)) CPUs=4
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
TEXT
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munge.pid" \
        --log-file="$dir/munge.log" --seed-file="$dir/munge.seed" --num-threads=2 || return 1
    export SLURM_CONF=$dir/slurm.conf
    slurmctld -i -c || return 1
    for node in n1 n2 n3; do
        mkdir -p "$dir/spool/$node"
        slurmd -N "$node" || return 1
    done
    wait_for 20 three_idle
}
three_idle() { [[ $(sinfo -h -t idle -o %D) == 3 ]]; }

start_slurm >"$work/slurm.out" 2>&1 ||
    skip "Slurm does not start here: $(tail -qn 1 "$work/slurm.out" "$work"/slurm/*.log 2>/dev/null | tail -n 2 | tr '\n' ' ')"

# ---------------------------------------------------------------- fleets

port=$((port_base + 5))
answer() {
    curl --silent --noproxy '*' --max-time 60 -H 'Content-Type: application/json' \
        -d '{"prompt":"In the beginning","max_tokens":24,"temperature":0}' "http://127.0.0.1:$port/v1/completions" |
        sed -n 's/.*"text":\(.*\),"logprobs".*/\1/p'
}

# submit NAME SCRIPT ARGS...: sets job; its output goes to NAME.
submit() {
    local name=$1
    shift
    job=$(cd "$work" && sbatch --parsable --exclusive --output="$work/$name" "$@" --control-port "$((port_base + 10))") ||
        fail "sbatch refused $*"
    run_dir=$work/conclave-$job
}

try 2 "no Slurm allocation" "$slurm/conclave.sh" up --model "$model"
try 0 "--control-port" "$slurm/conclave.sh" --help

# What one host answers is what a cluster must.
try 0 "serving" "$ROOT/deploy/conclave" up --run-dir "$work/one" --model "$model" --port "$port"
want=$(answer)
[[ -n $want ]] || fail "no answer of a fleet on one host"
try 0 "stopped" "$ROOT/deploy/conclave" down --run-dir "$work/one"

# --- a step of each kind, on all nodes; rows go over TCP, though this is one machine
submit serve --nodes=3 "$slurm/serve.sh" --model "$model" --workers 4 --routers 2 --port "$port" --exchange nng
wait_for 60 holds serving "$work/serve" || fail "the fleet does not serve: $(cat "$work/serve" "$run_dir"/*.log)"
[[ $(answer) == "$want" ]] || fail "another answer than that of one host: $(answer), not $want"
steps=$(squeue -h -s -j "$job" -o '%N %j' | sort | tr '\n' ';')
for step in 'n[1-2] conclave-router' 'n[1-3] conclave-worker' 'n1 conclave-frontend'; do
    [[ $steps == *"$step"* ]] || fail "no step \"$step\" in $steps"
done
on_first() { srun --overlap --overcommit --mem=0 --jobid="$job" --nodelist=n1 --nodes=1 --ntasks=1 "$slurm/conclave.sh" "$@" --run-dir "$run_dir"; }
try 0 "ready; epoch" on_first status
try 0 '"state":"ready"' on_first status --json
try 2 "already up" on_first up --model "$model"
[[ $(stat -c %a "$run_dir/secret") == 600 ]] || fail "the secret is open to others"

# --- what dies comes back
process_of() { pgrep -f -- "^$CONCLAVE_BIN_DIR/conclave-$1 --run-dir=$run_dir .*--$1-id=$2( |\$)"; }
for victim in "worker 3" "router 0"; do
    read -r kind id <<<"$victim"
    pid=$(process_of "$kind" "$id")
    kill -KILL "$pid"
    wait_for 20 holds "ended with status 137" "$run_dir/$kind-$id.log" || fail "nobody saw $kind $id die"
    [[ $(answer) == "$want" ]] || fail "another answer after $kind $id died"
    wait_for 20 process_of "$kind" "$id" || fail "$kind $id was not started again"
done

# --- cancelled: everything ends, and nothing is left
scancel "$job"
wait_for 40 no_jobs || fail "the job did not end"
left=$(find "$run_dir" -mindepth 1 ! -name '*.log' ! -name '*.log.1' ! -name lock)
[[ -z $left ]] || fail "left in the run directory: $left"
run_id=$("$CONCLAVE_BIN_DIR/conclave-router" --run-dir "$run_dir" --print-run-id)
left=$(find /dev/shm -maxdepth 1 -name "conclave-$run_id-*")
[[ -z $left ]] || fail "left in /dev/shm: $left"
left=$(grep -lzxF -- "--run-dir=$run_dir" /proc/[0-9]*/cmdline 2>/dev/null || true)
[[ -z $left ]] || fail "processes left: $left"

# --- options that can't be end the job, and its output says why
submit refused --nodes=2 "$slurm/serve.sh" --model "$model" --port "$port" --dtype int3
wait_for 60 no_jobs || fail "a job with bad options goes on"
holds "--dtype" "$work/refused" || fail "the job does not say what is wrong: $(cat "$work/refused")"
left=$(grep -lzxF -- "--run-dir=$run_dir" /proc/[0-9]*/cmdline 2>/dev/null || true)
[[ -z $left ]] || fail "processes left: $left"

# --- the study runs on it
job=$(cd "$work" && sbatch --parsable --exclusive --nodes=2 --output="$work/study" "$slurm/study.sh" --quick --repeats 1 \
    --model "$model" --out "$work/results" --cells 'EP4.*\[8_8192\]')
wait_for 90 no_jobs || fail "the study does not end: $(cat "$work/study")"
holds "report.html" "$work/study" || fail "the study failed: $(cat "$work/study")"
cell="$work/results/demo-conclaveEP4-cpu[8_8192]-conclave"
for file in results_json/r1.json traces/summary.json logs/r1-worker-3.log; do
    [[ -s $cell/$file ]] || fail "no $file of the study"
done

if ((failures)); then
    echo "$failures checks failed"
    exit 1
fi
echo "slurm: all checks passed"
