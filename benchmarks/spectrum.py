"""Time the measure `spectrum` on a T5-base in memory: all that the driver does but for reading.

    python benchmarks/spectrum.py [--size t5-base] [--repeats 3]

36 attentions of 12 heads, each with and without the norm scale: 864 matrices of 64 × 64. Prints the
seconds of each repeat as JSON, and a sentence. The target is 5 s on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does

import numpy as np

from saturation.checkpoints.base import Parameter
from saturation.measures.spectrum.measure import SPECTRUM
from saturation.models import T5Config
from saturation.results.folder import RunFolder
from saturation.results.state import RunState
from saturation.runs.groups import measure_groups
from saturation.runs.plan import Shard, work_left
from saturation.runs.run_json import what_is_measured
from saturation.runtime.progress import Progress

TARGET = 5.0  # seconds


def in_memory(config: T5Config) -> tuple[Any, dict[str, Parameter]]:
    """A trajectory of one random checkpoint whose arrays are read from memory."""
    generator = np.random.default_rng(0)
    shapes = config.parameter_shapes()
    wanted = {name for roles in SPECTRUM.groups(shapes).values() for name in roles.values()}
    arrays = {
        name: (generator.standard_normal(shapes[name], np.float32) / shapes[name][0] ** 0.5)
        for name in wanted
    }
    parameters = {name: Parameter(shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    checkpoint = SimpleNamespace(read=arrays.__getitem__)

    class Trajectory(dict):
        steps, remote = (0,), False

    return Trajectory({0: checkpoint}), parameters


def seconds(trajectory: Any, parameters: dict[str, Parameter]) -> float:
    """Wall time of the driver for one checkpoint, writing the parts included."""
    with tempfile.TemporaryDirectory() as out:
        folder, quiet = RunFolder(out), Progress("", "B", quiet=True)
        described = what_is_measured(trajectory.steps, [SPECTRUM], parameters)
        state = RunState.read(folder).joined(described)
        todo = work_left(state, trajectory.steps, parameters, [SPECTRUM], Shard()).groups
        begun = time.perf_counter()
        measure_groups(trajectory, parameters, todo, folder, described, quiet, threading.Event())
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="t5-base", help="a published T5, such as t5-large")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    trajectory, parameters = in_memory(T5Config.published(arguments.size))
    times = [seconds(trajectory, parameters) for _ in range(arguments.repeats)]
    cores = len(os.sched_getaffinity(0))
    facts = {"size": arguments.size, "cores": cores, "seconds": [round(t, 3) for t in times]}
    print(json.dumps(cast(dict, facts) | {"target_seconds": TARGET, "load": os.getloadavg()[0]}))
    verdict = "within" if max(times) <= TARGET else "over"
    print(
        f"spectrum of a {arguments.size} takes {min(times):.2f} to {max(times):.2f} s on {cores} "
        f"cores after reading, {verdict} the target of {TARGET:g} s."
    )


if __name__ == "__main__":
    main()
