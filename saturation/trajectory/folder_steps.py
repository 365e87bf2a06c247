"""Which checkpoints lie in a folder, of which steps, and what was left out and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from saturation import checkpoints
from saturation.checkpoints import Folder
from saturation.errors import CheckpointFormatError, TrajectoryError
from saturation.storage.listing import matches
from saturation.storage.parallel import AT_ONCE, map_in_threads
from saturation.trajectory.step_names import StepName, manifest_of, says_step, step_name

_TEMPORARY = "temporary: its writer did not finish"
_UNFINISHED = re.compile(r".*(_tmp|\.tmp|\.partial)")  # of any format


def numbered(folder: Folder) -> tuple[dict[int, Folder], list[tuple[str, str]]]:
    """Return the numbered checkpoints directly in a folder, and what was left out and why."""
    names = (*folder.folders, *folder.files)
    ignored = [(name, _TEMPORARY) for name in names if _is_unfinished(name)]
    ignored += [(name, f"broken link: {aim} is not there") for name, aim in folder.broken_links]
    candidates = list(_candidates(folder))
    judged = map_in_threads(
        lambda one: _why_not(one[2]), candidates, AT_ONCE if folder.remote else 1
    )
    known = [one for one, reason in zip(candidates, judged, strict=True) if reason is None]
    series = _one_series(folder, [(name, said) for name, said, _ in known])
    found: dict[int, tuple[str, Folder]] = {}
    for (name, said, place), reason in zip(candidates, judged, strict=True):
        step, alike = said.step, series is None or said.family == series
        if step is None or not alike or reason is not None:
            unlike = "no checkpoint" if reason else "left out"
            ignored.append(
                (
                    name,
                    reason
                    if reason and alike
                    else f"{unlike}, nor named like the others"
                    if reason
                    else f"a checkpoint, but not named like the others ({series})",
                )
            )
        elif step in found:
            raise TrajectoryError(
                f"{folder.path} has two checkpoints for step {step}: {found[step][0]} and {name}. "
                "Move one away."
            )
        else:
            found[step] = (name, place)
    return {step: place for step, (_, place) in found.items()}, ignored


def _one_series(folder: Folder, known: Sequence[tuple[str, StepName]]) -> str | None:
    """Return the series whose checkpoints are a folder's trajectory, None where there are none.

    A few that have something behind the step (`step_300-merged`, `step_200 (copy)`) are variants of
    checkpoints of the series without it, and stay beside them.

    Raises:
      TrajectoryError: there are several, and none is the others' own.
    """
    sizes = Counter(said.family for _, said in known)
    plain = [said for _, said in known if not said.after]
    own = {said.family for said in plain}
    variants = {said.family for _, said in known if said.after} - own
    befores = {said.before for said in plain}
    if len(own) == 1 and all(sizes[variant] <= len(plain) for variant in variants):
        like = [said.before for _, said in known if said.family in variants]
        if all(before in befores for before in like):
            return own.pop()
    if len(sizes) > 1:
        raise TrajectoryError(
            f"{folder.path} has numbered checkpoints of several names: {', '.join(sorted(sizes))}. "
            "Put each series into a folder of its own. Or say which are one: "
            + manifest_of((name for name, _ in known), {name: said.step for name, said in known})
        )
    return next(iter(sizes), None)


def _candidates(folder: Folder) -> Iterator[tuple[str, StepName, Folder]]:
    """Yield (name, what it says, place) of each possible checkpoint that has a step."""
    known = checkpoints.listing()
    beside = [name for name in folder.files if name in known.beside]
    for name in (*folder.folders, *folder.files):
        said = step_name(known.stem(name))
        if said.step is None or _is_unfinished(name):
            continue
        if name in folder.folders:
            yield name, said, folder.child(name)
            continue
        more = beside if name.endswith(known.extensions) else known.shards(name, folder.files)
        yield name, said, folder.restricted_to(name, *more)


def _is_unfinished(name: str) -> bool:
    return bool(_UNFINISHED.fullmatch(name)) or matches(checkpoints.listing().unfinished, name)


def _why_not(place: Folder) -> str | None:
    """Return why a place is no checkpoint, or None where it is one."""
    try:
        if checkpoints.find_format(place) is not None:
            return None
        if place.broken_links:
            name, aim = place.broken_links[0]
            return f"incomplete: {name} is a broken link, {aim} is not there"
        return f"incomplete or unknown: {checkpoints.why_unknown(place)}"
    except CheckpointFormatError:
        # It is a checkpoint, and damaged: whoever opens it gets the error.
        return None


def _unnumbered(folder: Folder) -> list[str]:
    """Return the checkpoints directly in a folder whose names give no step."""
    known = checkpoints.listing()
    names = [
        name
        for name in (*folder.folders, *folder.files)
        if step_name(known.stem(name)).step is None
        and not (matches(known.interior, name) or _is_unfinished(name))
    ]

    def place(name: str) -> Folder:
        return folder.child(name) if name in folder.folders else folder.restricted_to(name)

    judged = map_in_threads(
        lambda name: _why_not(place(name)), names, AT_ONCE if folder.remote else 1
    )
    return [name for name, reason in zip(names, judged, strict=True) if reason is None]


def beside(folder: Folder, known: set[str]) -> list[tuple[str, str]]:
    """Return the checkpoints without a step that lie beside numbered ones, and were not named."""
    reason = "no step in its name: lies beside the numbered checkpoints"
    return [(name, reason) for name in _unnumbered(folder) if name not in known]


def _left_out(ignored: Sequence[tuple[str, str]]) -> str:
    """Return a sentence for what was left out: how many there are, and why the first one was."""
    name, reason = ignored[0]
    count = f"{len(ignored)} were left out, such as " if len(ignored) > 1 else "Left out: "
    return f"{count}{name} ({reason.rstrip('.')})."


def single(folder: Folder, ignored: Sequence[tuple[str, str]]) -> dict[int, Folder]:
    """Return a folder that is itself a checkpoint as a trajectory of one step."""
    if checkpoints.find_format(folder) is None:
        if unnumbered := [name for name in _unnumbered(folder) if name in folder.folders]:
            raise TrajectoryError(
                f"{folder.path} holds checkpoints whose names give no step: "
                f"{', '.join(unnumbered[:6])}. Open one of them. Or: " + manifest_of(unnumbered, {})
            )
        if ignored:
            raise TrajectoryError(f"{folder.path} holds no checkpoint. {_left_out(ignored)}")
        raise TrajectoryError(
            f"{folder.path} holds no checkpoint: no numbered one, and itself "
            f"{checkpoints.why_unknown(folder)}"
        )
    _refuse_several_files(folder)
    # A lone file may carry the number, or else the folder's own name.
    own = os.path.basename(folder.path.rstrip("/"))
    own = "" if folder.path.endswith(f"://{own}") else own  # a host's or a bucket's
    candidates = (*(folder.files if len(folder.files) == 1 else ()), own)
    numbers = [step_name(name).step or 0 for name in candidates if says_step(name)]
    return {numbers[0] if numbers else 0: folder}


def _refuse_several_files(folder: Folder) -> None:
    """Raise where files of weights have numbers in their names that may be steps, or shards."""
    known = checkpoints.listing()
    if any(matches(known.whole, name) for name in folder.files):
        return
    found: dict[str, list[str]] = {}
    for name in folder.files:
        numbered = re.fullmatch(r"(.*[^0-9.])(\d+)(\.\w+)", name)
        if (
            numbered
            and numbered[3] in known.extensions
            and not matches(known.interior, name[: numbered.end(2)])
        ):
            found.setdefault(numbered[1] + numbered[3], []).append(name)
    for names in found.values():
        if len(names) > 1 and _why_not(folder.restricted_to(*names)) is None:
            raise TrajectoryError(
                f"{folder.path} holds {', '.join(names[:6])}, and whether their numbers are steps "
                "their names do not say. " + manifest_of(names, {})
            )
