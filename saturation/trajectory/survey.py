"""What each step of a trajectory has in a way of its own, by the headers of its files alone.

A training run that was resumed in another way writes other words before its names, and checkpoints
come from other hands with checksums or without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from saturation.checkpoints import FORMATS, Folder, find_format
from saturation.checkpoints.glance import Glance
from saturation.errors import CheckpointFormatError
from saturation.storage.parallel import AT_ONCE, map_in_threads

if TYPE_CHECKING:
    from saturation.trajectory.trajectory import Trajectory


@dataclass(frozen=True)
class Survey:
    """What was seen at the steps that were looked at.

    Attributes:
      steps: which: all on a disk; over a network the first, the middle and the last.
      wrappers: the words that were taken off the names, "" for none, of each step that is readable.
      unsummed: the files without the checksums that their format has, of each step with such files.
    """

    steps: tuple[int, ...]
    wrappers: Mapping[int, str]
    unsummed: Mapping[int, tuple[str, ...]]


def survey(trajectory: Trajectory) -> Survey:
    """Look at the headers of a trajectory's checkpoints.

    What was taken off the names follows from the names and, where arrays are stored twice, their
    bits: of the steps with one set of names, one is opened. A step that is not readable is the
    audit's to report.
    """
    steps = trajectory.steps
    if not any(trajectory.format == form.NAME and _glance_of(form) for form in FORMATS):
        return Survey(steps[:1], {}, {})
    if trajectory.remote:
        steps = tuple(sorted({steps[0], steps[len(steps) // 2], steps[-1]}))

    def look(step: int) -> Glance | None:
        try:
            folder = trajectory.folder(step)
            glance = _glance_of(find_format(folder))
            return None if glance is None else glance(folder)
        except CheckpointFormatError:
            return None

    found = dict(
        zip(steps, map_in_threads(look, steps, AT_ONCE if trajectory.remote else 1), strict=True)
    )
    seen = {step: one for step, one in found.items() if one is not None}
    known: dict[frozenset[str], str] = {}
    wrappers = {}
    for step, one in seen.items():
        if one.names not in known:
            try:
                known[one.names] = trajectory[step].wrappers
            except CheckpointFormatError:
                continue
        wrappers[step] = known[one.names]
    return Survey(steps, wrappers, {s: one.unsummed for s, one in seen.items() if one.unsummed})


def _glance_of(form: ModuleType | None) -> Callable[[Folder], Glance] | None:
    """Return how a format looks at headers alone; None where these say nothing that differs."""
    return getattr(form, "glance", None)


def without_checksums(trajectory: Trajectory) -> dict[int, tuple[str, ...]]:
    """Return, by step, the files without the checksums that their format has, of all steps."""
    found = {}
    for step in trajectory.steps:
        try:
            found[step] = trajectory[step].unsummed
        except CheckpointFormatError:
            continue  # which the audit reports
    return {step: files for step, files in found.items() if files}
