# Sourced by the other scripts: makes .venv with this package in it, once, and again when setup.cfg changes.
# Usage: make_environment EXTRAS     (EXTRAS such as "" or "[dev]")

make_environment() {
  local extras=$1 stamp=".venv/installed${1//[^a-z]/-}" python=${PYTHON:-}
  if [ -z "$python" ]; then
    for python in python3 python3.13 python3.12 python3.11; do
      "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
      python=
    done
  fi
  if [ -z "$python" ]; then
    echo "saturation needs Python 3.11 or newer; none was found. Set PYTHON to one." >&2
    return 1
  fi
  if [ ! -x .venv/bin/python ]; then
    echo "Making .venv with $("$python" --version) …"
    "$python" -m venv .venv
  fi
  if [ ! "$stamp" -nt setup.cfg ] || [ ! "$stamp" -nt pyproject.toml ]; then
    echo "Installing saturation$extras and what it needs into .venv (a minute or two) …"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extras"
    # The extra `gzip` is speed alone, and not there for every platform.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[gzip]" 2>/dev/null ||
      echo "Without deflate, T5X checkpoints are unpacked at two thirds of the speed."
    touch "$stamp"
  fi
}
