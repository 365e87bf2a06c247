#!/usr/bin/env bash
# Whether the package works with what others have installed: the lowest versions that setup.cfg allows, with which
# the tests of measures run in .venv-lowest, and Colab's pandas and NumPy beside a newer JAX, which an
# installation must leave as they are. About ten minutes; ARGS go to pytest.
#   bash scripts/test_lowest.sh [ARGS]
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv-lowest/bin/python
[ -x $python ] || "${PYTHON:-python3}" -m venv .venv-lowest
$python - >.venv-lowest/lowest.txt <<'PYTHON'
import configparser

setup = configparser.ConfigParser()
setup.read("setup.cfg", encoding="utf-8")
print(setup["options"]["install_requires"].replace(">=", "=="))
PYTHON
$python -m pip install --quiet --disable-pip-version-check --constraint .venv-lowest/lowest.txt --editable ".[test]"
# Old packages warn of new ones beside them, which is nothing of ours.
$python -m pytest -q -o filterwarnings=default -m "not slow and not cluster" "$@" \
  tests/test_measure.py tests/test_measure_contract.py tests/test_measure_golden.py tests/test_heads.py \
  tests/test_sharding.py tests/test_processes.py tests/test_run_activations.py tests/test_models_t5.py \
  tests/test_checkpoints_fixtures.py tests/test_cli.py

present=$(printf '%s\n' numpy==2.0.2 pandas==2.2.2 jax==0.10.0 jaxlib==0.10.0)
echo "$present" >.venv-lowest/present.txt
planned=$($python -m pip install --disable-pip-version-check --dry-run --ignore-installed \
  --constraint .venv-lowest/present.txt . | grep "^Would install")
for package in $present; do
  case "$planned " in
  *" ${package/==/-} "*) ;;
  *) echo "test_lowest.sh: an installation would replace $package: $planned" >&2; exit 1 ;;
  esac
done
echo "An installation leaves $(echo $present) as they are."
