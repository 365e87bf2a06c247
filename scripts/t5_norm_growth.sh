#!/usr/bin/env bash
# How a T5's parameters grow through pretraining (Merrill et al. 2021): norms, directions,
# growth laws and figures of a trajectory of checkpoints.
#   bash scripts/t5_norm_growth.sh TRAJECTORY OUT [OPTION …]      OPTIONs go to `saturation measure`
#   bash scripts/t5_norm_growth.sh --report OUT                   figures and laws of what is measured
# TRAJECTORY is a folder, a URL, or the name of a public one (docs/places.md), such as pile-t5-base; OUT a
# folder or a URL. A run that was stopped goes on when the same command is given again.
# It runs unchanged on a laptop, in Colab, on a TPU VM and inside a Slurm job, where task I of an array of N
# takes shard I/N and the tasks of one srun work together (docs/clusters.md).
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,9s/^# //p' "$0" >&2; exit 2; }
. "$(dirname "$0")/public_run.sh"
measure_and_report norms,direction "$@"
