"""The results table as series: one metric of one scope against the training step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, cast

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num

from saturation.errors import ResultsError
from saturation.growth.fit import MINIMUM_POINTS, Fit, fit_all
from saturation.plots.tokens_text import say_tokens
from saturation.scopes import layer_of

COLUMNS = ("step", "measure", "metric", "scope", "value", "previous_step")
MAIN_SCOPES = ("blocks", "encoder", "decoder", "embedding", "total")
SCOPE_MEANING = {
    "blocks": "all encoder and decoder layers, without embedding, final norms and output head",
    "encoder": "the whole encoder",
    "decoder": "the whole decoder, without the shared embedding",
    "embedding": "the token embedding",
    "total": "every parameter",
}
HEAD_KINDS = {  # the scopes of heads, by kind of attention
    "encoder self-attention": r"encoder/layers_\d+/attention/head_\d+",
    "decoder self-attention": r"decoder/layers_\d+/self_attention/head_\d+",
    "cross-attention": r"decoder/layers_\d+/encoder_decoder_attention/head_\d+",
    "self-attention": r"layers_\d+/attention/head_\d+",  # of a model of one stack
}

STACKS = ("encoder", "decoder", "")  # "" is the one of a model that has no other
LAYER = r"((encoder|decoder)/)?(layers_\d+|final)"

Item = TypeVar("Item")
Fits = Mapping[str, Mapping[str, Mapping[str, Fit]]]  # {run: {scope: {law: fit}}}


@dataclass(frozen=True)
class StepSeries:
    """One metric of one scope, sorted by step, without the steps where it is not finite.

    Attributes:
        steps: training steps.
        values: the metric.
        previous: the checkpoint each value compares with; nan for a measure of one checkpoint.
        left_out: the steps left out because the value is NaN or infinite.
    """

    steps: Int[np.ndarray, " points"]
    values: Float[np.ndarray, " points"]
    previous: Float[np.ndarray, " points"]
    left_out: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, step: int) -> float:
        """Return the value at a step, NaN where there is none."""
        here = self.values[self.steps == step]
        return float(here[0]) if len(here) else float("nan")

    @property
    def spacing(self) -> Float[np.ndarray, " points"]:
        """Training steps between each checkpoint and the one it compares with."""
        return self.steps - self.previous


class RunTable:
    """One run's results table, by metric and scope.

    Args:
        name: what the run is called in legends.
        table: columns as `saturation.load_results` gives them.
        eigenvalues: of the measure `spectrum`, as `results.load_vectors` gives them.
        laws: {scope: {law: fit}} of its norms, as `fit_tables` gives them.

    Attributes:
        measures: those that the table holds.
        taken_on: the sentence on the tokens of its measures of activations; "" where there are
            none, or nothing says it.

    Raises:
        ResultsError: a column is absent, or a value occurs twice.
    """

    def __init__(
        self,
        name: str,
        table: pd.DataFrame,
        eigenvalues: pd.DataFrame | None = None,
        laws: Mapping[str, Mapping[str, Fit]] | None = None,
    ) -> None:
        absent = [column for column in COLUMNS if column not in table.columns]
        if absent:
            raise ResultsError(
                f"The table of run {name!r} lacks the columns {', '.join(absent)}; "
                f"a results table has {', '.join(COLUMNS)}."
            )
        twice = table.duplicated(["step", "measure", "metric", "scope"])
        if twice.any():
            row = table[twice].iloc[0]
            raise ResultsError(
                f"The table of run {name!r} holds {row['measure']} {row['metric']} of "
                f"{row['scope']} at step {row['step']} more than once; "
                "load one run at a time with saturation.load_results."
            )
        self.name = name
        self.eigenvalues = pd.DataFrame() if eigenvalues is None else eigenvalues
        self.laws = laws or {}
        self.measures = frozenset(table["measure"].unique())
        self.taken_on = say_tokens(table.attrs.get("activations"))
        table = table.sort_values("step", kind="stable")
        # Columns and positions, not tables: a T5-base run has thousands of series, and taking each
        # out of a table costs more than all that is done with it.
        self._steps = table["step"].to_numpy(np.int64)
        self._values = table["value"].to_numpy(np.float64)
        self._previous = table["previous_step"].to_numpy(np.float64, na_value=np.nan)
        rows = table.groupby(["metric", "scope"], observed=True).indices
        self._rows = cast("dict[tuple[str, str], np.ndarray]", rows)

    def series(self, metric: str, scope: str) -> StepSeries | None:
        """Return one metric of one scope, or None where no finite value was measured."""
        rows = self._rows.get((metric, scope))
        if rows is None:
            return None
        steps, values, previous = self._steps[rows], self._values[rows], self._previous[rows]
        finite = np.isfinite(values)
        if not finite.any():
            return None
        left_out = tuple(int(step) for step in steps[~finite])
        return StepSeries(steps[finite], values[finite], previous[finite], left_out)

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The steps at which anything was measured."""
        return tuple(np.unique(self._steps).tolist())

    @cached_property
    def metrics(self) -> frozenset[str]:
        """The metrics that the table holds."""
        return frozenset(metric for metric, _ in self._rows)

    def scopes(self, metric: str) -> tuple[str, ...]:
        """Return the scopes of `MAIN_SCOPES` that have the metric, or else the first of all."""
        main = tuple(scope for scope in MAIN_SCOPES if self.series(metric, scope) is not None)
        if main:
            return main
        others = (scope for name, scope in self._rows if name == metric)
        return tuple(scope for scope in others if self.series(metric, scope) is not None)[:1]

    def parts(self, metric: str) -> dict[str, StepSeries]:
        """Return {scope: series} of the `scopes` of a metric."""
        found = {scope: self.series(metric, scope) for scope in self.scopes(metric)}
        return {scope: series for scope, series in found.items() if series is not None}

    def main_series(self, metric: str) -> tuple[str, StepSeries]:
        """Return the first of `MAIN_SCOPES` that has the metric, and its series.

        Raises:
            ResultsError: the metric was not measured.
        """
        for scope in self.scopes(metric):
            series = self.series(metric, scope)
            if series is not None:
                return scope, series
        raise ResultsError(
            f"Run {self.name!r} holds no {metric}; it has {', '.join(sorted(self.metrics))}."
        )

    def matching(self, metric: str, pattern: str) -> dict[str, StepSeries]:
        """Return {scope: series} of the scopes that a regular expression matches as a whole."""
        scopes = [s for name, s in self._rows if name == metric and re.fullmatch(pattern, s)]
        found = {scope: self.series(metric, scope) for scope in scopes}
        return {scope: series for scope, series in found.items() if series is not None}

    def meaning(self, scope: str) -> str:
        """Return what a scope is, in words that follow the model; "" where none are known."""
        said = SCOPE_MEANING.get(scope, "")
        return said.replace("encoder and decoder ", "") if self._one_stack else said

    @cached_property
    def _one_stack(self) -> bool:
        """Whether layers stand in no stack, as those of a model do that has one."""
        return any(re.match(r"layers_\d+(/|$)", scope) for _, scope in self._rows)

    def layers(self, metric: str) -> dict[str, dict[int, StepSeries]]:
        """Return {stack: {layer number: series}}, layers in order of depth.

        A layer that stands in no stack (a decoder-only model) is filed under "layers".
        """
        found: dict[str, dict[int, StepSeries]] = {}
        for name, scope in self._rows:
            if name != metric or layer_of(f"{scope}/kernel") != scope:
                continue
            stack, _, layer = scope.rpartition("/")
            digits = layer.rpartition("_")[2]
            series = self.series(metric, scope)
            if series is not None and digits.isdigit():
                found.setdefault(stack or "layers", {})[int(digits)] = series
        order = {"encoder": 0, "decoder": 1}
        stacks = sorted(found, key=lambda stack: (order.get(stack, 2), stack))
        return {stack: dict(sorted(found[stack].items())) for stack in stacks}


def run_tables(
    tables: Mapping[str, pd.DataFrame],
    eigenvalues: Mapping[str, pd.DataFrame] | None = None,
    fits: Fits | None = None,
) -> list[RunTable]:
    """Return the runs of a report, checked; `eigenvalues` and `fits` by run where there are any.

    Raises:
        ResultsError: there is no run, a column is absent, or a value occurs twice.
    """
    if not tables:
        raise ResultsError("A report needs at least one run and was given none.")
    known, laws = eigenvalues or {}, fits or {}
    return [
        RunTable(name, table, known.get(name), laws.get(name)) for name, table in tables.items()
    ]


def fit_tables(
    tables: Mapping[str, pd.DataFrame], metric: str = "l2"
) -> dict[str, dict[str, dict[str, Fit]]]:
    """Fit every growth law to every main scope of every run.

    Args:
        tables: {run name: results table}.
        metric: what grows.

    Returns:
        {run: {scope: {law: fit}}}; a scope with fewer than four points has no entry.

    Raises:
        ResultsError: a table is not a results table.
    """
    fits: dict[str, dict[str, dict[str, Fit]]] = {}
    for run in run_tables(tables):
        fits[run.name] = {}
        for scope in run.scopes(metric):
            series = run.series(metric, scope)
            if series is not None and len(series) >= MINIMUM_POINTS:
                fits[run.name][scope] = fit_all(series.steps, series.values)
    return fits


def on_steps(series: Sequence[StepSeries]) -> tuple[np.ndarray, Float[np.ndarray, "series steps"]]:
    """Return all steps that occur, and every series' values there, NaN where it has none."""
    steps = np.unique(np.concatenate([one.steps for one in series]))
    values = np.full((len(series), len(steps)), np.nan)
    for row, one in zip(values, series, strict=True):
        row[np.searchsorted(steps, one.steps)] = one.values
    return steps, values


def quartiles(
    series: Sequence[StepSeries],
) -> tuple[Int[np.ndarray, " steps"], Float[np.ndarray, "3 steps"]]:
    """Return all steps that occur, and the series' lower quartile, median and upper one there."""
    steps, values = on_steps(series)
    whole = np.isfinite(values).all()  # NumPy's nanquantile goes through steps one by one
    quantile = np.quantile if whole else np.nanquantile
    return steps, quantile(values, (0.25, 0.5, 0.75), axis=0)


def layer_medians(run: RunTable, metric: str) -> dict[str, StepSeries]:
    """Return {attention: the median over its heads}, the encoder's first, each kind by depth.

    An attention is named by its layer, cross-attention by that and "cross".
    """
    found: dict[str, StepSeries] = {}
    for kind, pattern in HEAD_KINDS.items():
        layers: dict[int, list[StepSeries]] = {}
        for scope, series in run.matching(metric, pattern).items():
            layers.setdefault(int(scope.split("layers_")[1].split("/")[0]), []).append(series)
        stack, name = stack_of(pattern), " cross" if kind == "cross-attention" else ""
        for number, heads in sorted(layers.items()):
            steps, (_, median, _) = quartiles(heads)
            label = f"{in_stack(stack, f'layers_{number}')}{name}"
            found[label] = StepSeries(steps, median, np.full(len(steps), np.nan))
    return found


def describe_spacing(spacing: Float[np.ndarray, " points"]) -> str:
    """Return how far apart checkpoints lie: "50 steps apart", or "1 to 500 steps apart"."""
    known = spacing[np.isfinite(spacing)]
    if not len(known):
        return "an unknown number of steps apart"
    low, high = int(known.min()), int(known.max())
    if low == high:
        return f"{low:,} step{'s' if low > 1 else ''} apart"
    return f"{low:,} to {high:,} steps apart"


def stack_of(scope: str) -> str:
    """Return which of `STACKS` a scope, or a pattern of scopes, is of."""
    stack = scope.partition("/")[0]
    return stack if stack in STACKS else ""


def in_stack(stack: str, name: str) -> str:
    """Return the scope of a name in a stack, or a pattern likewise.

    >>> in_stack("encoder", "final"), in_stack("", "final")
    ('encoder/final', 'final')
    """
    return f"{stack}/{name}" if stack else name


def titled(stack: str, title: str) -> str:
    """Return a title with its stack before it, where the model has several.

    >>> titled("encoder", "cosine"), titled("", "cosine")
    ('encoder: cosine', 'Cosine')
    """
    return f"{stack}: {title}" if stack else f"{title[:1].upper()}{title[1:]}"


def ordered_layers(found: Mapping[str, StepSeries]) -> dict[str, StepSeries]:
    """Return layers by stack and depth, the state after a stack's last norm behind its layers."""

    def place(scope: str) -> tuple[bool, float]:
        number = scope.rpartition("/")[2].removeprefix("layers_")
        return stack_of(scope) == "decoder", float(number) if number.isdigit() else np.inf

    return {scope: found[scope] for scope in sorted(found, key=place)}


def between(series: StepSeries) -> np.ndarray:
    """Return √(t·t′), where a mean over ln t from t to t′ is drawn."""
    return np.sqrt(series.previous * series.steps)


def relative_rate(series: StepSeries) -> np.ndarray:
    """Return the relative step per training step, ‖δ‖/(‖θ_t‖(t′ − t)), since spacings differ."""
    return series.values / series.spacing


def is_log_spaced(steps: Num[np.ndarray, " points"]) -> bool:
    """Return whether checkpoints crowd at the start, so that a linear axis would hide them."""
    gaps = np.diff(np.unique(steps))
    return len(gaps) > 2 and bool(np.median(gaps[-3:]) > 8 * np.median(gaps[:3]))


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return up to so many items, evenly chosen, the first and the last among them.

    >>> evenly("abcdefg", 3), evenly("ab", 3)
    (['a', 'd', 'g'], ['a', 'b'])
    """
    places = np.linspace(0, len(items) - 1, min(most, len(items)))
    return [items[place] for place in places.round().astype(int)]
