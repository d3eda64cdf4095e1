#!/usr/bin/env bash
# Trains on this machine: launch/local.sh --config=configs/mle.py:tiny --workdir=runs/mle
# DEVICES=8 forces that many virtual CPU devices, to try a mesh without an accelerator.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ "${1:-}" == "--help" || $# -eq 0 ]]; then
  sed -n '2,3s/^# //p' "$0"
  exec "${PYTHON:-python}" -m har_jax.train --help
fi
if [[ -n "${DEVICES:-}" ]]; then
  # NPROC sizes XLA's thread pool: with more virtual devices than cores a reward callback could
  # otherwise wait for a collective for ever.
  export XLA_FLAGS="--xla_force_host_platform_device_count=${DEVICES} ${XLA_FLAGS:-}"
  export JAX_PLATFORMS=cpu NPROC="${NPROC:-32}"
fi
command=("${PYTHON:-python}" -m har_jax.train)
if [[ "$1" == "--dry_run" ]]; then
  shift
  echo "${command[*]} $*"
  exit 0
fi
exec "${command[@]}" "$@"
