"""A measurement that is killed loses nothing: the same command gives the same table."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from made_trajectory import write_trajectory

import saturation

COMMAND = Path(sys.executable).with_name("saturation")


def many_steps(folder: Path, distinct: int, steps: int, vocab: int) -> Path:
    """A long trajectory on the disk of a short one: the steps beyond are hard links."""
    write_trajectory(folder, tuple(range(distinct)), vocab=vocab)
    link_steps(folder, list(range(distinct)), list(range(distinct, steps)))
    return folder


def link_steps(folder: Path, present: list[int], wanted: list[int]) -> None:
    for number, step in enumerate(wanted):
        target = folder / f"step_{step}"
        target.mkdir()
        for file in (folder / f"step_{present[number % len(present)]}").iterdir():
            os.link(file, target / file.name)


# The command, at 5 ms a step of an array, so that whoever waits for its first part comes in time.
UNHURRIED = [
    sys.executable,
    "-c",
    """
import time
from saturation.cli.commands import main
from saturation.runtime.progress import Progress

Progress.advance = lambda *_: time.sleep(0.005)
main()
""",
]


def start(
    trajectory: Path, out: Path, log: Path, unhurried: bool = False
) -> subprocess.Popen[bytes]:
    command = UNHURRIED if unhurried else [COMMAND]
    arguments = ["measure", trajectory, "--measures", "norms,direction", "--out", out]
    with log.open("ab") as file:
        return subprocess.Popen([*command, *arguments], stderr=file, stdout=file)


def parts(out: Path) -> int:
    return sum(1 for _ in out.glob("parts/*/*.parquet"))


def kill(process: subprocess.Popen[bytes], when: Callable[[], bool]) -> bool:
    """SIGKILL the process as soon as `when()`; return whether it was still running."""
    while process.poll() is None and not when():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def reused(log: Path) -> list[int]:
    return [
        int(count) for count in re.findall(r"(\d+) reused from an earlier run", log.read_text())
    ]


def test_a_killed_run_resumes_to_the_same_table(tmp_path: Path) -> None:
    trajectory = many_steps(tmp_path / "t", 3, 120, vocab=64)
    whole, out, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    saturation.measure(saturation.open_trajectory(trajectory), ["norms", "direction"], str(whole))
    killed = kill(start(trajectory, out, log, unhurried=True), lambda: parts(out) > 0)
    before = parts(out)
    assert killed
    assert 0 < before < parts(whole), "it was killed between the first part and the last"
    assert start(trajectory, out, log).wait() == 0
    assert reused(log) == [0, before]
    pd.testing.assert_frame_equal(saturation.load_results(out), saturation.load_results(whole))
    leftovers = list(out.rglob("*.tmp"))
    assert len(leftovers) <= 2, "no more than the parts that were being written"


def test_sigterm_finishes_the_array_at_hand_and_exits_75(tmp_path: Path) -> None:
    trajectory = many_steps(tmp_path / "t", 3, 120, vocab=64)
    out, log = tmp_path / "run", tmp_path / "log"
    process = start(trajectory, out, log, unhurried=True)
    while process.poll() is None and not parts(out):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert "Stopped by a signal" in log.read_text()
    assert list(out.rglob("*.tmp")) == []
    before = parts(out)
    assert start(trajectory, out, log).wait() == 0
    assert reused(log) == [0, before]


INTERRUPTED = """
import sys
import time
import saturation
from saturation.errors import Stopped
from saturation.runtime.progress import Progress

Progress.advance = lambda *_: time.sleep(0.005)
print("begun", flush=True)
try:
    saturation.measure(saturation.open_trajectory(sys.argv[1]), ["norms"], sys.argv[2])
except Stopped as error:
    print(error)
"""


def test_an_interrupt_in_python_writes_what_is_at_hand_and_begins_nothing_else(
    tmp_path: Path,
) -> None:
    """As a notebook's stop does."""
    trajectory, out = many_steps(tmp_path / "t", 3, 120, vocab=64), tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, trajectory, out], stdout=subprocess.PIPE, text=True
    )
    while process.poll() is None and not parts(out):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 0
    assert f"Stopped by a signal. What was finished is in {out}; run the same command" in said
    before = parts(out)
    outcome = saturation.measure(saturation.open_trajectory(trajectory), ["norms"], str(out))
    assert outcome.reused == before
    assert outcome.computed > 0


@pytest.mark.slow
def test_ten_kills_at_random_moments_of_a_minute_long_run(tmp_path: Path) -> None:
    """Issue 2's acceptance 4: T5-small's shapes, 4 checkpoints on disk linked to 4,000 steps."""
    trajectory = tmp_path / "t"
    script = Path(__file__).parents[1] / "benchmarks" / "make_trajectory.py"
    arguments = ["--size", "small", "--steps", "4", "--out", trajectory]
    subprocess.run([sys.executable, script, *arguments], check=True)
    link_steps(trajectory, [0, 1000, 2000, 3000], [1000 * step for step in range(4, 4000)])
    whole, out, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    begun = time.monotonic()
    assert start(trajectory, whole, log).wait() == 0
    seconds = time.monotonic() - begun
    assert seconds >= 60, "the machine is too fast for this trajectory: give it more steps"
    log.unlink()
    moments = random.Random(0)
    within = []
    for _ in range(10):
        deadline = time.monotonic() + moments.uniform(0.02, 0.18) * seconds
        assert kill(start(trajectory, out, log), lambda end=deadline: time.monotonic() > end)
        within.append(0 < parts(out) < parts(whole))
    assert sum(within) >= 5
    assert start(trajectory, out, log).wait() == 0
    print(f"{seconds:.0f} s uninterrupted, {parts(whole)} parts; reused: {reused(log)}")
    assert reused(log) == sorted(reused(log))
    assert reused(log)[-1] > 0
    pd.testing.assert_frame_equal(saturation.load_results(out), saturation.load_results(whole))
