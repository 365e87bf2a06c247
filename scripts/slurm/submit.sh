#!/usr/bin/env bash
# Submit a run on a public trajectory to Slurm, and the report that follows it; prints both jobs' numbers.
#   bash scripts/slurm/submit.sh --array=0-7 [SBATCH OPTION …] -- scripts/t5_norm_growth.sh TRAJECTORY OUT [OPTION …]
#   bash scripts/slurm/submit.sh --nodes=4 [SBATCH OPTION …] -- scripts/t5_saturation.sh TRAJECTORY OUT [OPTION …]
# With --array the tasks share the work by --shard I/N; without, the tasks of one srun work together.
# A task that is preempted or killed queues itself again and computes what is missing. The report starts
# when all tasks have ended with 0, and is withdrawn if one fails; submitted again, only that one has work.
# Where no saturation is installed it makes .venv first, here: tasks would get in each other's way, and nodes
# that compute often have no network.
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
kind=distributed options=() shared=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
  --array=*) kind=array ;;
  --partition=* | --account=* | --qos=* | --reservation=* | --output=*) shared+=("$1") ;;
  esac
  options+=("$1")
  shift
done
[ $# -ge 4 ] || { sed -n '3,4s/^# *//p' "$0" >&2; exit 2; }
shift
. "$folder/../public_run.sh"
find_saturation >&2
job=$(sbatch --parsable "${options[@]}" "$folder/$kind.sbatch" "$@")
report=$(sbatch --parsable ${shared[@]+"${shared[@]}"} --dependency="afterok:${job%;*}" --kill-on-invalid-dep=yes \
  "$folder/report.sbatch" "$1" "$3")
echo "${job%;*} ${report%;*}"
