"""The state of a run: what is there, may a command join it, and what is left to do."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saturation.errors import ResultsError
from saturation.measures import MEASURES, find_measures
from saturation.measures.base import ActivationMeasure, GroupMeasure, Measure, ModelShapes
from saturation.results.folder import RUN_FILE, RunFolder
from saturation.results.parts import ACTIVATIONS, read_part
from saturation.results.seal import LAYOUT, SEAL, seal_of
from saturation.results.settings import comparable, flat

IDENTITY = "files"  # what the fingerprints in `run.json` are taken of
Span = tuple[int, int]  # the first and the last step of a part


@dataclass(frozen=True)
class Status:
    """How much of a run is there.

    Attributes:
      present, expected: {measure: number of (array, step) pairs, or of steps for activations}.
      missing: {measure: the arrays or groups that lack some step, or the steps that lack}.
      former: what another version of a measure wrote, in words, which is not read; "" for nothing.
      unrecorded: what the version that wrote the run did not record, in words; "" for nothing.
    """

    present: dict[str, int]
    expected: dict[str, int]
    missing: dict[str, list[str]]
    former: str = ""
    unrecorded: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON holds them, and `complete`."""
        return {**dataclasses.asdict(self), "complete": self.complete}

    @property
    def complete(self) -> bool:
        """Whether nothing that was asked for is missing."""
        return not any(self.missing.values())


def open_run(path: str | os.PathLike[str]) -> RunState:
    """Return the state of the run at a path or URL.

    Raises:
      ResultsError: there is none, or another version wrote what this one cannot read.
    """
    state = RunState.read(RunFolder(path))
    if not state.found:
        raise ResultsError(
            f"{state.folder.path} holds no run: there is no run.json. "
            "Write one with `saturation measure TRAJECTORY --measures norms --out RUN`."
        )
    return state


@dataclass(frozen=True)
class RunState:
    """What a run folder held when it was read.

    Attributes:
      folder: where it lies.
      found: `run.json`; empty where there is none.
      described: the same, or what it is to be.
      parts: {(measure, key): the spans of its parts}, ascending.
    """

    folder: RunFolder
    found: Mapping[str, Any]
    described: Mapping[str, Any]
    parts: Mapping[tuple[str, str], Sequence[Span]]

    @classmethod
    def read(cls, folder: RunFolder) -> RunState:
        """Return the state of a folder.

        Raises:
          ResultsError: it holds what this version cannot use: another's run, an edited one.
        """
        found = folder.read_description() or {}
        if found:
            _refuse_other_versions(folder, found)
        return cls(folder, found, found, folder.parts())

    # What is there?

    @property
    def measures(self) -> list[Measure]:
        """The measures of the run that are this version's.

        What a metric means may differ between versions of a measure (CHANGELOG.md, *Breaking*), so
        that their numbers are never put into one table.
        """
        asked = find_measures(self.described["measures"])
        return [measure for measure in asked if self._version(measure) == measure.version]

    def _version(self, measure: Measure) -> int:
        return self.described.get("versions", {}).get(measure.name, 1)

    @property
    def former(self) -> str:
        """Which measures of the run another version of them wrote, in words; "" for none."""
        return "; ".join(
            f"{measure.name} is of version {self._version(measure)}, and this is {measure.version}"
            for measure in find_measures(self.described["measures"])
            if self._version(measure) != measure.version
        )

    @property
    def unrecorded(self) -> str:
        """What the version that wrote the run did not record, in words; "" for nothing."""
        lacking = []
        if self.described.get("identity_of") != IDENTITY:
            lacking.append("no fingerprint of every checkpoint")
        if self.described.get("layout", 1) < LAYOUT:
            lacking.append("no seal of any part, so that its parts are unverified")
        if not lacking:
            return ""
        return f"a former version wrote this run, which has {' and '.join(lacking)}"

    def keys(self, measure: Measure) -> Mapping[str, Sequence[str]]:
        """Return what the parts of a measure are filed under, and what each of them holds."""
        if isinstance(measure, ActivationMeasure):
            return {ACTIVATIONS: (ACTIVATIONS,)}
        if isinstance(measure, GroupMeasure):
            shapes = ModelShapes.of_run(self.described)
            return {group: (group,) for group in measure.groups(shapes)}
        return self.described["bundles"]

    def read_parts(self, measure: Measure) -> Iterator[tuple[str, Span, dict[str, np.ndarray]]]:
        """Yield key, span and columns of each part of a measure that has a step of the run.

        Raises:
          ResultsError: a part is not what it stands for.
        """
        for key in self.keys(measure):
            for span in self.parts.get((measure.name, key), ()):
                if any(span[0] <= step <= span[1] for step in self.described["steps"]):
                    yield key, span, read_part(self.folder, self.described, measure, key, span)

    def verify(self, measures: Sequence[Measure]) -> None:
        """Read every part of these measures, each of which must be what it stands for."""
        # One after the other: where several processes share a run, they read it together.
        for measure in measures:
            for _ in self.read_parts(measure):
                pass

    def status(self, verified: bool = False) -> Status:
        """Return what is there and what is missing, by the parts' names; `verified`, read too."""
        if verified:
            self.verify(self.measures)
        steps = self.described["steps"]
        present, expected, missing = {}, {}, {}
        for measure in self.measures:
            lacking = {
                name: self.missing(measure, key, steps)
                for key, names in self.keys(measure).items()
                for name in names
            }
            expected[measure.name] = len(steps) * len(lacking)
            present[measure.name] = expected[measure.name] - sum(map(len, lacking.values()))
            if isinstance(measure, ActivationMeasure):
                missing[measure.name] = [f"step {steps[i]}" for i in lacking[ACTIVATIONS]]
            else:
                missing[measure.name] = [name for name, positions in lacking.items() if positions]
        return Status(present, expected, missing, self.former, self.unrecorded)

    # What is left?

    def missing(self, measure: Measure, key: str, steps: Sequence[int]) -> list[int]:
        """Return the positions of the steps that no part of a measure has under a key."""
        spans = self.parts.get((measure.name, key), ())
        return [
            position
            for position, step in enumerate(steps)
            if not any(start <= step <= stop for start, stop in spans)
        ]

    # May a command join?

    def joined(self, asked: Mapping[str, Any]) -> RunState:
        """Return the state with a `run.json` that has what is asked for too, not written yet.

        A run can be asked for more measures, and for more steps behind the ones it has.

        Args:
          asked: `run.json` as a command would begin it.

        Raises:
          ResultsError: the run is of another trajectory, of other steps, arrays or settings, or of
            a version that recorded less.
        """
        found = self.found
        if not found:
            return dataclasses.replace(self, described=asked)
        self._refuse_former()
        self._refuse_other_trajectory(asked)
        self._refuse_other_arrays(asked)
        for key, what in (
            ("activations", "tokens or settings"),
            ("corpus", "common and distinct tokens"),
            ("loss", "objective"),
        ):
            if key in found and key in asked:
                self._refuse_other_settings(what, found[key], asked[key])
        described = {
            **asked,
            **found,
            "steps": max(found["steps"], asked["steps"], key=len),
            "identity": {**asked["identity"], **found["identity"]},
            "measures": list(dict.fromkeys([*found["measures"], *asked["measures"]])),
            "versions": {
                **dict.fromkeys(found["measures"], 1),
                **found.get("versions", {}),
                **asked["versions"],
            },
        }
        return dataclasses.replace(self, described=described)

    def write(self) -> None:
        """Write `run.json`, where it is not the one that is there."""
        if self.described != self.found:
            self.folder.write_run_json(dict(self.described))

    def _refuse_former(self) -> None:
        path = self.folder.path
        if self.unrecorded:
            raise ResultsError(
                f"{path}: {self.unrecorded}, so that nothing can be added to it; measure into a "
                "new folder with another --out."
            )
        if self.former:
            raise ResultsError(
                f"{path} holds what another version of a measure wrote ({self.former}), and "
                "numbers of two versions are not mixed. Choose another --out."
            )

    def _refuse_other_trajectory(self, asked: Mapping[str, Any]) -> None:
        for step, expected in self.described["identity"].items():
            if asked["identity"].get(step, expected) != expected:
                raise ResultsError(
                    f"{self.folder.path} holds the run of another trajectory, "
                    f"{self.described['trajectory']}: its checkpoint {step} is not the one in "
                    f"{asked['trajectory']}. Choose another --out."
                )

    def _refuse_other_arrays(self, asked: Mapping[str, Any]) -> None:
        have, want = self.described["steps"], list(asked["steps"])
        if have[: len(want)] != want and want[: len(have)] != have:
            raise ResultsError(
                f"{self.folder.path} was measured at steps {_span(have)}, which the selected "
                f"{_span(want)} do not continue; choose another --out, or the same --steps."
            )
        arrays = self.described["arrays"]
        if list(arrays) != list(asked["arrays"]):
            raise ResultsError(
                f"{self.folder.path} was measured over {len(arrays)} arrays, and this command asks "
                f"for {len(asked['arrays'])}; choose another --out, or the same --common-arrays."
            )

    def _refuse_other_settings(
        self, what: str, found: Mapping[str, Any], asked: Mapping[str, Any]
    ) -> None:
        """Raise where numbers would differ; the same ids may come from files of other names."""
        if comparable(found) != comparable(asked):
            have, want = flat(found), flat(asked)
            differ = [key for key in {**have, **want} if have.get(key) != want.get(key)]
            said = (
                f"{key} {have.get(key, 'unknown')} there, {want.get(key, 'unknown')} here"
                for key in differ
            )
            raise ResultsError(
                f"{self.folder.path} was measured on other {what} than this command's: "
                f"{'; '.join(said)}. Choose another --out, or the same ones."
            )


def _span(steps: Sequence[int]) -> str:
    return f"{steps[0]} … {steps[-1]} ({len(steps)} of them)"


def _refuse_other_versions(folder: RunFolder, described: Mapping[str, Any]) -> None:
    """Raise `ResultsError` where this version cannot use a `run.json`: another's, an edited one."""
    where = f"{folder.path}/{RUN_FILE}"
    lacking = [key for key in ("steps", "arrays", "bundles") if key not in described]
    if lacking:
        raise ResultsError(
            f"{where} has no {' and no '.join(f'`{key}`' for key in lacking)}: "
            "another version of saturation wrote it. Measure into a new folder."
        )
    layout = described.get("layout", 1)
    if not isinstance(layout, int) or not 1 <= layout <= LAYOUT:
        raise ResultsError(
            f"{where} is of layout {str(layout)[:40]!r}, and this version reads layouts up to "
            f"{LAYOUT}; read the run with the version that wrote it."
        )
    if (layout >= 2 and described.get(SEAL) != seal_of(described)) or not _is_whole(described):
        raise ResultsError(
            f"{where} was edited or damaged: it is not what `saturation measure` wrote. Restore "
            "it, or measure into a new folder."
        )
    unknown = [name for name in described["measures"] if name not in MEASURES]
    if unknown:
        raise ResultsError(
            f"{folder.path} holds {', '.join(map(str, unknown))}, which this version of saturation "
            f"does not measure; it has {', '.join(MEASURES)}. Read the run with the version that "
            "wrote it."
        )


def _is_whole(described: Mapping[str, Any]) -> bool:
    """Whether what is read of a `run.json` has the kinds that it must have."""
    steps, arrays, bundles = (described[key] for key in ("steps", "arrays", "bundles"))
    measures, versions = described["measures"], described.get("versions", {})
    identity = described.get("identity", {})
    return (
        isinstance(steps, list)
        and bool(steps)
        and all(type(step) is int and 0 <= step < 2**63 for step in steps)
        and steps == sorted(set(steps))
        and isinstance(arrays, dict)
        and all(_is_array(array) for array in arrays.values())
        and isinstance(bundles, dict)
        and all(isinstance(names, list) for names in bundles.values())
        and sorted(str(name) for names in bundles.values() for name in names) == sorted(arrays)
        and isinstance(measures, list)
        and bool(measures)
        and all(isinstance(name, str) for name in measures)
        and all(isinstance(one, dict) for one in (versions, identity))
    )


def _is_array(array: Any) -> bool:
    shape = array.get("shape") if isinstance(array, dict) else None
    return isinstance(shape, list) and all(
        type(size) is int and 0 <= size < 2**63 for size in shape
    )
