"""A Slurm to submit to, and a trajectory of T5-base's size.

`pytest -m cluster tests/cluster` runs these; `scripts/test.sh` leaves them out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import local_slurm
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import many_processes
from test_kill import link_steps

import saturation

ROOT = Path(__file__).parents[2]
SECONDS = 900


@dataclass(frozen=True)
class Slurm:
    """Slurm's commands, in an environment where they find it and jobs find this Python."""

    environment: dict[str, str]
    submitted: list[str] = field(default_factory=list)

    def run(self, *command: object) -> str:
        """Run a command and return its stdout."""
        done = subprocess.run(
            list(map(str, command)),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def states(self, job: str) -> dict[str, str]:
        """Return {number of a job or of a task of it: its state}, of what has not ended."""
        listed = self.run("squeue", "--noheader", "--array", "--format=%i %T", "--me")
        rows = (line.split() for line in listed.splitlines())
        return {number: state for number, state in rows if number.split("_")[0] == job}

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + SECONDS
        while not until():
            assert time.monotonic() < deadline, f"{what} took too long: {self.run('squeue')}"
            time.sleep(0.2)

    def wait_for_end(self, *jobs: str) -> None:
        """Wait until jobs have ended."""
        self.wait(lambda: not any(map(self.states, jobs)), f"the end of {jobs}")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster, started here where none answers."""
    if reason := local_slurm.why_not():
        pytest.skip(reason)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    ours = {**many_processes.environment(1), "PATH": path}
    own = None if local_slurm.answers(os.environ) else tmp_path_factory.mktemp("slurm")
    if own is not None:
        ours["SLURM_CONF"] = local_slurm.start(own)["SLURM_CONF"]
    cluster = Slurm(ours)
    yield cluster
    for job in cluster.submitted:
        subprocess.run(["scancel", job], env=ours, check=False)
    cluster.wait_for_end(*cluster.submitted)
    if own is not None:
        local_slurm.stop(own)


@pytest.fixture(scope="session")
def t5_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """150 checkpoints of T5-base's shapes, 147 hard links: 2.7 GB on disk, 134 to read."""
    folder = tmp_path_factory.mktemp("t5") / "base"
    script = ROOT / "benchmarks" / "make_trajectory.py"
    arguments = ["--size", "base", "--steps", "3", "--out", folder]
    subprocess.run([sys.executable, script, *arguments], check=True)
    link_steps(folder, [0, 1000, 2000], [1000 * step for step in range(3, 150)])
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def expected(slurm: Slurm, t5_base: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table that one process gives."""
    out = tmp_path_factory.mktemp("one") / "run"
    slurm.run("saturation", "measure", t5_base, "--measures", "norms,direction", "--out", out)
    return saturation.load_results(out)
