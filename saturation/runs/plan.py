"""What is to be done for a run: which arrays, from which step on, in which shard, and of what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saturation.errors import MeasureError
from saturation.measures import find_measures
from saturation.measures.base import (
    ActivationMeasure,
    GroupMeasure,
    Measure,
    ModelShapes,
    WeightMeasure,
)
from saturation.results.folder import RunFolder
from saturation.results.parts import ACTIVATIONS
from saturation.results.state import RunState, Span
from saturation.runs.run_json import what_is_measured
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

    def nbytes(self, parameters: Mapping[str, Parameter]) -> int:
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


@dataclass(frozen=True)
class Work:
    """What one shard has left to do of what is asked of a run.

    Attributes:
      weights: of measures of weights, the largest bundle first.
      groups: of measures of groups.
      steps: {step: the measures of activations that it lacks}.
      reused: how many parts are there already.
    """

    weights: list[Job]
    groups: list[GroupJob]
    steps: dict[int, tuple[ActivationMeasure, ...]]
    reused: int

    @property
    def parts(self) -> int:
        """How many parts are left to write."""
        of_weights = sum(len(job.measures) for job in self.weights)
        return of_weights + len(self.groups) + sum(map(len, self.steps.values()))


def work_left(
    state: RunState,
    steps: Sequence[int],
    parameters: Mapping[str, Parameter],
    measures: Sequence[Measure],
    shard: Shard,
) -> Work:
    """Return what a shard has left to do.

    Raises:
      MeasureError: the arrays form no group that a measure of groups knows.
    """
    weights = [one for one in measures if isinstance(one, WeightMeasure)]
    grouped = [one for one in measures if isinstance(one, GroupMeasure)]
    activated = [one for one in measures if isinstance(one, ActivationMeasure)]
    mine = slice(shard.index, None, shard.count)
    reused, jobs, group_jobs, at_steps = 0, [], [], {}

    bundled = state.described["bundles"]
    sizes = {key: sum(parameters[n].nbytes for n in names) for key, names in bundled.items()}
    for key in assigned(sizes, shard):
        ranges: dict[Span, list[WeightMeasure]] = {}
        for measure in weights:
            reused += len(state.parts.get((measure.name, key), ()))
            for span in part_ranges(state.missing(measure, key, steps), sizes[key]):
                ranges.setdefault(span, []).append(measure)
        spans = sorted(ranges.items(), key=lambda item: item[0])
        jobs += [Job(key, tuple(bundled[key]), tuple(some), *span) for span, some in spans]

    for measure in grouped:
        groups = measure.groups(ModelShapes.of_run(state.described))
        for key in sorted(groups)[mine]:
            reused += len(state.parts.get((measure.name, key), ()))
            nbytes = _group_bytes(groups[key], parameters)
            spans = part_ranges(state.missing(measure, key, steps), nbytes)
            group_jobs += [GroupJob(measure, key, groups[key], *span) for span in spans]

    for step in steps[mine]:
        lacking = tuple(m for m in activated if state.missing(m, ACTIVATIONS, [step]))
        reused += len(activated) - len(lacking)
        if lacking:
            at_steps[step] = lacking
    return Work(jobs, group_jobs, at_steps, reused)


def _group_bytes(arrays: Mapping[str, str], parameters: Mapping[str, Parameter]) -> int:
    return sum(parameters[name].nbytes for name in arrays.values())


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
    asked = find_measures(tuple(measures))
    begun = what_is_measured(trajectory, asked, parameters)
    state = RunState.read(RunFolder(out)).joined(begun)
    left = work_left(state, trajectory.steps, parameters, asked, shard)
    arrays = {name for job in left.weights for name in job.names} | {
        name for job in left.groups for name in job.arrays.values()
    }
    whole = sum(parameter.nbytes for parameter in parameters.values())
    return {
        "arrays": len(parameters if left.steps else arrays),
        "steps": len(trajectory.steps),
        "bytes": bytes_to_read(left.weights, parameters)
        + sum(job.nbytes(parameters) for job in left.groups)
        + whole * len(left.steps),
        "parts": left.parts,
        "reused": left.reused,
    }


def bytes_to_read(todo: Sequence[Job], parameters: Mapping[str, Parameter]) -> int:
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
