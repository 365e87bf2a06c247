# Sourced by the other scripts. run_to_the_end COMMAND … passes SIGTERM on to the command, waits until it has
# finished what it does then, and returns its status: 75 says that the same command resumes where it stopped.
# Ctrl-C is passed on as SIGTERM: what bash starts in the background ignores SIGINT until it sets a handler.
# ask_to_stop PID is how it is passed on; slurm/resumable.sh has another.
ask_to_stop() {
  kill -TERM "$1" 2>/dev/null || true
}

run_to_the_end() {
  local child status signalled
  "$@" &
  child=$!
  trap 'signalled=yes; ask_to_stop "$child"' TERM INT
  while true; do
    signalled= status=0
    wait "$child" || status=$?
    [ -n "$signalled" ] || break # else it was the signal that ended the wait, not the command
  done
  trap - TERM INT
  return "$status"
}
