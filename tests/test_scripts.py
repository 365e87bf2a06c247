"""The runs on public trajectories: what they call wherever they are started, and that they work."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_trajectory import write_trajectory

SCRIPTS = Path(__file__).parents[1] / "scripts"
GROWTH, SATURATION = SCRIPTS / "t5_norm_growth.sh", SCRIPTS / "t5_saturation.sh"

# Stands for the command: notes its arguments; told to stop, it finishes what it is at and exits 75.
STAND_IN = """#!{python}
import os, signal, sys, time
from pathlib import Path
here = Path(__file__).parent
with open(here / "calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
if sys.argv[1] == "report":
    figures = Path(sys.argv[sys.argv.index("--figures") + 1])
    figures.mkdir(parents=True)
    (figures / "summary.txt").write_text("how it grew")
if (here / "slow").exists():
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(75)))
    (here / "ready").touch()
    time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    command = tmp_path / "bin" / "saturation"
    command.parent.mkdir()
    command.write_text(STAND_IN.format(python=sys.executable))
    command.chmod(0o755)
    return command


def environment(command: Path, **more: str) -> dict[str, str]:
    """Where the command is found first, outside of any batch job but that which `more` makes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {**kept, "PATH": f"{command.parent}:{kept['PATH']}", **more}


def run(script: Path, *arguments: object, command: Path, cwd: Path, **more: str):
    return subprocess.run(
        ["bash", script, *map(str, arguments)],
        env=environment(command, **more),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def calls(command: Path) -> list[str]:
    return (command.parent / "calls").read_text().splitlines()


def test_alone_it_measures_and_reports(stand_in: Path, tmp_path: Path) -> None:
    done = run(GROWTH, "pile-t5-base", "o ut", "--steps", "0:9", command=stand_in, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert calls(stand_in) == [
        "measure pile-t5-base --measures norms,direction --out o ut/run --steps 0:9",
        "report o ut/run --figures o ut/figures --out o ut/report.html",
    ]
    assert done.stdout == "how it grew"


def test_figures_of_a_run_in_a_bucket_come_here(stand_in: Path, tmp_path: Path) -> None:
    done = run(SATURATION, "--report", "gs://bucket/mine/", command=stand_in, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = (
        "report gs://bucket/mine/run --figures reports/mine/figures --out reports/mine/report.html"
    )
    assert calls(stand_in) == [expected]


ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "3"}


@pytest.mark.parametrize(
    ("surroundings", "share"),
    [
        (ARRAY | {"SLURM_ARRAY_TASK_STEP": "2"}, "--shard 2/3"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "--distributed"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "--distributed"),
        (ARRAY | {"SLURM_ARRAY_TASK_STEP": "2", "SLURM_STEP_NUM_TASKS": "1"}, "--shard 2/3"),
    ],
)
def test_a_task_takes_its_share_and_leaves_the_report(stand_in, tmp_path, surroundings, share):
    done = run(SATURATION, "t", "o", "--fast", command=stand_in, cwd=tmp_path, **surroundings)
    assert done.returncode == 0, done.stderr
    assert calls(stand_in) == [f"measure t --measures saturation,heads --out o/run {share} --fast"]


@pytest.mark.parametrize("surroundings", [{}, ARRAY], ids=["alone", "task"])
def test_sigterm_reaches_the_measurement_and_its_75_the_caller(stand_in, tmp_path, surroundings):
    (stand_in.parent / "slow").touch()
    script = subprocess.Popen(
        ["bash", GROWTH, "t", "o"], env=environment(stand_in, **surroundings), cwd=tmp_path
    )
    while not (stand_in.parent / "ready").exists():
        assert script.poll() is None
        time.sleep(0.01)
    script.send_signal(signal.SIGTERM)
    assert script.wait(60) == 75
    assert len(calls(stand_in)) == 1, "nothing is reported of what was stopped"


def test_ctrl_c_leaves_nothing_behind(stand_in: Path, tmp_path: Path) -> None:
    """A terminal signals both, and what bash starts in the background ignores SIGINT at first."""
    (stand_in.parent / "slow").touch()
    script = subprocess.Popen(
        ["bash", GROWTH, "t", "o"], env=environment(stand_in), cwd=tmp_path, start_new_session=True
    )
    while not (stand_in.parent / "ready").exists():
        assert script.poll() is None
        time.sleep(0.01)
    os.killpg(script.pid, signal.SIGINT)
    assert script.wait(60) == 75
    with pytest.raises(ProcessLookupError):
        os.killpg(script.pid, 0)
    assert len(calls(stand_in)) == 1


@pytest.mark.parametrize("shard", [["--shard", "1/2"], ["--shard=1/2"]], ids=["apart", "joined"])
def test_a_share_that_is_asked_for_by_hand_is_not_reported(stand_in, tmp_path, shard):
    done = run(GROWTH, "t", "o", *shard, command=stand_in, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in calls(stand_in)] == ["measure"]


# Stands for a Python without this package: makes .venv with a copy of itself, installs by a touch.
PYTHON = """#!/usr/bin/env bash
echo "python $*" >> "$LOG"
case "$*" in
*venv*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
*pip*) touch .venv/bin/saturation && chmod +x .venv/bin/saturation ;;
esac
"""
SBATCH = """#!/usr/bin/env bash
echo "sbatch" >> "$LOG"
echo 7
"""


def test_what_is_submitted_finds_an_environment_that_is_made_once(tmp_path: Path) -> None:
    repository, programs, log = tmp_path / "copy", tmp_path / "bin", tmp_path / "log"
    shutil.copytree(SCRIPTS, repository / "scripts")
    for name in ("setup.cfg", "pyproject.toml"):
        (repository / name).touch()
    programs.mkdir()
    for name, text in {"python3": PYTHON, "sbatch": SBATCH}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    arguments = ["--array=0-7", "--", "scripts/t5_norm_growth.sh", "t", "o"]
    done = subprocess.run(
        ["bash", "scripts/slurm/submit.sh", *arguments],
        env={"PATH": f"{programs}:/usr/bin:/bin", "LOG": str(log)},
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "7 7\n", "what else is said goes to stderr"
    called = [line.split()[0] for line in log.read_text().splitlines()]
    assert called[-2:] == ["sbatch", "sbatch"]
    assert (repository / ".venv" / "bin" / "saturation").exists()


# Stands for gcloud: copies into, out of, and runs in the folders of two workers, one by one.
GCLOUD = """#!/usr/bin/env bash
set -euo pipefail
cd "{workers}"
echo "$@" >> calls
[ "$1 $2 $3 $5 $6" = "compute tpus tpu-vm --zone eu-4" ] && verb=$4 && shift 6
case "$*" in *--worker=0*) workers=0 ;; *) workers="0 1" ;; esac
for worker in $workers; do
  mkdir -p $worker
  if [ $verb = ssh ]; then
    (cd $worker && bash -c "${{@: -1}}")
  elif [[ $* == *pod:saturation/* ]]; then
    path=${{*: -2:1}} && cp -r "$worker/${{path#pod:}}" "$OLDPWD/${{*: -1}}"
  else
    cp "${{*: -2:1}}" $worker/
  fi
done
"""


def test_all_workers_of_a_pod_measure_and_one_reports(stand_in: Path, tmp_path: Path) -> None:
    workers = tmp_path / "workers"
    workers.mkdir()
    gcloud = stand_in.with_name("gcloud")
    gcloud.write_text(GCLOUD.format(workers=workers))
    gcloud.chmod(0o755)
    script = SCRIPTS / "tpu_vm.sh"
    arguments = ("pod", "eu-4", GROWTH, "gs://a/it's here", "gs://b/o", "--steps", "0:9")
    done = run(script, *arguments, command=stand_in, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    measured = (
        "measure gs://a/it's here --measures norms,direction --out gs://b/o/run --distributed"
    )
    assert calls(stand_in) == [
        f"{measured} --steps 0:9",
        f"{measured} --steps 0:9",
        "report gs://b/o/run --figures reports/o/figures --out reports/o/report.html",
    ]
    assert (tmp_path / "reports" / "o" / "figures" / "summary.txt").read_text() == "how it grew"
    for worker in "01":
        copy = workers / worker / "saturation" / "scripts" / "t5_norm_growth.sh"
        assert copy.read_bytes() == GROWTH.read_bytes()
    verbs = {call.split()[3] for call in (workers / "calls").read_text().splitlines()}
    assert verbs == {"scp", "ssh"}, "nothing is created or deleted"


def test_a_pod_must_write_to_a_bucket(stand_in: Path, tmp_path: Path) -> None:
    arguments = ("pod", "eu-4", GROWTH, "gs://a/t", "out")
    done = run(SCRIPTS / "tpu_vm.sh", *arguments, command=stand_in, cwd=tmp_path)
    assert done.returncode == 2
    assert "OUT must be a URL such as gs://BUCKET/OUT" in done.stderr


@pytest.mark.parametrize("script", [GROWTH, SATURATION], ids=lambda script: script.name)
def test_wrong_usage_says_the_right_one(script: Path, stand_in: Path, tmp_path: Path) -> None:
    done = run(script, "t", command=stand_in, cwd=tmp_path)
    assert done.returncode == 2
    assert f"bash scripts/{script.name} TRAJECTORY OUT [OPTION …]" in done.stderr
    assert done.stderr.rstrip().endswith("(docs/clusters.md).")


@pytest.mark.parametrize("script", sorted(SCRIPTS.rglob("*.s[bh]*")), ids=lambda path: path.name)
def test_every_script_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


COMMAND = Path(sys.executable).with_name("saturation")


def test_norm_growth_for_real(tmp_path: Path) -> None:
    write_trajectory(tmp_path / "t", (0, 10, 20, 40, 80))
    done = run(GROWTH, "t", "o", command=COMMAND, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the Euclidean norm ‖θ‖₂ of all encoder and decoder layers" in done.stdout
    assert (tmp_path / "o" / "report.html").stat().st_size > 1000
    assert (tmp_path / "o" / "figures" / "growth.png").exists()


@pytest.mark.slow
def test_saturation_through_training_for_real(tmp_path: Path) -> None:
    write_trajectory(tmp_path / "t", (0, 10))
    (tmp_path / "tokens.jsonl").write_text("[3, 1, 4, 1, 5]\n[9, 2, 6]\n")
    done = run(SATURATION, "t", "o", "--tokens", "tokens.jsonl", command=COMMAND, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o" / "report.html").stat().st_size > 1000
    assert "cosine_parameter_limit" in done.stdout
