"""The results of a run as one long table: statistics on disk, combined into scopes when read.

The table has one row a value: `step` int64, `measure`, `metric`, `scope` (strings), `value` float64
and `previous_step` (Int64, empty for a measure of one checkpoint).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.errors import FormerVersionWarning, ResultsError
from saturation.measures import find_measures
from saturation.measures.base import (
    STEP,
    ActivationMeasure,
    ArrayInfo,
    GroupMeasure,
    Measure,
    WeightMeasure,
)
from saturation.results.state import RunState, Status, open_run
from saturation.scopes import is_kernel, scopes

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("step", "measure", "metric", "scope", "value", "previous_step")


def load_results(run: str | Any, partial: bool = False) -> pd.DataFrame:
    """Return the table of a run.

    Args:
      run: the run's folder or URL.
      partial: read an incomplete run too; scopes that lack an array at some step lack that row.

    Returns:
      The table; `attrs["activations"]` is what measures of activations were taken on, if any were.

    Raises:
      ResultsError: there is no run, it is incomplete (named by what is missing), or other versions
        of all its measures wrote it.

    Warns:
      FormerVersionWarning: another version of a measure wrote part of it, which is left out, or
        another version wrote it that recorded less.
    """
    import pandas as pd

    state = open_run(run)
    found, path = state.status(), state.folder.path
    if found.former:
        warnings.warn(
            f"{path}: left out what another version of a measure wrote ({found.former}). "
            "Measure it again into a new folder.",
            FormerVersionWarning,
            stacklevel=2,
        )
    if found.unrecorded:
        warnings.warn(
            f"{path}: {found.unrecorded}; it is read, and nothing is added to it.",
            FormerVersionWarning,
            stacklevel=2,
        )
    if not (found.complete or partial):
        raise ResultsError(_incomplete(path, found))
    tables = []
    for measure in state.measures:
        if isinstance(measure, ActivationMeasure):
            series = _activation_series(state, measure)
        elif isinstance(measure, GroupMeasure):
            series = _group_series(state, measure)
        else:
            series = _weight_series(state, measure)
        tables.append(_long_table(measure, state.described["steps"], list(series)))
    if not tables:
        raise ResultsError(
            f"{path} holds nothing that this version of saturation can read: "
            f"{found.former}. Measure it again into a new folder."
        )
    whole = pd.concat(tables, ignore_index=True)
    if "activations" in state.described:
        whole.attrs["activations"] = state.described["activations"]
    return whole


@dataclass(frozen=True)
class _Series:
    """One metric of one scope: float64 (steps,), and the steps at which it is there."""

    metric: str
    scope: str
    values: np.ndarray
    kept: np.ndarray


def _weight_series(state: RunState, measure: WeightMeasure) -> Iterable[_Series]:
    """Yield every metric of every scope, from the statistics of the arrays in it."""
    steps = np.array(state.described["steps"], np.int64)
    spacing = np.diff(steps, prepend=steps[0] - 1)  # the first step is compared with nothing
    previous = np.concatenate([steps[:1], steps[:-1]])
    log_spacing = np.full(len(steps), np.nan)
    later = (previous > 0) & (steps > previous)
    log_spacing[later] = np.log(steps[later] / previous[later])
    names = list(state.described["arrays"])
    statistics, present = _weight_statistics(state, measure)
    info = array_info(state.described["arrays"])
    row_of = {name: row for row, name in enumerate(names)}
    for scope, members in scopes(names).items():
        rows = np.array([row_of[name] for name in members])
        metrics = measure.metrics(
            {name: values[rows] for name, values in statistics.items()},
            ArrayInfo(info.size[rows], info.rank[rows], info.fan_in[rows]),
        )
        for metric in measure.rates:
            metrics[f"{metric}_per_step"] = metrics[metric] / spacing
        for metric in measure.log_rates:
            metrics[metric] = metrics[metric] / log_spacing
        kept = np.all(present[rows], axis=0)
        if measure.compares_steps:
            kept[0] = False
        for metric, values in metrics.items():
            there = kept & later if metric in measure.log_rates else kept
            yield _Series(metric, scope, values, there)


def _weight_statistics(
    state: RunState, measure: WeightMeasure
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return {statistic: float64 (arrays, steps)} and where it is present, bool (arrays, steps)."""
    column_of = {step: column for column, step in enumerate(state.described["steps"])}
    names = list(state.described["arrays"])
    shape = (len(names), len(column_of))
    statistics = {name: np.full(shape, np.nan) for name in measure.statistics}
    present = np.zeros(shape, bool)
    row_of = {name: row for row, name in enumerate(names)}
    for _, _, part in state.read_parts(measure):
        kept = np.isin(part["step"], state.described["steps"])
        rows = [row_of[name] for name in part["array"][kept]]
        columns = [column_of[step] for step in part["step"][kept].tolist()]
        present[rows, columns] = True
        for statistic in measure.statistics:
            statistics[statistic][rows, columns] = part[statistic][kept]
    return statistics, present


def array_info(arrays: Mapping[str, Mapping[str, Any]]) -> ArrayInfo:
    """Return sizes, ranks and fans-in, each (arrays, 1), from `arrays` in `run.json`."""

    def column(values: Iterable[float]) -> np.ndarray:
        return np.array(list(values), np.float64)[:, None]

    return ArrayInfo(
        size=column(np.prod(array["shape"], dtype=np.float64) for array in arrays.values()),
        rank=column(len(array["shape"]) for array in arrays.values()),
        fan_in=column(
            array["fan_in"] or np.nan
            if "fan_in" in array
            else (array["shape"][0] if is_kernel(name) else np.nan)
            for name, array in arrays.items()
        ),
    )


def _activation_series(state: RunState, measure: ActivationMeasure) -> Iterable[_Series]:
    """Yield every metric of every layer and head that the parts of the steps report."""
    steps = state.described["steps"]
    found: dict[str, dict[str, np.ndarray]] = {}
    kept = np.zeros(len(steps), bool)
    for _, (step, _), part in state.read_parts(measure):
        if step not in steps:
            continue
        column = steps.index(step)
        kept[column] = True
        for row, scope in enumerate(part["scope"]):
            statistics = found.setdefault(
                scope, {name: np.full(len(steps), np.nan) for name in measure.statistics}
            )
            for name in measure.statistics:
                statistics[name][column] = part[name][row]
    for scope, statistics in found.items():
        at_steps = {**statistics, STEP: np.array(steps, np.float64)}
        for metric, values in measure.metrics(at_steps).items():
            yield _Series(metric, scope, values, kept)


def _group_series(state: RunState, measure: GroupMeasure) -> Iterable[_Series]:
    """Yield every metric of every scope of every group."""
    column_of = {step: column for column, step in enumerate(state.described["steps"])}
    nothing = np.full(len(column_of), np.nan)
    for _, of_group in groupby(state.read_parts(measure), key=lambda read: read[0]):
        found: dict[str, dict[str, np.ndarray]] = {}
        kept = np.zeros(len(column_of), bool)
        for _, _, part in of_group:
            for row, (step, scope) in enumerate(zip(part["step"], part["scope"], strict=True)):
                if step not in column_of:
                    continue
                kept[column_of[step]] = True
                statistics = found.setdefault(
                    scope, {name: nothing.copy() for name in measure.statistics}
                )
                for name in measure.statistics:
                    statistics[name][column_of[step]] = part[name][row]
        for scope, statistics in found.items():
            for metric, values in measure.metrics(statistics).items():
                yield _Series(metric, scope, values, kept)


def load_vectors(run: str | Any, measure: str) -> pd.DataFrame:
    """Return the vectors that a measure of groups keeps, such as the eigenvalues of `spectrum`.

    Args:
      run: the run's folder or URL.
      measure: its name.

    Returns:
      Columns `step`, `scope` and one for each vector, float64 arrays; a row a step and scope that
      has any, in order of scope and step. Of an incomplete run what is there; empty where the run
      has none of this measure.

    Raises:
      ResultsError: there is no run, or a part of it is damaged.
    """
    import pandas as pd

    state = open_run(run)
    [found] = find_measures([measure])
    vectors = found.vectors if isinstance(found, GroupMeasure) else ()
    columns = ["step", "scope", *vectors]
    if not vectors or found not in state.measures:
        return pd.DataFrame(columns=columns)
    tables = [
        pd.DataFrame({name: part[name] for name in columns})
        for _, _, part in state.read_parts(found)
    ]
    table = pd.concat(tables or [pd.DataFrame(columns=columns)], ignore_index=True)
    filled = table[list(vectors)].map(len).max(axis=1) > 0
    kept = table["step"].isin(state.described["steps"]) & filled
    kept &= ~table.duplicated(["step", "scope"])  # two tasks may have written the same steps
    return table.loc[kept].sort_values(["scope", "step"], ignore_index=True)


def _long_table(measure: Measure, steps: list[int], series: list[_Series]) -> pd.DataFrame:
    """Stack series into rows ordered by metric, scope and step."""
    import pandas as pd

    order = {metric: n for n, metric in enumerate(dict.fromkeys(s.metric for s in series))}
    series = sorted(series, key=lambda one: order[one.metric])
    at = np.array(steps, np.int64)
    counts = [int(one.kept.sum()) for one in series]

    def stack(columns: Iterable[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *columns]).astype(dtype)

    table = pd.DataFrame(
        {
            "step": stack((at[one.kept] for one in series), np.int64),
            "measure": measure.name,
            "metric": np.repeat([one.metric for one in series], counts),
            "scope": np.repeat([one.scope for one in series], counts),
            "value": stack((one.values[one.kept] for one in series), np.float64),
            "previous_step": pd.array([pd.NA] * sum(counts), dtype="Int64"),
        }
    )
    if isinstance(measure, WeightMeasure) and measure.compares_steps:
        previous = np.concatenate([at[:1], at[:-1]])
        first = np.full_like(at, at[0])
        compared = (first if s.metric in measure.against_first else previous for s in series)
        kept = (steps[one.kept] for steps, one in zip(compared, series, strict=True))
        table["previous_step"] = pd.array(stack(kept, np.int64), dtype="Int64")
    return table.reindex(columns=list(COLUMNS))


def _incomplete(path: str, found: Status) -> str:
    measure, names = next((m, names) for m, names in found.missing.items() if names)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"The run in {path} is incomplete: {measure} has {found.present[measure]} of "
        f"{found.expected[measure]} parts of its table; missing are (steps of) {shown}. Run the "
        "same `saturation measure` again to compute them, or read it as it is with --partial."
    )


def scope_norm(run: str, scope: str, partial: bool) -> tuple[list[float], list[float]]:
    """Return the steps and the l2 norm of one scope of a run.

    Raises:
      ResultsError: the run has no norms, or no such scope; the wider ones get listed.
    """
    table = load_results(run, partial=partial)
    norms = table.loc[(table["measure"] == "norms") & (table["metric"] == "l2")]
    # Compared one by one: pandas takes no text with half a character in it.
    chosen = norms.loc[[name == scope for name in norms["scope"]]]
    if chosen.empty:
        known = [name for name in norms["scope"].unique() if name.count("/") < 2]
        raise ResultsError(
            f"{run} has no l2 norm of scope {scope!r}; it has: "
            f"{', '.join(known) or 'no norms at all'}."
        )
    return chosen["step"].tolist(), chosen["value"].tolist()
