# Sourced by the runs on public trajectories: measures one, and then draws, wherever it is started.
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$repository/scripts/run_to_the_end.sh"

# Sets `saturation` to the command: $SATURATION where it is set, or what is installed already (a container,
# a cluster's environment, Colab, whose own JAX must stay), or else that of .venv here, which it makes with
# the extras of $SATURATION_EXTRAS, such as [cuda].
find_saturation() {
  saturation=${SATURATION:-$(command -v saturation || true)}
  if [ -z "$saturation" ]; then
    (cd "$repository" && . scripts/environment.sh && make_environment "${SATURATION_EXTRAS:-}")
    saturation=$repository/.venv/bin/saturation
  fi
}

# Sets the array `share` to the options by which a task of a batch system takes its share of the work.
find_share() {
  share=()
  if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    local index=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / ${SLURM_ARRAY_TASK_STEP:-1}))
    share=(--shard "$index/$SLURM_ARRAY_TASK_COUNT")
  fi
  if [ "${SLURM_STEP_NUM_TASKS:-1}" -gt 1 ] || [ "${OMPI_COMM_WORLD_SIZE:-1}" -gt 1 ]; then
    share+=(--distributed)
  fi
}

# Where figures go: beside the run, or here where that is a bucket.
report_folder() {
  case $1 in
  *://*) echo "reports/${1##*/}" ;;
  *) echo "$1" ;;
  esac
}

# measure_and_report MEASURES TRAJECTORY OUT [OPTION …], or MEASURES --report OUT
#
# A task with a share of the work leaves the figures to a last job, which is started with --report.
measure_and_report() {
  local measures=$1 trajectory=$2 out=${3%/}
  shift 3
  find_saturation
  if [ "$trajectory" != --report ]; then
    find_share
    local command=("$saturation" measure "$trajectory" --measures "$measures" --out "$out/run" ${share[@]+"${share[@]}"} "$@")
    case " ${command[*]} " in
    *" --shard"[\ =]* | *" --distributed "*) exec "${command[@]}" ;;
    esac
    run_to_the_end "${command[@]}"
  fi
  local reports
  reports=$(report_folder "$out")
  "$saturation" report "$out/run" --figures "$reports/figures" --out "$reports/report.html"
  cat "$reports/figures/summary.txt"
}
