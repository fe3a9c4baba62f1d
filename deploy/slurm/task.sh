#!/usr/bin/env bash
# task.sh: one task of a step: runs a process under this task's id, and again when it dies.
#
# usage: task.sh BINARY --run-dir=DIR ARGS...        (by srun, from conclave.sh)
#
# Slurm starts no task again by itself.  A process that dies is started anew after a second, since the
# others wait for it; one that ends with status 0 was asked to, and with 2 has options that can't be.
# Whoever dies too often is given up, and ends the step.
set -euo pipefail

RESTARTS_MAX=5    # without living for HEALTHY_S in between
HEALTHY_S=60

binary=$1
shift
args=("$@")
run_dir=""
for word in "$@"; do
    case $word in --run-dir=*) run_dir=${word#*=} ;; esac
done
kind=${binary##*-}
id=${SLURM_PROCID:-0}
case $kind in
router)
    name=router-$id service=router-all
    args+=("--router-id=$id")
    ;;
worker)
    name=worker-$id service=worker-all
    args+=("--worker-id=$id")
    args+=("--control-host=$(awk -v node="$SLURMD_NODENAME" '$1 == node { print $2 }' "$run_dir/nodes")")
    ;;
*) name=frontend service=frontend ;;
esac
if [[ -n ${CONCLAVE_TASK_TRACE:-} && $kind != frontend ]]; then args+=("--trace=$CONCLAVE_TASK_TRACE/$name.json"); fi
if [[ $id == 0 ]]; then
    echo "$SLURM_STEP_ID" >"$run_dir/$service.step.part"
    mv -f "$run_dir/$service.step.part" "$run_dir/$service.step"
fi
exec >>"$run_dir/$name.log" 2>&1

child="" stopping=0
stop() {
    stopping=1
    if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap stop TERM INT

died=0
while :; do
    since=$SECONDS status=0
    "$binary" "${args[@]}" </dev/null &
    child=$!
    wait "$child" || status=$?
    # A trapped signal ends `wait` before the process has ended.
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
    done
    child=""
    if ((stopping || status == 0 || status == 2)); then exit $((stopping ? 0 : status)); fi
    if ((SECONDS - since > HEALTHY_S)); then died=0; fi
    died=$((died + 1))
    echo "task: $name on $SLURMD_NODENAME ended with status $status ($died of $RESTARTS_MAX)"
    if ((died >= RESTARTS_MAX)); then exit 1; fi
    sleep 1 &
    wait $! || true
    ((stopping)) && exit 0
done
