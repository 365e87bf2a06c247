#!/usr/bin/env bash
# How saturated a T5's attention is through pretraining, and what its heads attend to (Merrill et al. 2021):
# every layer against its attention limit and its parameter limit, on tokens.
#   bash scripts/t5_saturation.sh TRAJECTORY OUT [OPTION …]       OPTIONs go to `saturation measure`
#   bash scripts/t5_saturation.sh --report OUT                    figures of what is measured
# TRAJECTORY is a folder, a URL, or the name of a public one (docs/places.md), such as pile-t5-base; OUT a
# folder or a URL. The model's vocabulary is looked for beside its checkpoints, or given with --vocabulary FILE
# (docs/tokens.md); --tokens FILE gives the text. A run that was stopped goes on when the same command is given again.
# It runs unchanged on a laptop, in Colab, on a TPU VM and inside a Slurm job, where task I of an array of N
# takes every Nth step and the tasks of one srun work together (docs/clusters.md).
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,10s/^# //p' "$0" >&2; exit 2; }
. "$(dirname "$0")/public_run.sh"
measure_and_report saturation,heads "$@"
