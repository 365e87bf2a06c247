#!/usr/bin/env bash
# A run on a public trajectory on a TPU VM or pod slice that exists, by all of its workers together.
#   bash scripts/tpu_vm.sh NAME ZONE scripts/t5_saturation.sh TRAJECTORY gs://BUCKET/OUT [OPTION …]
# Needs gcloud, signed in, and Python 3.11 or newer on the workers. It copies this repository to ~/saturation of
# every worker, where the run makes .venv with JAX for TPUs, starts the run on all (jax.distributed), and brings
# the figures here, to reports/. Nothing is created in the cloud and nothing deleted. OUT must be a bucket: the
# workers share no disk. After the slice was preempted and is back, the same command computes what is missing.
set -euo pipefail
[ $# -ge 5 ] || { sed -n '3s/^# *//p' "$0" >&2; exit 2; }
name=$1 zone=$2 script=scripts/$(basename "$3") trajectory=$4 out=${5%/}
shift 5
case $out in
*://*) ;;
*) echo "tpu_vm.sh: OUT must be a URL such as gs://BUCKET/OUT, since workers share no disk; found $out." >&2; exit 2 ;;
esac
repository=$(cd "$(dirname "$0")/.." && pwd)
tpu() {
  local verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" --zone "$zone" "$@"
}
remotely() { # WORKER COMMAND …, in the copy of the repository
  local worker=$1
  shift
  tpu ssh "$name" --worker="$worker" --command "cd saturation && SATURATION_EXTRAS='[tpu,gcs]' $(printf '%q ' "$@")"
}

packed=$(mktemp -d)
trap 'rm -r "$packed"' EXIT
(cd "$repository" && git ls-files -z | tar --create --gzip --null --files-from=- --file="$packed/saturation.tar.gz")
tpu scp --worker=all "$packed/saturation.tar.gz" "$name:"
tpu ssh "$name" --worker=all --command "mkdir -p saturation && tar --extract --gzip --file=saturation.tar.gz --directory=saturation"
remotely all bash "$script" "$trajectory" "$out" --distributed "$@"
remotely 0 bash "$script" --report "$out"
mkdir -p reports
tpu scp --recurse --worker=0 "$name:saturation/reports/${out##*/}" reports/
echo "Figures and page: reports/${out##*/}"
