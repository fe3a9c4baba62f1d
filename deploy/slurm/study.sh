#!/usr/bin/env bash
#SBATCH --job-name=conclave-study
#SBATCH --signal=B:TERM@60
# The parallelism study (docs/study.md) with each cell's fleet spread over the nodes of a job:
#
#   sbatch --nodes=4 --exclusive deploy/slurm/study.sh --model /shared/small --out /shared/study
#
# Options: deploy/study.sh --help.  The same command again goes on where a job ended.
set -euo pipefail

command=$(scontrol show job -o "${SLURM_JOB_ID:?submit this with sbatch}" | sed -n 's/.* Command=\([^ ]*\).*/\1/p')
here=${CONCLAVE_ROOT:+$CONCLAVE_ROOT/deploy/slurm}
here=${here:-$(dirname "$command")}
export CONCLAVE_FLEET=$here/conclave.sh
export CONCLAVE_STUDY_TMP=${CONCLAVE_STUDY_TMP:-$PWD} # run directories: a folder that all nodes share
exec bash "$here/../study.sh" "$@"
