#!/usr/bin/env bash
#SBATCH --job-name=har_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
# One process per GPU under Slurm; jax.distributed finds its peers from Slurm's own variables.
#   sbatch --nodes=2 launch/gpu_slurm.sh --config=configs/mle.py:coco --workdir=runs/mle
# Two minutes before the time limit Slurm sends SIGTERM: the run saves, exits with 143, is requeued
# and continues from there.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

dry_run=false
if [[ "${1:-}" == "--dry_run" ]]; then
  dry_run=true
  shift
fi
if [[ $# -eq 0 || "${1:-}" == "--help" ]]; then
  sed -n '9,12s/^# //p' "$0"
  exit 0
fi
export HAR_DISTRIBUTED=1
command=(srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m har_jax.train "$@")
if $dry_run; then
  echo "HAR_DISTRIBUTED=1 ${command[*]}"
  exit 0
fi
if [[ -z "${SLURM_JOB_ID:-}" ]]; then
  echo "error: this script runs inside a Slurm job; submit it: sbatch launch/gpu_slurm.sh ..." >&2
  exit 2
fi
code=0
"${command[@]}" || code=$?
if [[ $code -eq 143 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
