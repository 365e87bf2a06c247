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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from saturation import checkpoints
from saturation.checkpoints import Checkpoint, Folder
from saturation.checkpoints.fingerprint import fingerprint
from saturation.errors import CheckpointFormatError, TrajectoryError
from saturation.storage import hub_cache
from saturation.storage.parallel import AT_ONCE, map_in_threads
from saturation.storage.trust import shown_url
from saturation.trajectory.folder_steps import beside, numbered, single
from saturation.trajectory.step_names import StepName, manifest_of, step_name, thousands

CANONICAL, STORED = NAMES = ("canonical", "stored")


class Trajectory:
    """An ordered sequence of checkpoints, opened one by one when asked for.

    Attributes:
      path: where it lies.
      steps: the steps, ascending.
      ignored: (name, reason) of everything that looks like a checkpoint and was left out.
      expected: the steps that its manifest says there are, if it has one.
      remote: whether reading takes requests over a network, many of which should be under way.
      names: one of `NAMES`: what arrays are called.
    """

    def __init__(
        self,
        path: str,
        folders: Mapping[int, Folder],
        ignored: Sequence[tuple[str, str]] = (),
        expected: Sequence[int] = (),
        names: str = CANONICAL,
    ):
        self.path, self.names = shown_url(path), names
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
                self._opened[step] = checkpoints.open_checkpoint(
                    self._folders[step], step, self.names == STORED
                )
            return self._opened[step]

    def folder(self, step: int) -> Folder:
        """Return where the checkpoint of a step lies."""
        return self._folders[step]

    @property
    def format(self) -> str:
        """The name of the first checkpoint's format."""
        return self[self.steps[0]].format

    def open_all(self) -> None:
        """Open every checkpoint, several at once over a network.

        Raises:
          CheckpointFormatError: of the first that is damaged.
        """
        map_in_threads(self.__getitem__, self.steps, AT_ONCE if self.remote else 1)
        self._untie()

    def _untie(self) -> None:
        """Count a head that is tied at some steps and not at others at every step that stores it.

        All steps then have one set of parameters, or else stay as they were opened.
        """
        if len({frozenset(self[step].parameters) for step in self.steps}) == 1:
            return
        untied = {step: one() for step in self.steps if (one := self[step].untied) is not None}
        opened = self._opened | untied
        if untied and len({frozenset(opened[step].parameters) for step in self.steps}) == 1:
            self._opened = opened

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
        found = map_in_threads(self.fingerprint, self.steps, AT_ONCE if self.remote else 1)
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
        said = step_name(name)
        names = (os.path.basename(folder.path.rstrip("/")) for folder in self._folders.values())
        return said.step is not None and any(
            step_name(other).family == said.family for other in names
        )

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
        return Trajectory(self.path, folders, self.ignored, expected, self.names)

    def under(self, names: str) -> Trajectory:
        """Return the trajectory with its arrays under canonical names, or those on disk.

        Raises:
          TrajectoryError: `names` is none of `NAMES`.
        """
        if names not in NAMES:
            raise TrajectoryError(f"Names are {' or '.join(NAMES)}, not {names!r}.")
        return Trajectory(self.path, self._folders, self.ignored, self.expected, names)


def open_trajectory(
    path: str | os.PathLike[str],
    steps: str | Sequence[int] | None = None,
    names: str = CANONICAL,
) -> Trajectory:
    """Find the checkpoints in a folder, or wherever else they lie.

    Args:
      path: a folder with a checkpoint for each step, or one checkpoint, here or at a URL;
        `hf://ORG/REPO@PATTERN`, where each branch or tag that the pattern matches is a checkpoint;
        `hf://ORG/PATTERN`, where each repository is;
        a manifest (see `saturation.trajectory.manifest`), or the name of one that the package has.
      steps: which of them, as `Trajectory.select` takes it.
      names: "canonical", one scheme for every format, or "stored", those on disk.

    Returns:
      The trajectory.

    Raises:
      TrajectoryError: nothing or no checkpoint is there, two have one step, or a step is absent.
      ConfigError: a manifest that does not say what it must.
    """
    name = os.fspath(path)
    if not name or "\0" in name:
        raise TrajectoryError(f"{name!r} is no path: a folder, a file or a URL was expected.")
    try:
        return _find(name).select(steps).under(names)
    except CheckpointFormatError as error:
        raise TrajectoryError(str(error)) from error


def _find(path: str) -> Trajectory:
    if _is_listed(path):
        from saturation.trajectory.manifest import read_manifest

        places = read_manifest(path)
        if places.url is None:
            return _listed_trajectory(places.path, places.urls, (), places.expected)
        found = _find(places.url)
        return Trajectory(found.path, found._folders, found.ignored, places.expected)
    if path.startswith("hf://"):
        from saturation.storage import hub

        if hub.parse_url(path).names_several:
            return _revisions(path, hub.repositories(path), thousands)
        if hub.parse_url(path).is_pattern:
            return _revisions(path, hub.revisions(path))
    folder = checkpoints.open_folder(path)
    if hub_cache.is_cache(folder):
        return _cached(folder)
    folders, ignored = numbered(folder)
    if folders:
        ignored += beside(folder, {name for name, _ in ignored})
    else:
        folders = single(folder, ignored)
    return Trajectory(folder.path, folders, ignored)


def _cached(folder: Folder) -> Trajectory:
    """Return the trajectory of the revisions that lie in a cache of the Hugging Face hub."""
    found = hub_cache.revisions(folder)
    steps = {name: step_name(name).step for name in found.named}
    places = {step: found.named[name] for name, step in steps.items() if step is not None}
    ignored = list(found.left_out)
    families = {step_name(name).family for name, step in steps.items() if step is not None}
    if len(families) > 1 or len(places) < sum(step is not None for step in steps.values()):
        raise TrajectoryError(
            f"{folder.path} holds revisions of several names or two of one step. "
            + manifest_of((_snapshot(place) for place in found.named.values()), {})
        )
    ignored += [
        (name, "no step in its name: a revision beside the numbered ones")
        for name, step in steps.items()
        if places and step is None
    ]
    if not places and "main" in found.named:
        ignored += [(name, "no step in its name") for name in found.named if name != "main"]
        return Trajectory(folder.path, {0: found.named["main"]}, ignored)
    if not places and len(set(map(_snapshot, found.named.values()))) != 1:
        raise TrajectoryError(
            f"{folder.path} holds several revisions and no name that tells which is of which step. "
            + manifest_of({_snapshot(place) for place in found.named.values()}, {})
        )
    return Trajectory(folder.path, places or {0: next(iter(found.named.values()))}, ignored)


def _snapshot(place: Folder) -> str:
    return f"snapshots/{os.path.basename(place.path)}"


def _is_listed(path: str) -> bool:
    """Say whether a path is a manifest's, or else nothing here and the name of a known one.

    Raises:
      TrajectoryError: it is one word, and neither is here nor known.
    """
    if path.endswith((".yaml", ".yml")):
        return not os.path.isdir(path)
    if not re.fullmatch(r"[\w.-]+", path) or os.path.exists(path):
        return False
    from saturation.trajectory.manifest import known_trajectories

    known = list(known_trajectories())
    if path not in known and not any(
        os.path.exists(f"{path}{suffix}") for suffix, _ in checkpoints.listing().tables
    ):
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


def _revisions(
    path: str, urls: Mapping[str, str], said_by: Callable[[str], StepName] = step_name
) -> Trajectory:
    """Return the trajectory of revisions, or repositories, each under the step its name gives.

    Raises:
      TrajectoryError: no name gives a step, or they belong to several series.
    """
    numbers = {name: said_by(name) for name in urls}
    steps = {name: said.step for name, said in numbers.items() if said.step is not None}
    if not steps:
        raise TrajectoryError(
            f"{path} matches {', '.join(sorted(urls))}, of which none gives a step."
        )
    if len(families := sorted({numbers[name].family for name in steps})) > 1:
        raise TrajectoryError(
            f"{path} matches revisions of several names: {', '.join(families)}. "
            "Give the pattern of one."
        )
    places = {step: urls[name] for name, step in steps.items()}
    if len(places) < len(steps):
        raise TrajectoryError(
            f"{path} matches two revisions of one step: {', '.join(sorted(steps))}."
        )
    ignored = [(name, "no step in its name") for name in urls if name not in steps]
    return _listed_trajectory(path, places, ignored)


def _in_range(text: str, steps: Sequence[int], start_at: int) -> tuple[int, ...]:
    """Return the steps that START:STOP:EVERY selects; `start_at` stands for a START left out."""
    parts = text.split(":")
    if len(parts) > 3 or not all(re.fullmatch(r"\d{0,18}", part) for part in parts) or text == "":
        raise TrajectoryError(
            f"steps {text[:60]!r}: START:STOP:EVERY was expected, such as 0:100000:1000 or ::1000."
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
