"""What is to be done for a run: which arrays, from which step on, in which shard, and of what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saturation.errors import MeasureError
from saturation.measures import find_measures
from saturation.measures.base import ActivationMeasure, GroupMeasure, WeightMeasure
from saturation.results.folder import RunFolder
from saturation.results.parts import ACTIVATIONS, missing_positions, refuse_other_versions
from saturation.runs.run_json import bundles, refuse_other_arrays
from saturation.trajectory.constants import constants

if TYPE_CHECKING:
    from saturation.checkpoints.base import Parameter
    from saturation.trajectory.trajectory import Trajectory

PART_BYTES = 2**30
MINIMUM_PART_STEPS = 16


MOST_SHARDS = 100_000


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
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if not match or not int(match[1]) < int(match[2]) <= MOST_SHARDS:
            raise MeasureError(
                f"--shard takes I/N with I = 0 … N-1 and N at most {MOST_SHARDS:,}, such as 0/8; "
                f"found {text[:40]!r}."
            )
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

    Arrays that are constants by `saturation.trajectory.constants` are no parameters.

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
    for name, _ in constants(trajectory, shared):
        del shared[name]
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
      ResultsError: `out` holds the run of other steps or arrays.
    """
    parameters = shared_parameters(trajectory, common_arrays)
    asked, folder = find_measures(tuple(measures)), RunFolder(out)
    weights = [measure for measure in asked if isinstance(measure, WeightMeasure)]
    activated = [measure for measure in asked if isinstance(measure, ActivationMeasure)]
    grouped = [measure for measure in asked if isinstance(measure, GroupMeasure)]
    bundled = bundles(parameters, len(trajectory.steps))
    found = folder.read_description()
    if found is not None:
        refuse_other_versions(folder, found)
        refuse_other_arrays(folder, found, trajectory.steps, parameters)
        bundled = found["bundles"]
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
