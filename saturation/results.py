"""The results of a run as one long table: statistics on disk, combined into scopes when read.

The table has one row a value: `step` int64, `measure`, `metric`, `scope` (strings), `value` float64
and `previous_step` (Int64, empty for a measure of one checkpoint).
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.errors import ResultsError
from saturation.measures import find_measures
from saturation.measures.base import ArrayInfo, WeightMeasure
from saturation.runfolder import RunFolder, part_name
from saturation.scopes import is_kernel, scopes

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("step", "measure", "metric", "scope", "value", "previous_step")


@dataclass(frozen=True)
class Status:
    """How much of a run is there.

    Attributes:
      present, expected: {measure: number of (array, step) pairs}.
      missing: {measure: names of the arrays that lack some step}.
    """

    present: dict[str, int]
    expected: dict[str, int]
    missing: dict[str, list[str]]

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON holds them, and `complete`."""
        return {**dataclasses.asdict(self), "complete": self.complete}

    @property
    def complete(self) -> bool:
        """Whether nothing that was asked for is missing."""
        return not any(self.missing.values())


def load_results(run: str | Any, partial: bool = False) -> pd.DataFrame:
    """Return the table of a run.

    Args:
      run: the run's folder or URL.
      partial: read an incomplete run too; scopes that lack an array at some step lack that row.

    Raises:
      ResultsError: there is no run, or it is incomplete (named by what is missing).
    """
    import pandas as pd

    folder = RunFolder(run)
    described = describe(folder)
    found = status(folder)
    if not (found.complete or partial):
        raise ResultsError(_incomplete(folder.path, found))
    frames = [
        _measure_table(folder, described, measure)
        for measure in find_measures(described["measures"])
    ]
    return pd.concat(frames, ignore_index=True)


def describe(folder: RunFolder) -> dict[str, Any]:
    """Return what `run.json` says.

    Raises:
      ResultsError: there is none.
    """
    described = folder.description()
    if described is None:
        raise ResultsError(
            f"{folder.path} holds no run: there is no run.json. "
            "Write one with `saturation measure TRAJECTORY --measures norms --out RUN`."
        )
    return described


def status(folder: RunFolder) -> Status:
    """Return what of a run is there and what is missing."""
    described = describe(folder)
    steps, parts = described["steps"], folder.parts()
    present, expected, missing = {}, {}, {}
    for measure in find_measures(described["measures"]):
        counts = {
            name: len(steps) - len(missing_positions(steps, parts.get((measure.name, name), [])))
            for name in described["arrays"]
        }
        present[measure.name] = sum(counts.values())
        expected[measure.name] = len(steps) * len(counts)
        missing[measure.name] = [name for name, count in counts.items() if count < len(steps)]
    return Status(present, expected, missing)


def missing_positions(steps: Sequence[int], ranges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the positions of the steps that lie in no range (first step, last step)."""
    return [
        position
        for position, step in enumerate(steps)
        if not any(start <= step <= stop for start, stop in ranges)
    ]


def write_part(
    folder: RunFolder,
    measure: str,
    array: str,
    steps: Sequence[int],
    statistics: dict[str, np.ndarray],
) -> None:
    """Write one array's statistics at consecutive selected steps, {statistic: float64 (steps,)}."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"step": np.asarray(steps, np.int64), **statistics}
    table = pa.table(columns, metadata={"measure": measure, "array": array})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    folder.write(part_name(measure, array, steps[0], steps[-1]), buffer.getvalue())


def _read_part(folder: RunFolder, name: str) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = folder.read(name)
    if content is None:
        raise ResultsError(f"{folder.path}/{name} vanished while the run was read; try again.")
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise ResultsError(
            f"{folder.path}/{name} is damaged ({error}); delete it and run `saturation measure` "
            "again, which computes only that part."
        ) from error
    return {column: table[column].to_numpy() for column in table.column_names}


def _statistics(
    folder: RunFolder, described: dict[str, Any], measure: WeightMeasure
) -> dict[str, np.ndarray]:
    """Return {statistic: float64 (arrays, steps)}, NaN where no part is, and `present` (bool)."""
    steps, names = described["steps"], list(described["arrays"])
    column_of = {step: column for column, step in enumerate(steps)}
    shape = (len(names), len(steps))
    values = {name: np.full(shape, np.nan) for name in measure.statistics}
    values["present"] = np.zeros(shape, bool)
    parts = folder.parts()
    for row, name in enumerate(names):
        for start, stop in parts.get((measure.name, name), []):
            part = _read_part(folder, part_name(measure.name, name, start, stop))
            kept = [index for index, step in enumerate(part["step"]) if int(step) in column_of]
            columns = [column_of[int(part["step"][index])] for index in kept]
            values["present"][row, columns] = True
            for statistic in measure.statistics:
                values[statistic][row, columns] = part[statistic][kept]
    return values


def array_info(arrays: dict[str, dict[str, Any]]) -> ArrayInfo:
    """Return sizes, ranks and fans-in, each (arrays, 1), from `arrays` in `run.json`."""

    def column(values: Iterable[float]) -> np.ndarray:
        return np.array(list(values), np.float64)[:, None]

    return ArrayInfo(
        size=column(np.prod(array["shape"], dtype=np.float64) for array in arrays.values()),
        rank=column(len(array["shape"]) for array in arrays.values()),
        fan_in=column(
            array.get("fan_in") or (array["shape"][0] if is_kernel(name) else np.nan)
            for name, array in arrays.items()
        ),
    )


def _measure_table(
    folder: RunFolder, described: dict[str, Any], measure: WeightMeasure
) -> pd.DataFrame:
    import pandas as pd

    steps = np.array(described["steps"], np.int64)
    spacing = np.diff(steps, prepend=steps[0] - 1)  # the first step is compared with nothing
    statistics = _statistics(folder, described, measure)
    present = statistics.pop("present")
    info = array_info(described["arrays"])
    row_of = {name: row for row, name in enumerate(described["arrays"])}
    frames = []
    for scope, members in scopes(row_of).items():
        rows = np.array([row_of[name] for name in members])
        metrics = measure.metrics(
            {name: values[rows] for name, values in statistics.items()},
            ArrayInfo(info.size[rows], info.rank[rows], info.fan_in[rows]),
        )
        kept = np.all(present[rows], axis=0)
        if measure.compares_steps:
            kept[0] = False
        for metric in measure.rates:
            metrics[f"{metric}_per_step"] = metrics[metric] / spacing
        for metric, values in metrics.items():
            frames.append((metric, scope, kept, values))
    return _long_table(pd, measure, steps, frames)


def _long_table(
    pd: Any,
    measure: WeightMeasure,
    steps: np.ndarray,
    frames: list[tuple[str, str, np.ndarray, np.ndarray]],
) -> pd.DataFrame:
    """Stack (metric, scope, kept steps, values) into rows ordered by metric, scope and step."""
    metrics = list(dict.fromkeys(metric for metric, *_ in frames))
    frames = sorted(frames, key=lambda frame: metrics.index(frame[0]))
    previous = np.concatenate([steps[:1], steps[:-1]])
    counts = [int(kept.sum()) for _, _, kept, _ in frames]
    table = pd.DataFrame(
        {
            "step": np.concatenate([steps[kept] for _, _, kept, _ in frames]),
            "measure": measure.name,
            "metric": np.repeat([metric for metric, *_ in frames], counts),
            "scope": np.repeat([scope for _, scope, *_ in frames], counts),
            "value": np.concatenate([values[kept] for _, _, kept, values in frames]),
        }
    )
    compared = [
        np.full(count, steps[0]) if metric in measure.against_first else previous[kept]
        for (metric, _, kept, _), count in zip(frames, counts, strict=True)
    ]
    earlier = pd.Series(np.concatenate(compared), dtype="Int64")
    table["previous_step"] = earlier if measure.compares_steps else earlier.mask(earlier.notna())
    return table[list(COLUMNS)]


def _incomplete(path: str, found: Status) -> str:
    measure, names = next((m, names) for m, names in found.missing.items() if names)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"The run in {path} is incomplete: {measure} has {found.present[measure]} of "
        f"{found.expected[measure]} (array, step) pairs; missing steps of {shown}. Run the same "
        "`saturation measure` again to compute what is missing, or read it as it is with --partial."
    )
