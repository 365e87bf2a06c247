#!/usr/bin/env bash
# From nothing to a figure: pretrains a tiny T5 on text that ships with Python, measures the norm of its
# parameters at every checkpoint, fits growth laws and draws them. About two minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment ""
.venv/bin/saturation run configs/quickstart.yaml "$@"
