"""What is to be done for a run: which arrays, from which step on, in which shard, and of what."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import saturation
from saturation.errors import MeasureError, ResultsError
from saturation.measures import find_measures
from saturation.measures.base import ActivationMeasure, GroupMeasure, Measure, WeightMeasure
from saturation.parts import ACTIVATIONS, missing_positions
from saturation.runfolder import RunFolder

if TYPE_CHECKING:
    from saturation.checkpoints.base import Checkpoint, Parameter
    from saturation.trajectory import Trajectory


PART_BYTES = 2**30
MINIMUM_PART_STEPS = 16
BUNDLE_BYTES = 32 * 2**20
BUNDLES_OF_WHOLE = 32


@dataclass(frozen=True)
class Shard:
    """One of `count` equal parts of the work, `index` from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that `I/N` names.

        Raises:
          MeasureError: the text is not `I/N` with 0 ≤ I < N.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not match or not int(match[1]) < int(match[2]):
            raise MeasureError(f"--shard takes I/N with I = 0 … N-1, such as 0/8; found {text!r}.")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Job:
    """A bundle to measure: `measures` at the selected steps of positions `start` to `stop` (open).

    Each becomes one part on disk for each measure.
    """

    bundle: str
    names: tuple[str, ...]
    measures: tuple[WeightMeasure, ...]
    start: int
    stop: int

    @property
    def earlier(self) -> tuple[int, ...]:
        """The positions of steps that are read only to be compared with, ascending."""
        if not self.start:
            return ()
        first = any(measure.against_first for measure in self.measures)
        previous = any(measure.compares_steps for measure in self.measures)
        needed = {0: first, self.start - 1: previous}
        return tuple(sorted(position for position, is_needed in needed.items() if is_needed))


@dataclass(frozen=True)
class GroupJob:
    """One group of arrays to measure at the steps of positions `start` to `stop` (open).

    Attributes:
      measure: what is computed.
      group: what its part on disk is filed under.
      arrays: {role in the measure: name of the array}.
      start, stop: positions among the selected steps.
    """

    measure: GroupMeasure
    group: str
    arrays: dict[str, str]
    start: int
    stop: int

    def nbytes(self, parameters: dict[str, Parameter]) -> int:
        """Return how many bytes the job reads."""
        return _group_bytes(self.arrays, parameters) * (self.stop - self.start)


def shared_parameters(trajectory: Trajectory, common_only: bool = False) -> dict[str, Parameter]:
    """Return the parameters that every selected checkpoint has, in the order of their names.

    Args:
      trajectory: at least one checkpoint.
      common_only: leave out the arrays that some checkpoint lacks, or has in another shape.

    Raises:
      MeasureError: the checkpoints differ, and `common_only` was not asked for.
    """
    trajectory.open_all()
    first, *others = trajectory.steps
    shared = dict(trajectory[first].parameters)
    for step in others:
        parameters = trajectory[step].parameters
        if not common_only:
            _refuse_difference(first, shared, step, parameters)
        shared = {
            name: parameter
            for name, parameter in shared.items()
            if name in parameters and parameters[name].shape == parameter.shape
        }
    if not shared:
        raise MeasureError(f"{trajectory.path}: the selected checkpoints have no array in common.")
    return shared


def _refuse_difference(first: int, expected: Any, step: int, found: Any) -> None:
    lost = sorted(set(expected) - set(found))
    new = sorted(set(found) - set(expected))
    reshaped = [
        f"{name} {expected[name].shape} against {found[name].shape}"
        for name in expected
        if name in found and expected[name].shape != found[name].shape
    ]
    if lost or new or reshaped:
        raise MeasureError(
            f"Checkpoints {first} and {step} differ: only in {first}: {_listed(lost)}; "
            f"only in {step}: {_listed(new)}; of another shape: {_listed(reshaped)}. "
            "Measure what they share with --common-arrays, or select steps that agree with --steps."
        )


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def identity(checkpoint: Checkpoint) -> str:
    """Return a hash that identifies a checkpoint: its shapes and its smallest matrix's values."""
    parameters = checkpoint.parameters
    digest = hashlib.sha256()
    for name, parameter in parameters.items():
        digest.update(f"{name} {parameter.shape}\n".encode())
    matrices = [name for name, parameter in parameters.items() if len(parameter.shape) > 1]
    smallest = min(matrices or parameters, key=lambda name: (parameters[name].size, name))
    digest.update(checkpoint.read(smallest).tobytes())
    return digest.hexdigest()[:32]


def describe_run(
    trajectory: Trajectory, measures: Sequence[Measure], parameters: dict[str, Parameter]
) -> dict[str, Any]:
    """Return `run.json`: what is measured, of what, by which code, on which device."""
    steps = trajectory.steps
    return {
        "trajectory": trajectory.path,
        "format": trajectory[steps[0]].format,
        "steps": list(steps),
        "identity": {
            str(step): identity(trajectory[step]) for step in sorted({steps[0], steps[-1]})
        },
        "measures": [measure.name for measure in measures],
        "arrays": _describe_arrays(parameters),
        "bundles": {key: list(names) for key, names in bundles(parameters).items()},
        "environment": _environment(),
    }


def _environment() -> dict[str, str | int]:
    import jax
    import numpy as np

    from saturation.measures.reduce import accumulation

    device = jax.local_devices()[0]
    return {
        "saturation": saturation.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "device": f"{device.device_kind} ({device.platform})",
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "accumulation": accumulation(device.platform),
    }


def join_run(folder: RunFolder, asked: dict[str, Any], trajectory: Trajectory) -> dict[str, Any]:
    """Write `run.json`, or extend the one that is there, and return it.

    A run can be asked for more measures, and for more steps behind the ones it has.

    Raises:
      ResultsError: the folder holds the run of another trajectory, or of other steps or arrays.
    """
    found = folder.description()
    if found is None:
        folder.describe(asked)
        return asked
    _refuse_other_trajectory(folder, found, trajectory)
    have, want = found["steps"], asked["steps"]
    if have[: len(want)] != want and want[: len(have)] != have:
        raise ResultsError(
            f"{folder.path} was measured at steps {_span(have)}, which the selected {_span(want)} "
            "do not continue; choose another --out, or the same --steps."
        )
    if list(found["arrays"]) != list(asked["arrays"]):
        raise ResultsError(
            f"{folder.path} was measured over {len(found['arrays'])} arrays, and this command asks "
            f"for {len(asked['arrays'])}; choose another --out, or the same --common-arrays."
        )
    for key, what in (
        ("activations", "tokens or settings"),
        ("corpus", "common and distinct tokens"),
    ):
        if key in found and key in asked and found[key] != asked[key]:
            raise ResultsError(
                f"{folder.path} was measured on other {what} ({found[key]}) than this command's "
                f"({asked[key]}); choose another --out, or the same ones."
            )
    joined = {
        **asked,
        **found,
        "steps": max(have, want, key=len),
        "identity": {**asked["identity"], **found["identity"]},
        "measures": list(dict.fromkeys([*found["measures"], *asked["measures"]])),
    }
    if joined != found:
        folder.describe(joined)
    return joined


def _refuse_other_trajectory(
    folder: RunFolder, found: dict[str, Any], trajectory: Trajectory
) -> None:
    for step, expected in found["identity"].items():
        if int(step) in trajectory.steps and identity(trajectory[int(step)]) != expected:
            raise ResultsError(
                f"{folder.path} holds the run of another trajectory, {found['trajectory']}: its "
                f"checkpoint {step} is not the one in {trajectory.path}. Choose another --out."
            )


def _span(steps: Sequence[int]) -> str:
    return f"{steps[0]} … {steps[-1]} ({len(steps)} of them)"


def bundles(arrays: Mapping[str, Parameter]) -> dict[str, tuple[str, ...]]:
    """Return the arrays that share a part on disk, {the first one's name: their names}.

    A part costs a few milliseconds to write and more to fetch from a bucket, so that neighbours
    share one up to 32 MB, or a 32nd of all there is: what one shard, or a kill, can have less of.
    """
    whole = sum(parameter.nbytes for parameter in arrays.values())
    limit = min(BUNDLE_BYTES, whole // BUNDLES_OF_WHOLE)
    found: list[list[str]] = []
    room = -1
    for name, parameter in arrays.items():
        room -= parameter.nbytes
        if room < 0:
            found.append([])
            room = limit - parameter.nbytes
        found[-1].append(name)
    return {names[0]: tuple(names) for names in found}


def jobs(
    folder: RunFolder,
    steps: Sequence[int],
    arrays: Mapping[str, Parameter],
    bundled: Mapping[str, Sequence[str]],
    measures: Sequence[WeightMeasure],
    shard: Shard,
) -> tuple[list[Job], int]:
    """Return what this shard has left to do, largest bundle first, and how many parts it has."""
    parts = folder.parts()
    todo, reused = [], 0
    nbytes = {key: sum(arrays[name].nbytes for name in names) for key, names in bundled.items()}
    for key in assigned(nbytes, shard):
        ranges: dict[tuple[int, int], list[WeightMeasure]] = {}
        for measure in measures:
            present = parts.get((measure.name, key), [])
            reused += len(present)
            missing = missing_positions(steps, present)
            for start, stop in part_ranges(missing, nbytes[key]):
                ranges.setdefault((start, stop), []).append(measure)
        todo += [
            Job(key, tuple(bundled[key]), tuple(group), start, stop)
            for (start, stop), group in sorted(ranges.items(), key=lambda item: item[0])
        ]
    return todo, reused


def group_jobs(
    folder: RunFolder,
    steps: Sequence[int],
    parameters: dict[str, Parameter],
    measures: Sequence[GroupMeasure],
    shard: Shard,
) -> tuple[list[GroupJob], int]:
    """Return what this shard has left to do of measures of groups, and how many parts it has.

    Raises:
      MeasureError: the arrays form no group that a measure knows.
    """
    parts = folder.parts()
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    todo, reused = [], 0
    for measure in measures:
        groups = measure.groups(shapes)
        for group in sorted(groups)[shard.index :: shard.count]:
            present = parts.get((measure.name, group), [])
            reused += len(present)
            missing = missing_positions(steps, present)
            for start, stop in part_ranges(missing, _group_bytes(groups[group], parameters)):
                todo.append(GroupJob(measure, group, groups[group], start, stop))
    return todo, reused


def _group_bytes(arrays: dict[str, str], parameters: dict[str, Parameter]) -> int:
    return sum(parameters[name].nbytes for name in arrays.values())


def activation_steps(
    folder: RunFolder,
    steps: Sequence[int],
    measures: Sequence[ActivationMeasure],
    shard: Shard,
) -> tuple[dict[int, tuple[ActivationMeasure, ...]], int]:
    """Return {step: measures it lacks} of this shard's steps, and how many parts it has."""
    parts = folder.parts()
    todo: dict[int, tuple[ActivationMeasure, ...]] = {}
    mine = steps[shard.index :: shard.count]
    for step in mine:
        lacking = tuple(
            measure
            for measure in measures
            if missing_positions([step], parts.get((measure.name, ACTIVATIONS), []))
        )
        if lacking:
            todo[step] = lacking
    return todo, len(mine) * len(measures) - sum(map(len, todo.values()))


def part_ranges(positions: Sequence[int], nbytes: int) -> list[tuple[int, int]]:
    """Return [start, stop) ranges that cover ascending positions and no other.

    A range ends where positions skip, and after 1 GB of reading: what a kill can lose. It has at
    least 16 steps before that, because the next one reads up to two steps again.
    """
    longest = max(PART_BYTES // max(nbytes, 1), MINIMUM_PART_STEPS)
    ranges: list[list[int]] = []
    for position in positions:
        if ranges and ranges[-1][1] == position and position - ranges[-1][0] < longest:
            ranges[-1][1] += 1
        else:
            ranges.append([position, position + 1])
    return [(start, stop) for start, stop in ranges]


def planned_work(
    trajectory: Trajectory,
    measures: Sequence[str],
    out: str,
    shard: Shard,
    common_arrays: bool = False,
) -> dict[str, int]:
    """Return what `measure` would do, without reading an array or writing a file.

    Raises:
      MeasureError: an unknown measure, or checkpoints that differ.
    """
    parameters = shared_parameters(trajectory, common_arrays)
    asked, folder = find_measures(tuple(measures)), RunFolder(out)
    weights = [measure for measure in asked if isinstance(measure, WeightMeasure)]
    activated = [measure for measure in asked if isinstance(measure, ActivationMeasure)]
    grouped = [measure for measure in asked if isinstance(measure, GroupMeasure)]
    bundled = (folder.description() or {}).get("bundles") or bundles(parameters)
    todo, reused = jobs(folder, trajectory.steps, parameters, bundled, weights, shard)
    groups, reused_groups = group_jobs(folder, trajectory.steps, parameters, grouped, shard)
    steps, reused_steps = activation_steps(folder, trajectory.steps, activated, shard)
    arrays = {name for job in todo for name in job.names} | {
        name for job in groups for name in job.arrays.values()
    }
    whole = sum(parameter.nbytes for parameter in parameters.values())
    return {
        "arrays": len(parameters if steps else arrays),
        "steps": len(trajectory.steps),
        "bytes": bytes_to_read(todo, parameters)
        + sum(job.nbytes(parameters) for job in groups)
        + whole * len(steps),
        "parts": sum(len(job.measures) for job in todo)
        + len(groups)
        + sum(map(len, steps.values())),
        "reused": reused + reused_groups + reused_steps,
    }


def bytes_to_read(todo: Sequence[Job], parameters: dict[str, Parameter]) -> int:
    """Return how many bytes the jobs read, with the steps that are only compared with."""
    return sum(
        sum(parameters[name].nbytes for name in job.names)
        * (job.stop - job.start + len(job.earlier))
        for job in todo
    )


def _describe_arrays(parameters: dict[str, Parameter]) -> dict[str, Any]:
    return {
        name: {
            "shape": list(parameter.shape),
            "dtype": str(parameter.dtype),
            "fan_in": parameter.fan_in,
        }
        for name, parameter in parameters.items()
    }


def assigned(nbytes: Mapping[str, int], shard: Shard) -> list[str]:
    """Return what is a shard's: the largest first, each to the shard with the least so far."""
    loads = [0] * shard.count
    mine = []
    for key in sorted(nbytes, key=lambda key: (-nbytes[key], key)):
        lightest = loads.index(min(loads))
        loads[lightest] += nbytes[key]
        if lightest == shard.index:
            mine.append(key)
    return mine
