"""Batch jobs on a real Slurm: whatever happens to tasks, a run ends in the table of one process.

Issue 5's acceptance 4. About six minutes on two cores.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest

import saturation

pytestmark = pytest.mark.cluster
SCRIPTS = Path(__file__).parents[2] / "scripts"


def submit(slurm, logs: Path, *arguments: object) -> tuple[str, str]:
    """Submit by submit.sh; return the numbers of the job and of the report."""
    script, output = SCRIPTS / "slurm" / "submit.sh", f"--output={logs}/%A_%a.log"
    job, report = slurm.run("bash", script, output, *arguments).split()
    slurm.submitted.extend((job, report))
    return job, report


def parts(out: Path) -> int:
    return sum(1 for _ in out.glob("run/parts/*/*.parquet"))


def log(logs: Path, task: str) -> str:
    path = logs / f"{task}.log"
    return path.read_text() if path.exists() else ""


def running_task(slurm, job: str, logs: Path, spared: set[str]) -> str:
    """Wait until a task that nothing was done to yet measures; return its number."""
    found: list[str] = []

    def begun() -> bool:
        states = slurm.states(job)
        running = {task for task, state in states.items() if state == "RUNNING"} - spared
        begun = [task for task in running if "parts to compute" in log(logs, task)]
        found[:] = sorted(begun, reverse=True)  # the last to begin has the most left to do
        return bool(found)

    slurm.wait(begun, "a task that measures")
    return found[0]


def job_number(slurm, task: str) -> str:
    """The number of its own that a task of an array has."""
    return re.search(r"JobId=(\d+)", slurm.run("scontrol", "show", "job", task))[1]


def kill_outright(slurm, task: str) -> None:
    """SIGKILL the process that measures in a task."""
    listed = slurm.run("scontrol", "listpids", job_number(slurm, task))
    for pid in (line.split()[0] for line in listed.splitlines()[1:]):
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and b"saturation\0measure" in command.read_bytes():
            os.kill(int(pid), signal.SIGKILL)
            return
    raise AssertionError(f"no process of {task} measures: {listed}")


def test_an_array_that_is_requeued_signalled_and_killed_ends_in_the_same_table(
    slurm, t5_base, expected, tmp_path
):
    out, logs = tmp_path / "out", tmp_path / "logs"
    logs.mkdir()
    job, report = submit(
        slurm, logs, "--array=0-7", "--", SCRIPTS / "t5_norm_growth.sh", t5_base, out
    )
    disturbed = {}
    for name, disturb in {
        "requeue": lambda task: slurm.run("scontrol", "requeue", task),
        "term": lambda task: slurm.run("scancel", "--signal=TERM", f"{job_number(slurm, task)}.0"),
        "kill": lambda task: kill_outright(slurm, task),
        # What --signal=B:TERM@120 does: the batch script alone hears of it.
        "limit": lambda task: slurm.run("scancel", "--batch", "--signal=TERM", task),
    }.items():
        task = running_task(slurm, job, logs, set(disturbed.values()))
        disturb(task)
        disturbed[name] = task
        assert not (out / "report.html").exists()
    slurm.wait_for_end(job, report)

    pd.testing.assert_frame_equal(saturation.load_results(out / "run"), expected)
    for name, task in disturbed.items():
        begun = re.findall(r"(\d+) parts to compute, (\d+) reused", log(logs, task))
        assert len(begun) == 2, (name, log(logs, task))
        assert int(begun[0][0]) == int(begun[1][0]) + int(begun[1][1]), "only what is missing"
    for name in ("term", "limit"):
        assert "Ended with 75; this job is queued again" in log(logs, disturbed[name])
    assert "Ended with 137; this job is queued again" in log(logs, disturbed["kill"])
    newest = max(path.stat().st_mtime for path in out.glob("run/parts/*/*.parquet"))
    assert (out / "report.html").stat().st_mtime > newest, "the report came last"


def test_two_processes_of_one_srun_are_stopped_and_end_in_the_same_table(
    slurm, t5_base, expected, tmp_path
):
    """JAX finds them by Slurm's environment; SIGTERM stops both at one job."""
    out, logs = tmp_path / "out", tmp_path / "logs"
    logs.mkdir()
    tasks = ("--nodes=1", "--ntasks-per-node=2", "--", SCRIPTS / "t5_norm_growth.sh")
    job, report = submit(slurm, logs, *tasks, t5_base, out)
    slurm.wait(lambda: parts(out) > 0, "the first part")
    slurm.run("scancel", "--signal=TERM", f"{job}.0")
    slurm.wait_for_end(job, report)

    name = f"{job}_4294967294"  # what Slurm writes for %a where there is no array
    assert "Ended with 75; this job is queued again" in log(logs, name)
    begun = re.findall(r"(\d+) parts to compute, (\d+) reused", log(logs, name))
    assert len(begun) == 2
    assert int(begun[0][0]) == int(begun[1][0]) + int(begun[1][1])
    assert int(begun[1][1]) > 0
    key = ["step", "measure", "metric", "scope"]
    found = saturation.load_results(out / "run").set_index(key).value
    pd.testing.assert_series_equal(
        found, expected.set_index(key).value, rtol=1e-6, atol=1e-9, check_exact=False
    )
    assert (out / "report.html").exists()


def test_the_report_is_withdrawn_where_a_task_fails(slurm, tmp_path):
    out, logs = tmp_path / "out", tmp_path / "logs"
    logs.mkdir()
    job, report = submit(
        slurm, logs, "--array=0-1", "--", SCRIPTS / "t5_norm_growth.sh", tmp_path / "none", out
    )
    slurm.wait_for_end(job, report)
    assert "no such folder or file" in log(logs, f"{job}_0")
    assert not out.exists()
