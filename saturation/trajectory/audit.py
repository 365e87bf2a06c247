"""Looks for what is wrong with a trajectory: what is missing, damaged, doubled or out of place.

Public trajectories are known to serve late weights under early steps and to lack steps. Every
finding here rests on numbers that stand in its text:

* steps: those expected, from the spacing, against those present;
* files: a checkpoint that cannot be opened or read says why;
* arrays: those that appear, vanish, or change shape or type from one checkpoint to the next;
* values that are not finite;
* copies: checkpoints whose arrays are the same bytes;
* order: training moves the weights along a path, so a checkpoint whose weights lie far from its
  neighbours' and between two others is out of place, and a tensor that leaves its path at one step,
  while the others stay on theirs, was re-initialised.

A finding is about the checkpoints as they are served: training itself may have done odd things.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from saturation.checkpoints import Checkpoint
from saturation.errors import CheckpointFormatError, TrajectoryError
from saturation.storage.parallel import AT_ONCE, map_in_threads
from saturation.trajectory import path_order
from saturation.trajectory.trajectory import Trajectory

# Of a large checkpoint this much is read unless `full`: the small arrays, and of the others a part.
SAMPLE_BYTES = 256 * 1024 * 1024
_BLOCK_BYTES = 32 * 1024 * 1024
# More checkpoints no trajectory has.
_MOST_EXPECTED = 1_000_000
# Elements of each array that stand for it in distances between checkpoints.
_ELEMENTS = 1024


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
      kind: `missing`, `damaged`, `incomplete`, `unused`, `arrays`, `nonfinite`, `duplicate`,
        `order` or `reinitialised`.
      steps: the steps it is about.
      evidence: what was seen, with its numbers.
    """

    kind: str
    steps: tuple[int, ...]
    evidence: str

    def __str__(self) -> str:
        steps = ", ".join(map(str, self.steps))
        return f"{self.kind}: {'step ' + steps + ': ' if steps else ''}{self.evidence}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return asdict(self)


@dataclass(frozen=True)
class Sketch:
    """What is kept of one checkpoint: of each array a hash, some elements, and what is not finite.

    Attributes:
      hashes: of the bytes that were read of each array.
      elements: float64, evenly spread over what was read.
      sizes: the number of elements of each array.
      nonfinite: the number of NaN and infinite elements of those arrays that have any.
      whole: all arrays were read in full.
    """

    hashes: Mapping[str, str]
    elements: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]
    nonfinite: Mapping[str, int]
    whole: bool


def audit(trajectory: Trajectory, every: int | None = None, full: bool = False) -> list[Finding]:
    """Return everything that is found wrong with a trajectory; an empty list is a clean bill.

    Args:
      trajectory: what `open_trajectory` returns.
      every: the spacing of the steps that there should be; by default the trajectory's own list
        of expected steps, or else what most of the spacings are.
      full: read every array in full, rather than a sample of large checkpoints.

    Returns:
      The findings, ordered by kind and step.
    """
    findings = [*_missing(trajectory, every), *_incomplete(trajectory)]
    opened, damaged = _opened(trajectory)
    findings += damaged + _changed_arrays(opened)
    sketches: dict[int, Sketch] = {}
    # Arrays are cut alike at every step, whatever it is stored as, so that like meets like.
    cuts: dict[str, tuple[int, int]] = {}
    for step, checkpoint in opened.items():
        for name in checkpoint.parameters:
            cuts.setdefault(name, (checkpoint.block_axis(name), checkpoint.block_multiple(name)))
        try:
            if full:
                checkpoint.verify()
            sketches[step] = sketch(checkpoint, cuts, full, AT_ONCE if trajectory.remote else 1)
        except CheckpointFormatError as error:
            findings.append(Finding("damaged", (step,), str(error)))
    findings += _nonfinite(sketches)
    copies = _duplicates(trajectory, sketches)
    return findings + copies + _out_of_place(sketches, copies)


def sketch(
    checkpoint: Checkpoint, cuts: Mapping[str, tuple[int, int]], full: bool, at_once: int = 1
) -> Sketch:
    """Read a checkpoint once and keep what the audit needs of it.

    Args:
      checkpoint: the checkpoint.
      cuts: the axis along which each array is read in blocks, and the multiple they have.
      full: read every array in full.
      at_once: how many arrays to read at once.

    Raises:
      CheckpointFormatError: an array cannot be read.
    """
    names = sorted(checkpoint.parameters, key=lambda name: checkpoint.parameters[name].size)
    left = sum(p.nbytes for p in checkpoint.parameters.values()) if full else SAMPLE_BYTES
    share: dict[str, int] = {}
    for position, name in enumerate(names):
        # Small arrays first: what they leave of their share goes to the larger ones.
        share[name] = min(checkpoint.parameters[name].nbytes, left // (len(names) - position))
        left -= share[name]
    parts = map_in_threads(
        lambda name: _read_part(checkpoint, name, *cuts[name], share[name]), names, at_once
    )
    return Sketch(
        hashes={name: part[0] for name, part in zip(names, parts, strict=True)},
        elements={name: part[1] for name, part in zip(names, parts, strict=True)},
        sizes={name: checkpoint.parameters[name].size for name in names},
        nonfinite={name: part[2] for name, part in zip(names, parts, strict=True) if part[2]},
        whole=all(share[name] == checkpoint.parameters[name].nbytes for name in names),
    )


def _read_part(
    checkpoint: Checkpoint, name: str, axis: int, multiple: int, nbytes: int
) -> tuple[str, np.ndarray, int]:
    """Read the first `nbytes` or so of an array: its hash, some elements, how many not finite."""
    parameter = checkpoint.parameters[name]
    rows = parameter.shape[axis]
    per_row = max(parameter.nbytes // max(rows, 1), 1)
    wanted = rows if nbytes >= parameter.nbytes else max(nbytes // per_row, 1)
    step = max(_BLOCK_BYTES // per_row // multiple, 1) * multiple
    digest, elements, nonfinite = hashlib.sha256(), [], 0
    stride = max(wanted * (per_row // parameter.dtype.itemsize) // _ELEMENTS, 1)
    for start in range(0, wanted, step):
        index = [slice(None)] * len(parameter.shape)
        index[axis] = slice(start, min(start + step, wanted))
        block = np.moveaxis(checkpoint.read(name, tuple(index)), axis, 0)
        digest.update(np.ascontiguousarray(block).view(np.uint8).data)
        values = block.reshape(-1)
        nonfinite += int(values.size - np.count_nonzero(np.isfinite(values)))
        elements.append(values[::stride].astype(np.float64))
    return digest.hexdigest(), np.concatenate(elements or [np.zeros(0)]), nonfinite


def _missing(trajectory: Trajectory, every: int | None) -> list[Finding]:
    expected, why = expected_steps(trajectory.steps, every)
    if every is None and trajectory.expected:
        expected, why = tuple(trajectory.expected), "the trajectory's manifest lists it"
    present = set(trajectory.steps)
    absent = [step for step in expected if step not in present]
    return [Finding("missing", (step,), f"there is no checkpoint, and {why}") for step in absent]


def expected_steps(steps: Sequence[int], every: int | None = None) -> tuple[tuple[int, ...], str]:
    """Return the steps there should be, and how that is known.

    Without `every`, the spacing is the most frequent one, provided that two thirds of the steps
    that it expects are there: log-spaced and irregular trajectories have no spacing, and nothing is
    expected of them.

    >>> expected_steps([0, 100, 300, 400])[0]
    (0, 100, 200, 300, 400)
    >>> expected_steps([0, 1, 2, 4, 8, 16])[0]
    ()

    Raises:
      TrajectoryError: `every` is so small that more than a million steps would be expected.
    """
    if every is not None:
        if (count := (steps[-1] - steps[0]) // every) > _MOST_EXPECTED:
            raise TrajectoryError(
                f"One checkpoint every {every} steps, from {steps[0]} to {steps[-1]}, are {count}: "
                f"give a spacing that makes at most {_MOST_EXPECTED}."
            )
        grid = tuple(range(steps[0], steps[-1] + 1, every))
        return grid, f"there should be one every {every} steps from {steps[0]} to {steps[-1]}"
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    growing = all(one <= other for one, other in itertools.pairwise(gaps))
    if len(gaps) < 2 or (growing and len(set(gaps)) > 2):
        return (), ""
    counts = Counter(gaps)
    spacing = min(gaps, key=lambda gap: (-counts[gap], gap))
    grid = range(steps[0], steps[-1] + 1, spacing)
    present = sum(step in grid for step in steps)
    if 3 * present < 2 * len(grid):
        return (), ""
    return tuple(grid), f"{counts[spacing]} of {len(gaps)} spacings are {spacing} steps"


def _incomplete(trajectory: Trajectory) -> list[Finding]:
    found = []
    for name, reason in trajectory.ignored:
        if reason.startswith(("incomplete", "broken link")):
            found.append(Finding("incomplete", (), f"{name} was left out: {reason}"))
        elif reason.startswith(("no step in its name", "a checkpoint, but")):
            found.append(
                Finding("unused", (), f"{name} is a checkpoint and was left out: {reason}")
            )
    return found


def _opened(trajectory: Trajectory) -> tuple[dict[int, Checkpoint], list[Finding]]:
    """Open every checkpoint; those that cannot be are findings."""

    def attempt(step: int) -> Checkpoint | Finding:
        try:
            return trajectory[step]
        except (CheckpointFormatError, TrajectoryError) as error:
            return Finding("damaged", (step,), str(error))

    found = map_in_threads(attempt, trajectory.steps, AT_ONCE if trajectory.remote else 1)
    pairs = list(zip(trajectory.steps, found, strict=True))
    opened = {step: one for step, one in pairs if isinstance(one, Checkpoint)}
    return opened, [one for _, one in pairs if isinstance(one, Finding)]


def _changed_arrays(opened: Mapping[int, Checkpoint]) -> list[Finding]:
    findings = []
    for earlier, later in itertools.pairwise(opened):
        before, after = opened[earlier].parameters, opened[later].parameters
        changes = [
            *(f"{name} has vanished" for name in before if name not in after),
            *(f"{name} has appeared" for name in after if name not in before),
        ]
        for name in before.keys() & after.keys():
            one, other = before[name], after[name]
            if one.shape != other.shape:
                changes.append(f"{name} has shape {other.shape} and had {one.shape}")
            if one.dtype != other.dtype:
                changes.append(f"{name} has type {other.dtype} and had {one.dtype}")
        if changes:
            text = f"against step {earlier}, {_some(changes)}"
            findings.append(Finding("arrays", (later,), text))
    return findings


def _nonfinite(sketches: Mapping[int, Sketch]) -> list[Finding]:
    return [
        Finding(
            "nonfinite",
            (step,),
            "NaN or infinite: "
            + _some(
                f"{count} of {one.sizes[name]} in {name}" for name, count in sorted(bad.items())
            ),
        )
        for step, one in sketches.items()
        if (bad := one.nonfinite)
    ]


def _duplicates(trajectory: Trajectory, sketches: Mapping[int, Sketch]) -> list[Finding]:
    """Return the groups of checkpoints that hold the same bytes."""
    groups: dict[str, list[int]] = {}
    for step, one in sketches.items():
        key = hashlib.sha256(repr(sorted(one.hashes.items())).encode()).hexdigest()
        groups.setdefault(key, []).append(step)
    findings = []
    for key, steps in groups.items():
        if len(steps) < 2:
            continue
        whole = all(sketches[step].whole for step in steps)
        digests = {trajectory.digests(step) for step in steps}
        known = None not in digests
        if known and len(digests) > 1 and not whole:
            # What was not sampled differs.
            continue
        what = "all arrays" if whole else "what was sampled of all arrays (--full reads all)"
        agree = ", and the place's own hashes of their files agree" if known else ""
        text = f"the same bytes in {what}, sha256 {key[:16]}{agree if len(digests) == 1 else ''}"
        findings.append(Finding("duplicate", tuple(steps), text))
    return findings


def _out_of_place(sketches: Mapping[int, Sketch], copies: Sequence[Finding]) -> list[Finding]:
    """Compare checkpoints with their neighbours by the elements that were kept of each."""
    usable = {step: one for step, one in sketches.items() if not one.nonfinite}
    if len(usable) < 3:
        return []
    steps = tuple(usable)
    names = sorted(set.intersection(*(set(one.elements) for one in usable.values())))
    names = [
        name for name in names if len({one.elements[name].size for one in usable.values()}) == 1
    ]
    if not names:
        return []
    arrays = {name: np.stack([usable[step].elements[name] for step in steps]) for name in names}
    known = {step for finding in copies for step in finding.steps}
    findings = [
        Finding("order", place, text) for place, text in path_order.misplaced(steps, arrays)
    ]
    moved = {step for finding in findings for step in finding.steps} | known
    for step, name, text in path_order.off_their_path(steps, arrays):
        if step not in moved:
            findings.append(Finding("reinitialised", (step,), f"{name}: {text}"))
    return findings


def _some(texts: Any, most: int = 4) -> str:
    listed = list(texts)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return "; ".join(listed[:most]) + more
