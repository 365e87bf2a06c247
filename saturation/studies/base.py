"""What a study is: a paper's claims, what is simulated for each, and a verdict on each.

A study is cut into parts, one a setting and a seed. A part is written as soon as it is there, so
that a study that was stopped, or is asked for more seeds, computes only what is missing.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from saturation.errors import ArgumentError, Stopped
from saturation.plots.panels import Picture
from saturation.runtime.progress import Progress
from saturation.storage.write import Files, refuse_url

MOST_SEEDS, LARGEST_SEED = 10_000, 2**31 - 1  # JAX takes a seed of 32 bits without complaint

Part = Mapping[str, Any]  # {quantity: a number, a text or an array of either}
Stacked = Mapping[str, Shaped[np.ndarray, "seeds *shape"]]
Results = Mapping[Any, Stacked]  # {setting: {quantity: its value of each seed}}
Bounds = tuple[float, float]
Claimed = Literal["yes", "no", "conditional"]


@dataclass(frozen=True)
class Settings:
    """How a study is run.

    Attributes:
        seeds: how many; None: the study's own number.
        seed: the first; the others follow it one by one.
        full: whether the larger settings are simulated too.
        out: a local folder that keeps the parts; None: they are not kept.

    Raises:
        ArgumentError: there is no such number of seeds, or no such seed.
        ResultsError: `out` is a URL.
    """

    seeds: int | None = None
    seed: int = 0
    full: bool = False
    out: str | None = None

    def __post_init__(self) -> None:
        if self.seeds is not None and not 1 <= self.seeds <= MOST_SEEDS:
            raise ArgumentError(f"A study takes 1 to {MOST_SEEDS:,} seeds, not {self.seeds}.")
        if not 0 <= self.seed <= LARGEST_SEED - MOST_SEEDS:
            largest = LARGEST_SEED - MOST_SEEDS
            raise ArgumentError(f"A study's first seed is 0 to {largest:,}, not {self.seed}.")
        refuse_url(self.out or "", "study")


@dataclass(frozen=True)
class Row:
    """One prediction beside its measurement.

    Attributes:
        kind: a claim, or a control, which must miss the bounds of a claim.
        prediction: what is predicted, with its unit.
        setting: where it is measured.
        predicted: the number, or what is said in its place; "" where only bounds are given.
        measured: the mean over the seeds.
        spread: the standard deviation over the seeds (n − 1); NaN of one seed.
        seeds: how many.
        agrees_if: the bounds; "" where none are.
        agrees: "" where there are no bounds.
        claimed: by the paper; of a control always no.
    """

    kind: Literal["claim", "control"]
    prediction: str
    setting: str
    predicted: str
    measured: float
    spread: float
    seeds: int
    agrees_if: str
    agrees: Literal["yes", "no", ""]
    claimed: Claimed

    @property
    def fails(self) -> bool:
        """Whether a study fails by this row."""
        return self.agrees != "yes" and (self.kind == "control" or self.claimed == "yes")


def claim(
    prediction: str,
    setting: str,
    measured: Any,
    bounds: Bounds | None,
    predicted: str = "",
    claimed: Claimed = "yes",
) -> Row:
    """Return the row of a claim, which agrees where the mean over the seeds lies within the bounds.

    Args:
        prediction: what is predicted.
        setting: where it is measured.
        measured: a number, or one of each seed.
        bounds: lowest and highest, both included; None: nothing is predicted.
        predicted: the number, as text.
        claimed: no or conditional where the paper does not claim it, or we found it false.
    """
    values = np.atleast_1d(np.asarray(measured, np.float64))
    mean = float(values.mean())
    agrees_if, agrees = "", ""
    if bounds is not None:
        agrees_if, agrees = _within(*bounds), "yes" if bounds[0] <= mean <= bounds[1] else "no"
    return Row(
        kind="claim",
        prediction=prediction,
        setting=setting,
        predicted=predicted,
        measured=mean,
        spread=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        seeds=len(values),
        agrees_if=agrees_if,
        agrees=agrees,
        claimed=claimed,
    )


def control(
    prediction: str, setting: str, measured: Any, bounds: Bounds, predicted: str = ""
) -> Row:
    """Return the row of a control, which agrees where the mean misses the bounds of a claim.

    Arguments as of `claim`. What is no number misses nothing: such a control does not agree.
    """
    row = claim(prediction, setting, measured, bounds, predicted, "no")
    agrees = "yes" if row.agrees == "no" and not math.isnan(row.measured) else "no"
    return replace(row, kind="control", agrees_if=f"not {row.agrees_if}", agrees=agrees)


def _within(low: float, high: float) -> str:
    if math.isinf(low) or math.isinf(high):
        return f"≤ {high:.4g}" if math.isinf(low) else f"≥ {low:.4g}"
    return f"{low:.4g} to {high:.4g}"


@dataclass(frozen=True)
class Study:
    """A paper's claims, and how each is tested.

    Attributes:
        name: on the command line.
        title: in a few words.
        paper: authors, title, where, and its number at arXiv.
        reads: how to read the rows, and what is tested; a paragraph.
        parts: from the number of seeds and whether all is asked for (`full`) to {setting: how many
            seeds it takes}. A setting is a hashable value whose `repr` says all that its part
            depends on.
        simulate: from a setting and its seeds to a part of each seed, in order. Where it yields
            one after the other, a study that is stopped keeps what it has.
        judge: from all parts to the rows; quickly.
        pictures: from all parts to what is drawn; quickly.
        seeds: how many are taken where none are asked for.
        version: raised whenever `simulate` gives other numbers: parts of another are not read.
    """

    name: str
    title: str
    paper: str
    reads: str
    parts: Callable[[int, bool], Mapping[Any, int]]
    simulate: Callable[[Any, Sequence[int]], Iterable[Part]]
    judge: Callable[[Results], Iterable[Row]]
    pictures: Callable[[Results], Iterable[Picture]]
    seeds: int
    version: int = 1

    def run(
        self,
        settings: Settings | None = None,
        progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> StudyResult:
        """Simulate what is missing of the parts, and judge all of them.

        Args:
            settings: seeds and where parts are kept.
            progress: told of every part.
            stop: set from outside to stop after the part at hand.

        Raises:
            ResultsError: the folder cannot be written.
            Stopped: `stop` was set; the same settings go on from there.
        """
        settings = settings or Settings()
        progress = progress or Progress("", "parts", quiet=True)
        results = self._results(settings, progress, stop or threading.Event())
        return StudyResult(
            self, settings, tuple(self.judge(results)), tuple(self.pictures(results))
        )

    def _results(self, settings: Settings, progress: Progress, stop: threading.Event) -> Results:
        kept = _Parts(settings.out)
        plan = {
            setting: range(settings.seed, settings.seed + count)
            for setting, count in self.parts(settings.seeds or self.seeds, settings.full).items()
        }
        names = {(s, seed): self._part_name(s, seed) for s, seeds in plan.items() for seed in seeds}
        found = {key: part for key, name in names.items() if (part := kept.read(name)) is not None}
        progress.start(len(names), len(found))
        for setting, seeds in plan.items():
            missing = [seed for seed in seeds if (setting, seed) not in found]
            simulated = self.simulate(setting, missing) if missing else ()
            for seed, part in zip(missing, simulated, strict=True):
                found[setting, seed] = kept.write(names[setting, seed], part)
                progress.advance(1)
                if stop.is_set() and len(found) < len(names):
                    raise Stopped(
                        f"The study {self.name} was stopped with {len(found)} of {len(names)} "
                        "parts; run the same command again to go on."
                    )
        return {s: _stack([found[s, seed] for seed in seeds]) for s, seeds in plan.items()}

    def _part_name(self, setting: Any, seed: int) -> str:
        """Return a name that a part of another study, version or setting does not have."""
        said = f"{self.name} {self.version} {setting!r}"
        return f"parts/{hashlib.sha256(said.encode()).hexdigest()[:16]}-{seed}.npz"


class _Parts:
    """The parts in a folder; without one nothing is kept."""

    def __init__(self, out: str | None) -> None:
        self._folder = None if out is None else Files(out)

    def read(self, name: str) -> Part | None:
        """Return a part, or None where there is none or a damaged one."""
        content = None if self._folder is None else self._folder.read(name)
        if content is None:
            return None
        try:
            with np.load(io.BytesIO(content)) as file:
                return dict(file)
        except (ValueError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, name: str, part: Part) -> Part:
        """Write a part whole and return it as it would be read."""
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in part.items()}
        if self._folder is not None:
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, **arrays)
            self._folder.write(name, content.getvalue())
        return arrays


def in_proportion(
    counts: Mapping[Any, int], seeds: int
) -> Callable[[int, bool], Mapping[Any, int]]:
    """Return the `parts` of a study whose settings take different numbers of seeds.

    Args:
        counts: {setting: seeds that it takes of a study with its own number}; with others it takes
            as many in proportion, and twice as many where all is asked for.
        seeds: the study's own number.
    """
    return lambda asked, full: {
        setting: max(1, round(count * asked / seeds)) * (2 if full else 1)
        for setting, count in counts.items()
    }


def _stack(parts: Sequence[Part]) -> Stacked:
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class StudyResult:
    """What a study found: its rows, and its pictures as data."""

    study: Study
    settings: Settings
    rows: tuple[Row, ...]
    pictures: tuple[Picture, ...] = field(repr=False)

    @property
    def failed(self) -> list[Row]:
        """The rows by which the study fails: no claimed claim and no control may be among them."""
        return [row for row in self.rows if row.fails]

    @property
    def table(self) -> pd.DataFrame:
        """A row a prediction: `study` and the fields of `Row`, in order."""
        rows = [{"study": self.study.name, **asdict(row)} for row in self.rows]
        return pd.DataFrame(rows, columns=["study", *(one.name for one in fields(Row))])
