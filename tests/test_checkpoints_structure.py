"""Checkpoints of every layout, built whole and broken by meaning: each is refused or read.

`test_checkpoints_fuzz.py` changes bytes, and nearly all of its files fail at the first one. Here
every count, shape, name, size, offset and link is drawn, and most of a file is right, so that what
lies behind the first check is reached. 50 cases of each layout are tried in every run, 2,000 under
the marker `slow`.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from broken_layouts import LAYOUTS, VALUES, Site, right
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saturation.errors import SaturationError
from saturation.runs.blocks import blocks
from saturation.trajectory.trajectory import open_trajectory

SECONDS_PER_CASE = 20
EXTRA_MEMORY = 200 * 2**20


def accident(draw: Callable[..., Any], folder: Path) -> None:
    """A file is missing, doubled, emptied, or is a link, a folder or a pipe instead."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files or draw(st.integers(0, 3)):
        return
    # Orbax draws the names of its files, and how many they are, anew.
    path, other = (files[draw(st.integers(0, 999)) % len(files)] for _ in range(2))
    kind = draw(st.sampled_from(("gone", "copy", "empty", "loop", "other", "up", "folder", "pipe")))
    if kind == "copy":
        shutil.copy(path, path.with_name(f"{path.name}2"))
        return
    content = other.read_bytes()
    path.unlink()
    match kind:
        case "empty":
            path.touch()
        case "loop":
            path.symlink_to(path.name)
        case "other":
            path.write_bytes(content)
        case "up":
            path.symlink_to(folder)
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)


def read_all(folder: Path) -> str:
    """Do what the command line does before it measures, and read all; return the error's text."""
    try:
        trajectory = open_trajectory(folder)
        for step in trajectory.steps:
            checkpoint = trajectory[step]
            trajectory.fingerprint(step)
            checkpoint.verify()
            for name, parameter in checkpoint.parameters.items():
                axis, multiple = checkpoint.block_axis(name), checkpoint.block_multiple(name)
                shape, width = parameter.shape, parameter.dtype.itemsize
                for box in blocks(shape, width, axis, multiple)[:100]:
                    checkpoint.read(name, box)
                assert checkpoint.read(name).shape == shape
    except SaturationError as error:
        return str(error)
    return ""


def try_case(data: Any, write: Callable[[Site, Path], None]) -> None:
    def site(value: Any, *instead: Any) -> Any:
        # One place in twelve is wrong.
        number = data.draw(st.integers(0, 12 * len(instead)))
        return instead[number - 1] if 0 < number <= len(instead) else value

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS_PER_CASE} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, too_long)
    # The run-time type checker would meet bad input before the package does.
    jaxtyping.config.update("jaxtyping_disable", True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "step_1"
        folder.mkdir()
        write(site, folder)
        accident(data.draw, folder)
        signal.alarm(SECONDS_PER_CASE)
        try:
            text = read_all(folder)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
            jaxtyping.config.update("jaxtyping_disable", False)
    assert len(text.encode()) < 2000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < EXTRA_MEMORY


UNHURRIED = settings(
    deadline=None,
    database=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    print_blob=False,
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_is_not_broken_is_read(tmp_path, layout):
    LAYOUTS[layout](right, tmp_path)
    (checkpoint,) = open_trajectory(tmp_path)
    expected = sorted(array.tobytes() for array in VALUES.values())
    assert sorted(checkpoint.read(name).tobytes() for name in checkpoint.parameters) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@settings(UNHURRIED, max_examples=50)
def test_some_broken_layouts_are_refused_or_read(layout, data):
    try_case(data, LAYOUTS[layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@settings(UNHURRIED, max_examples=2000)
def test_many_broken_layouts_are_refused_or_read(layout, data):
    try_case(data, LAYOUTS[layout])
