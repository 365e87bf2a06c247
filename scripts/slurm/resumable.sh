# Sourced by the batch scripts here. resumable COMMAND … runs the command as a step of this job and ends the
# job as it ended, but for three endings, after which the job is queued again, to go on where it was:
#   75    SIGTERM asked it to stop: preemption, the time limit, scancel --signal=TERM
#   143   SIGTERM asked again before it had finished what it was at
#   137   it was killed outright (no memory left, a failing node): three times at most
. "${BASH_SOURCE[0]%/*}/../run_to_the_end.sh"

# srun would kill its tasks outright. Of an array's task, its place in the array: the number of the last one
# is the array's too, and stands for all of it.
ask_to_stop() {
  local array=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  scancel --signal=TERM "${array:-$SLURM_JOB_ID}" || true
}

resumable() {
  local status=0
  # srun does not take this over from sbatch.
  [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  run_to_the_end srun --kill-on-bad-exit=1 "$@" || status=$?
  case $status in
  75 | 143) ;;
  137) [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ] || exit "$status" ;;
  *) exit "$status" ;;
  esac
  echo "Ended with $status; this job is queued again, to compute what is missing."
  # Ends this script too. It fails where Slurm is queueing the job again already, which is as well.
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
  exit "$status"
}
