"""The same from Python: submitit's array, of which a task is preempted, and the report behind."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import saturation

pytestmark = pytest.mark.cluster
SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm" / "submit.py"


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs the extra cluster")
def test_a_task_that_submitit_is_told_to_stop_is_queued_again(slurm, t5_base, expected, tmp_path):
    out, logs = tmp_path / "out", tmp_path / "logs"
    arguments = [t5_base, out, "--tasks", 2, "--logs", logs, "--set", "mem_gb=1"]
    *tasks, report = slurm.run(sys.executable, SCRIPT, *arguments).split()
    slurm.submitted.extend((tasks[0].split("_")[0], report))

    def running() -> str | None:
        return next((task for task in tasks if "JobEnvironment" in _log(logs, task)), None)

    slurm.wait(lambda: (out / "run").exists() and running() is not None, "a task that measures")
    first = running()
    number = re.search(r"JobId=(\d+)", slurm.run("scontrol", "show", "job", first))[1]
    # scancel sends it until it is told that it came; by then the task may be queued again.
    command = ["scancel", "--signal=USR2", f"{number}.0"]
    subprocess.run(command, env=slurm.environment, capture_output=True, check=False)
    slurm.wait_for_end(*slurm.submitted)

    assert "Requeued job" in _log(logs, first)
    pd.testing.assert_frame_equal(saturation.load_results(out / "run"), expected)
    assert (out / "report.html").exists()


def _log(logs: Path, task: str) -> str:
    return "".join(path.read_text() for path in logs.glob(f"{task}*_log.*"))
