#!/usr/bin/env bash
#SBATCH --job-name=conclave
#SBATCH --signal=B:TERM@60
# Serves a model on the nodes of a job until the job ends:
#
#   sbatch --nodes=3 --exclusive deploy/slurm/serve.sh --model /shared/Mixtral-8x7B --workers 6 --routers 2
#
# Options: deploy/slurm/conclave.sh --help.  See deploy/slurm/README.md.
set -euo pipefail

# Slurm runs a copy of this file: where the project is, the job knows.
command=$(scontrol show job -o "${SLURM_JOB_ID:?submit this with sbatch}" | sed -n 's/.* Command=\([^ ]*\).*/\1/p')
here=${CONCLAVE_ROOT:+$CONCLAVE_ROOT/deploy/slurm}
exec "${here:-$(dirname "$command")}/conclave.sh" up --foreground "$@"
