"""A folder of checkpoints as an ordered sequence of (step, checkpoint).

The steps are found by the numbers that names end with, whatever stands before them:
`checkpoint_1000`, `1000`, `step_1000`, `step1000`, `run-0001000`. Unfinished writes and what no
format knows are left out and listed in `Trajectory.ignored`, with the reason.
"""

from __future__ import annotations

import difflib
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saturation import checkpoints
from saturation.checkpoints import Checkpoint, Folder
from saturation.checkpoints.fingerprint import fingerprint
from saturation.checkpoints.parallel import AT_ONCE, each
from saturation.errors import CheckpointFormatError, TrajectoryError

# A number at the end, after nothing, letters, or a separator.
_STEP = re.compile(r"(?P<family>(?:.*[^0-9])?)(?P<step>\d{1,18})")
# Numbered things that lie inside one checkpoint.
_INTERIOR = re.compile(r"ocdbt\.process_\d+|process_\d+|.*-\d+-of-\d+|(target|state|params)\..*")
_UNFINISHED = re.compile(r".*(\.orbax-checkpoint-tmp(-\d+)?|\.tmp-\d+|_tmp|\.tmp|\.partial)")


class Trajectory:
    """An ordered sequence of checkpoints, opened one by one when asked for.

    Attributes:
      path: where it lies.
      steps: the steps, ascending.
      ignored: (name, reason) of everything that looks like a checkpoint and was left out.
      expected: the steps that its manifest says there are, if it has one.
      remote: whether reading takes requests over a network, many of which should be under way.
    """

    def __init__(
        self,
        path: str,
        folders: Mapping[int, Folder],
        ignored: Sequence[tuple[str, str]] = (),
        expected: Sequence[int] = (),
    ):
        self.path = path
        self.steps = tuple(sorted(folders))
        self.ignored, self.expected = tuple(ignored), tuple(expected)
        self.remote = any(folder.remote for folder in folders.values())
        self._folders = dict(folders)
        self._opened: dict[int, Checkpoint] = {}
        self._locks = {step: threading.Lock() for step in folders}

    def __repr__(self) -> str:
        return f"<Trajectory {self.path}: {len(self)} checkpoints, steps {_listed(self.steps)}>"

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Checkpoint]:
        return (self[step] for step in self.steps)

    def __getitem__(self, step: int) -> Checkpoint:
        if step not in self._folders:
            raise TrajectoryError(_absent(self.path, [step], self.steps))
        with self._locks[step]:
            if step not in self._opened:
                self._opened[step] = checkpoints.open_checkpoint(self._folders[step], step)
            return self._opened[step]

    @property
    def format(self) -> str:
        """The name of the first checkpoint's format."""
        return self[self.steps[0]].format

    def open_all(self) -> None:
        """Open every checkpoint, several at once over a network.

        Raises:
          CheckpointFormatError: of the first that is damaged.
        """
        each(self.__getitem__, self.steps, AT_ONCE if self.remote else 1)

    def digests(self, step: int) -> tuple[tuple[str, str], ...] | None:
        """Return (name, hash) of a step's files where the place keeps hashes itself, or None."""
        folder = self._folders[step]
        pairs = tuple((name, folder.digest(name)) for name in folder.files)
        known = tuple((name, digest) for name, digest in pairs if digest is not None)
        return known if known and len(known) == len(pairs) else None

    def fingerprint(self, step: int) -> str:
        """Return a hash by which the checkpoint of a step is known again, see `fingerprint`."""
        return fingerprint(self._folders[step], self[step])

    def fingerprints(self) -> dict[int, str]:
        """Return the fingerprint of every step, several at once over a network."""
        found = each(self.fingerprint, self.steps, AT_ONCE if self.remote else 1)
        return dict(zip(self.steps, found, strict=True))

    def refuse_changed(self, steps: Sequence[int] = (), unwatched: bool = False) -> None:
        """Raise where a checkpoint on a disk is not what it was when it was opened.

        Args:
          steps: which; all by default.
          unwatched: look only at those that another library reads; each read of ours looks itself.

        Raises:
          CheckpointFormatError: the first that changed, by its step and file.
        """
        for step in steps or self.steps:
            if path := self._folders[step].changed(unwatched):
                raise CheckpointFormatError(
                    f"{self.path}: the checkpoint of step {step} changed while it was measured: "
                    f"{path} is not what it was when it was opened. Measure a trajectory that "
                    "nobody writes to any more, into a new folder."
                )

    def is_checkpoint_name(self, name: str) -> bool:
        """Whether a folder of this name, beside the checkpoints, would be taken for one."""
        family, step = _numbers(name)
        names = (os.path.basename(folder.path.rstrip("/")) for folder in self._folders.values())
        return step is not None and any(_numbers(other)[0] == family for other in names)

    def select(self, steps: str | Sequence[int] | None) -> Trajectory:
        """Return the trajectory of only some steps.

        Args:
          steps: None for all; `"START:STOP:EVERY"`, STOP included and each part optional; or the
            steps themselves.

        Raises:
          TrajectoryError: a step asked for is absent, or nothing is left.
        """
        if steps is None:
            return self
        expected: tuple[int, ...] = ()
        if isinstance(steps, str):
            wanted = _in_range(steps, self.steps, self.steps[0])
            # Of the steps that there should be, those that were asked for.
            expected = _in_range(steps, self.expected, self.steps[0])
        else:
            wanted = tuple(steps)
        if absent := [step for step in wanted if step not in self._folders]:
            raise TrajectoryError(_absent(self.path, absent, self.steps))
        if not wanted:
            raise TrajectoryError(
                f"{self.path}: no step is in {steps!r}; there are {_listed(self.steps)}."
            )
        folders = {step: self._folders[step] for step in wanted}
        return Trajectory(self.path, folders, self.ignored, expected)


def open_trajectory(
    path: str | os.PathLike[str], steps: str | Sequence[int] | None = None
) -> Trajectory:
    """Find the checkpoints in a folder, or wherever else they lie.

    Args:
      path: a folder with a checkpoint for each step, or one checkpoint, here or at a URL;
        `hf://ORG/REPO@PATTERN`, where each branch or tag that the pattern matches is a checkpoint;
        a manifest (see `saturation.manifest`), or the name of one that the package has.
      steps: which of them, as `Trajectory.select` takes it.

    Returns:
      The trajectory.

    Raises:
      TrajectoryError: nothing or no checkpoint is there, two have one step, or a step is absent.
      ConfigError: a manifest that does not say what it must.
    """
    try:
        return _find(os.fspath(path)).select(steps)
    except CheckpointFormatError as error:
        raise TrajectoryError(str(error)) from error


def _find(path: str) -> Trajectory:
    if _is_listed(path):
        from saturation.manifest import read_manifest

        places = read_manifest(path)
        if places.url is None:
            return _listed_trajectory(places.path, places.urls, (), places.expected)
        found = _find(places.url)
        return Trajectory(found.path, found._folders, found.ignored, places.expected)
    if path.startswith("hf://"):
        from saturation.checkpoints import hub

        if hub.parse_url(path).is_pattern:
            return _revisions(path, hub.revisions(path))
    folder = checkpoints.open_folder(path)
    folders, ignored = _numbered(folder)
    if folders:
        ignored += _beside(folder)
    else:
        folders = _single(folder, ignored)
    return Trajectory(folder.path, folders, ignored)


def _is_listed(path: str) -> bool:
    """Say whether a path is a manifest's, or else nothing here and the name of a known one.

    Raises:
      TrajectoryError: it is one word, and neither is here nor known.
    """
    if path.endswith((".yaml", ".yml")):
        return True
    if not re.fullmatch(r"[\w.-]+", path) or os.path.exists(path):
        return False
    from saturation.manifest import known_trajectories

    known = list(known_trajectories())
    if path not in known and not os.path.exists(f"{path}.index"):
        near = difflib.get_close_matches(path, known, n=1)
        raise TrajectoryError(
            f"{path}: no such folder or file, nor the name of a known trajectory"
            + (f"; the nearest of those is {near[0]}." if near else ".")
        )
    return path in known


def _listed_trajectory(
    path: str,
    urls: Mapping[int, str],
    ignored: Sequence[tuple[str, str]] = (),
    expected: Sequence[int] = (),
) -> Trajectory:
    """Return the trajectory whose checkpoints lie at these URLs, without asking for any of them."""
    shared: dict[str, Any] = {}
    folders = {step: checkpoints.open_folder(url, shared) for step, url in urls.items()}
    return Trajectory(path, folders, ignored, expected)


def _revisions(path: str, urls: Mapping[str, str]) -> Trajectory:
    """Return the trajectory of a repository's revisions, each under the number its name ends with.

    Raises:
      TrajectoryError: no name ends with a number, or they belong to several series.
    """
    numbers = {name: _numbers(name) for name in urls}
    steps = {name: step for name, (_, step) in numbers.items() if step is not None}
    if not steps:
        raise TrajectoryError(
            f"{path} matches {', '.join(sorted(urls))}, of which none ends with a step's number."
        )
    if len(families := sorted({numbers[name][0] for name in steps})) > 1:
        raise TrajectoryError(
            f"{path} matches revisions of several names: "
            + ", ".join(f"{family}*" for family in families)
            + ". Give the pattern of one."
        )
    places = {step: urls[name] for name, step in steps.items()}
    if len(places) < len(steps):
        raise TrajectoryError(
            f"{path} matches two revisions of one step: {', '.join(sorted(steps))}."
        )
    ignored = [(name, "no step in its name") for name in urls if name not in steps]
    return _listed_trajectory(path, places, ignored)


def _numbered(folder: Folder) -> tuple[dict[int, Folder], list[tuple[str, str]]]:
    """Return the numbered checkpoints directly in a folder, and what was left out and why."""
    found: dict[int, tuple[str, str, Folder]] = {}
    ignored: list[tuple[str, str]] = []
    unknown: list[tuple[str, str, str]] = []
    candidates = list(_candidates(folder))
    numbered = [
        (name, place)
        for name, _, step, place in candidates
        if step is not None and not _UNFINISHED.fullmatch(name)
    ]
    judged = each(lambda one: _why_not(one[1]), numbered, AT_ONCE if folder.remote else 1)
    reasons = {name: reason for (name, _), reason in zip(numbered, judged, strict=True)}
    for name, family, step, place in candidates:
        if _UNFINISHED.fullmatch(name):
            ignored.append((name, "temporary: its writer did not finish"))
            continue
        if step is None:
            continue
        reason = reasons[name]
        if reason is not None:
            unknown.append((name, family, reason))
        elif step in found:
            raise TrajectoryError(
                f"{folder.path} has two checkpoints for step {step}: {found[step][0]} and {name}. "
                "Move one away."
            )
        else:
            found[step] = (name, family, place)
    families = sorted({family for _, family, _ in found.values()})
    for name, family, reason in unknown:
        alike = not families or family in families
        ignored.append((name, reason if alike else "no checkpoint, nor named like the others"))
    if len(families) > 1:
        raise TrajectoryError(
            f"{folder.path} has numbered checkpoints of several names: "
            + ", ".join(f"{family}*" for family in families)
            + ". Put each series into a folder of its own."
        )
    return {step: place for step, (_, _, place) in found.items()}, ignored


def _candidates(folder: Folder) -> Iterator[tuple[str, str, int | None, Folder]]:
    """Yield (name, what stands before the number, number, place) for each possible checkpoint."""
    for name in folder.folders:
        yield name, *_numbers(name), folder.child(name)
    for name in folder.files:
        # Of TensorFlow's several files for a checkpoint the table has the number.
        stem = name.removesuffix(".index")
        shards = [other for other in folder.files if other.startswith(f"{stem}.data-")]
        yield name, *_numbers(stem), folder.only(name, *(shards if stem != name else ()))


def _numbers(name: str) -> tuple[str, int | None]:
    found = _STEP.fullmatch(name)
    if not found or _INTERIOR.fullmatch(name):
        return name, None
    return found["family"], int(found["step"])


def _why_not(place: Folder) -> str | None:
    """Return why a place is no checkpoint, or None where it is one."""
    try:
        known = checkpoints.find_format(place) is not None
        return None if known else f"incomplete or unknown: {checkpoints.why_unknown(place)}"
    except CheckpointFormatError:
        # It is a checkpoint, and damaged: whoever opens it gets the error.
        return None


def _beside(folder: Folder) -> list[tuple[str, str]]:
    """Return the weights without a number that lie beside numbered checkpoints."""
    own = [name for name in folder.files if _numbers(name.removesuffix(".index"))[1] is None]
    reason = "no step in its name: lies beside the numbered checkpoints"
    return [
        (name, reason)
        for name in own
        if not (_INTERIOR.fullmatch(name) or _UNFINISHED.fullmatch(name))
        and _why_not(folder.only(name)) is None
    ]


def _single(folder: Folder, ignored: Sequence[tuple[str, str]]) -> dict[int, Folder]:
    """Return a folder that is itself a checkpoint as a trajectory of one step."""
    if checkpoints.find_format(folder) is None:
        left_out = "; ".join(f"{name} ({reason})" for name, reason in ignored)
        looked = checkpoints.why_unknown(folder)
        raise TrajectoryError(
            f"{folder.path} holds no checkpoint"
            + (f". Left out: {left_out}. " if left_out else ": no numbered one, and itself ")
            + (looked if not left_out else "")
        )
    # A lone file may carry the number, or else the folder's own name.
    own = os.path.basename(folder.path.rstrip("/"))
    own = "" if folder.path.endswith(f"://{own}") else own  # a host's or a bucket's
    candidates = (*(folder.files if len(folder.files) == 1 else ()), own)
    numbers = [step for name in candidates if (step := _numbers(name)[1]) is not None]
    return {numbers[0] if numbers else 0: folder}


def _in_range(text: str, steps: Sequence[int], start_at: int) -> tuple[int, ...]:
    """Return the steps that START:STOP:EVERY selects; `start_at` stands for a START left out."""
    parts = text.split(":")
    if len(parts) > 3 or any(part and not part.isdecimal() for part in parts) or text == "":
        raise TrajectoryError(
            f"steps {text!r}: START:STOP:EVERY was expected, such as 0:100000:1000 or ::1000."
        )
    if len(parts) == 1:
        return (int(text),)
    start, stop, every = (int(part) if part else None for part in (*parts, "")[:3])
    if every == 0:
        raise TrajectoryError(f"steps {text!r}: EVERY must be at least 1.")
    first = start_at if start is None else start
    return tuple(
        step
        for step in steps
        if step >= first
        and (stop is None or step <= stop)
        and (every is None or (step - first) % every == 0)
    )


def _absent(path: str, absent: Sequence[int], steps: Sequence[int]) -> str:
    nearest = {min(steps, key=lambda step: abs(step - missing)) for missing in absent}
    return (
        f"{path} has no checkpoint for step {_listed(absent)}; the nearest it has is "
        f"{_listed(sorted(nearest))}."
    )


def _listed(steps: Sequence[int], most: int = 6) -> str:
    if len(steps) <= most:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[: most - 1]))}, … {steps[-1]}"
