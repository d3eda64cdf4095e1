#!/usr/bin/env bash
# A run on a TPU pod slice (Google Cloud), with the same command on every worker.
#
#   launch/tpu_pod.sh create             the slice (queued until there is capacity)
#   launch/tpu_pod.sh setup              copies this checkout to all workers and installs it there
#   launch/tpu_pod.sh run ARGS...        python -m har_jax.train ARGS on all workers, detached
#   launch/tpu_pod.sh logs               follows the log of worker 0
#   launch/tpu_pod.sh delete
#
# Settings: TPU_NAME, TPU_ZONE, TPU_PROJECT (needed), TPU_TYPE (v5litepod-16), TPU_VERSION
# (v2-alpha-tpuv5-lite). Put --workdir and the data on a disk that every worker mounts: all must
# see the same files. --dry_run as the first argument prints the commands instead.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false
if [[ "${1:-}" == "--dry_run" ]]; then
  dry_run=true
  shift
fi
action="${1:-help}"
[[ $# -gt 0 ]] && shift
if [[ "$action" == "help" || "$action" == "--help" ]]; then
  sed -n '2,13s/^# \{0,1\}//p' "$0"
  exit 0
fi
for name in TPU_NAME TPU_ZONE TPU_PROJECT; do
  if [[ -z "${!name:-}" ]]; then
    echo "error: $name is not set; export $name=... first (launch/tpu_pod.sh --help)" >&2
    exit 2
  fi
done
where=(--zone="$TPU_ZONE" --project="$TPU_PROJECT")
tpu=(gcloud compute tpus tpu-vm)

do_or_print() {
  if $dry_run; then printf '%q ' "$@"; echo; else "$@"; fi
}
# All workers, always: a command on one of them alone would wait for the others for ever.
on_all() { do_or_print "${tpu[@]}" ssh "$TPU_NAME" "${where[@]}" --worker=all --command="$1"; }

case "$action" in
  create)
    do_or_print "${tpu[@]}" create "$TPU_NAME" "${where[@]}" \
      --accelerator-type="${TPU_TYPE:-v5litepod-16}" \
      --version="${TPU_VERSION:-v2-alpha-tpuv5-lite}"
    ;;
  setup)
    archive="$(mktemp -d)/har_jax.tar.gz"
    do_or_print git archive --format=tar.gz --prefix=har_jax/ --output="$archive" HEAD
    do_or_print "${tpu[@]}" scp "$archive" "$TPU_NAME:" "${where[@]}" --worker=all
    on_all "tar xzf har_jax.tar.gz && cd har_jax && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
    ;;
  run)
    if [[ $# -eq 0 ]]; then
      echo "error: run needs the arguments of har_jax.train, such as --config=... --workdir=..." >&2
      exit 2
    fi
    arguments="$(printf '%q ' "$@")"
    on_all "cd har_jax && HAR_DISTRIBUTED=1 nohup .venv/bin/python -m har_jax.train $arguments > train.log 2>&1 < /dev/null &"
    ;;
  logs)
    do_or_print "${tpu[@]}" ssh "$TPU_NAME" "${where[@]}" --worker=0 --command="tail -F har_jax/train.log"
    ;;
  delete)
    do_or_print "${tpu[@]}" delete "$TPU_NAME" "${where[@]}" --quiet
    ;;
  *)
    echo "error: unknown action '$action'; one of create, setup, run, logs, delete" >&2
    exit 2
    ;;
esac
