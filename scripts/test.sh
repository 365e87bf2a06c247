#!/usr/bin/env bash
# Every check there is: format, lint, types, tests. CI runs this same file.
#   bash scripts/test.sh            all but the tests marked slow
#   bash scripts/test.sh --slow     those as well (exhaustive runs; about half an hour)
#   bash scripts/test.sh --cluster  batch jobs on a real Slurm and nothing else (see docs/clusters.md)
#   bash scripts/test.sh ARGS       ARGS go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment "[dev]"
if [ "${1:-}" = --cluster ]; then
  exec .venv/bin/pytest -m cluster tests/cluster "${@:2}"
fi
marked=(-m "not slow and not cluster")
if [ "${1:-}" = --slow ]; then
  marked=(-m "not cluster")
  shift
fi
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/basedpyright
.venv/bin/pytest -n 2 --dist loadfile "${marked[@]}" "$@"
