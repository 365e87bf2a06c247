"""The page's comparison of several runs: one number of each measure, a line a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from saturation.report.chart_style import (
    Panel,
    add_line,
    choose_step_axis,
    empty_chart,
    escape,
    traces,
)
from saturation.report.saturation_figures import LAYER, ROLES, roles
from saturation.report.series import RunTable, on_steps
from saturation.report.style import RUN_COLOURS

HEAD = r".*/head_\d+"
Line = tuple[np.ndarray, np.ndarray, str]  # steps, values, what to add to the run's name


def runs_panels(runs: Sequence[RunTable]) -> Iterator[Panel]:
    """Yield a chart of each number that at least two runs have."""
    for compared in COMPARED if len(runs) > 1 else ():
        chart, every = empty_chart(compared.label, height=380), np.empty(0, np.int64)
        for index, run in enumerate(runs):
            found = compared.line(run)
            if found is None:
                continue
            steps, values, more = found
            colour = RUN_COLOURS[index % len(RUN_COLOURS)]
            add_line(chart, steps, values, escape(run.name) + more, colour, "lines+markers")
            every = np.union1d(every, steps)
        if len(traces(chart)) > 1:
            if compared.axis_of_steps:
                choose_step_axis(chart, every)
            chart.update_yaxes(range=compared.limits)
            yield Panel(chart, compared.title, compared.says, wide=compared.wide)


def _norm(run: RunTable) -> Line | None:
    """Return the norm of the first main scope, relative to the first checkpoint."""
    if not run.scopes("l2"):
        return None
    scope, series = run.main_series("l2")
    start = series.values[0]
    return (series.steps, series.values / start, f" ({escape(scope)})") if start else None


def _over(
    average: Callable[..., np.ndarray], metric: str, pattern: str = HEAD, factor: float = 1.0
) -> Callable[[RunTable], Line | None]:
    """Return what gives a run's average of a metric over layers or heads."""

    def line(run: RunTable) -> Line | None:
        found = list(run.matching(metric, pattern).values())
        if not found:
            return None
        steps, values = on_steps(found)
        return steps, factor * average(values, axis=0), ""

    return line


def _argmax_like(run: RunTable) -> Line | None:
    found = roles(run)
    if found is None:
        return None
    steps, by_role, _ = found
    return steps, 100 * by_role[ROLES[0]], ""


@dataclass(frozen=True)
class Compared:
    """One number of a run through training.

    Attributes:
        title: above the chart.
        label: of its axis.
        says: what the number is.
        line: the run's line, None where that was not measured.
        limits: of its axis; without, the values' own.
        wide: takes a row of its own.
        axis_of_steps: whether the axis of steps may be logarithmic; growth laws are read off a
            linear one.
    """

    title: str
    label: str
    says: str
    line: Callable[[RunTable], Line | None]
    limits: tuple[float, float] | None = None
    wide: bool = False
    axis_of_steps: bool = True


COMPARED = (
    Compared("Norm relative to the first checkpoint", "‖θ‖₂ / ‖θ<sub>first</sub>‖₂", "", _norm,
             wide=True, axis_of_steps=False),
    Compared("Saturation of attention", "mean cos(h, h′)",
             "`cosine_attention_limit`, mean over layers.",
             _over(np.nanmean, "cosine_attention_limit", LAYER)),
    Compared("Argmax-like heads", "% of heads", "By `positions_mean`.", _argmax_like,
             limits=(-3, 103)),
    Compared("Threshold of heads", "sharpens_below",
             "`sharpens_below`, median over heads: −1: the head sharpens under no attention.",
             _over(np.nanmedian, "sharpens_below"), limits=(-1.06, 1.06)),
    Compared("Token similarity", "mean cosine", "`token_cosine` behind the encoder's last norm.",
             _over(np.nanmean, "token_cosine", "encoder/final")),
    Compared("Entropy of attention", "nats", "`attention_entropy`, median over heads.",
             _over(np.nanmedian, "attention_entropy")),
    Compared("Attention on distinct keys", "% of attention", "`mass_distinct`, median over heads.",
             _over(np.nanmedian, "mass_distinct", factor=100)),
)  # fmt: skip
