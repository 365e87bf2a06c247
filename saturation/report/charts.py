"""The interactive charts of the page, one panel each, so that a narrow screen stacks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from saturation.growth import Fit, best_law
from saturation.report.growth_figure import CURVE_POINTS, DOT_GREY, LAW_NAMES, choose_laws
from saturation.report.motion_figures import norm_budget, relative_rate
from saturation.report.series import Fits, RunTable, Series
from saturation.report.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    RUN_COLOURS,
    SCOPE_COLOURS,
    VERMILION,
    is_log_spaced,
)

LAW_LINES = {"power": (VERMILION, "solid"), "sqrt": (BLUE, "dash")}
GRID = "#E4E7EB"
DIGITS = ".6g"


def growth_chart(run: RunTable, fits: Fits) -> go.Figure:
    """Return the norm of the run's first main scope with its fitted laws."""
    scope, series = run.main_series("l2")
    laws = fits.get(run.name, {}).get(scope, {})
    best = best_law(laws).law if laws else ""
    chart = _empty("‖θ‖₂", height=430)
    _add(chart, series.steps, series.values, "checkpoints", DOT_GREY, mode="markers", size=9)
    t = np.linspace(series.steps[0], series.steps[-1], CURVE_POINTS)
    for fit in choose_laws(laws):
        colour, dash = LAW_LINES.get(fit.law, (GREEN, "dashdot"))
        _add(chart, t, fit.predict(t), _law_label(fit, best), colour, dash=dash)
    chart.update_layout(hovermode="x unified")
    return chart


def leftover_chart(run: RunTable, fits: Fits) -> go.Figure | None:
    """Return what each fitted law misses, in percent of the whole growth; None without laws."""
    scope, series = run.main_series("l2")
    shown = choose_laws(fits.get(run.name, {}).get(scope, {}))
    if not shown:
        return None
    chart = _empty("% of growth", height=260)
    for fit in shown:
        colour, dash = LAW_LINES.get(fit.law, (GREEN, "dashdot"))
        leftover = 100 * (series.values - fit.predict(series.steps)) / np.ptp(series.values)
        name = LAW_NAMES.get(fit.law, fit.law)
        _add(chart, series.steps, leftover, name, colour, mode="lines+markers", dash=dash)
    return chart


def runs_chart(runs: Sequence[RunTable]) -> go.Figure:
    """Return the norm of every run's first main scope, relative to its first checkpoint."""
    chart = _empty("‖θ‖₂ / ‖θ_first‖₂".replace("_first", "<sub>first</sub>"), height=430)
    for index, run in enumerate(runs):
        scope, series = run.main_series("l2")
        start = series.values[0]
        if start:
            colour = RUN_COLOURS[index % len(RUN_COLOURS)]
            name = f"{escape(run.name)} ({scope})"
            _add(chart, series.steps, series.values / start, name, colour, mode="lines+markers")
    return chart


def layer_charts(run: RunTable) -> dict[str, go.Figure]:
    """Return {stack: chart} of the norm of each layer, coloured by depth."""
    charts = {}
    for stack, layers in run.layers("l2").items():
        deepest = max(1, *layers)
        chart = _empty("‖θ‖₂ of the layer")
        for number, series in layers.items():
            [colour] = sample_colorscale("Viridis", [0.92 * number / deepest])
            _add(
                chart, series.steps, series.values, f"layer {number}", str(colour), "lines+markers"
            )
        chart.update_layout(showlegend=len(layers) <= 8)
        charts[stack] = chart
    return charts


def scope_chart(run: RunTable, metric: str, label: str, logarithmic: bool = False) -> go.Figure:
    """Return one metric of every main scope against the training step."""
    chart = _empty(label)
    for scope in run.scopes(metric):
        series = run.series(metric, scope)
        if series is not None:
            values = relative_rate(series) if metric == "relative_step" else series.values
            _add_scope(chart, scope, series, values)
            _choose_step_axis(chart, series)
    if logarithmic:
        chart.update_yaxes(type="log", exponentformat="power")
    return chart


def budget_chart(run: RunTable) -> go.Figure | None:
    """Return the cumulated norm budget of the first main scope; None where a step lacks it."""
    budget = norm_budget(run, run.scopes("radial")[0])
    if budget is None:
        return None
    series, radial, tangential = budget
    chart = _empty("cumulated change of ‖θ‖²")
    for values, name, colour, dash in (
        (radial, "radial (along θ)", VERMILION, "dash"),
        (tangential, "tangential (across θ)", BLUE, "dashdot"),
        (radial + tangential, "both", BLACK, "solid"),
    ):
        _add(chart, series.steps, values, name, colour, mode="lines+markers", dash=dash)
    _choose_step_axis(chart, series)
    return chart


def escape(text: str) -> str:
    """Return text that plotly shows as it is: it would read <b> or a link as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _law_label(fit: Fit, best: str) -> str:
    name = LAW_NAMES.get(fit.law, fit.law.replace("_", " "))
    exponent = f", p = {fit.p:.3f}" if fit.law == "power" else ""
    return name + exponent + (" (best by AIC)" if fit.law == best else "")


def _empty(label: str, height: int = 340) -> go.Figure:
    """Return a chart without data, in the page's style."""
    axis: Mapping[str, Any] = {
        "gridcolor": GRID,
        "zerolinecolor": GREY,
        "zerolinewidth": 0.7,
        "linecolor": GREY,
        "ticks": "outside",
        "tickcolor": GREY,
        "automargin": True,
        "title": {"standoff": 8},
    }
    chart = go.Figure()
    chart.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
        legend={"orientation": "h", "y": -0.22, "x": 0, "yanchor": "top"},
        xaxis=dict(axis) | {"zeroline": False, "title": {"text": "training step", "standoff": 8}},
        yaxis=dict(axis) | {"title": {"text": label, "standoff": 8}},
        template="none",
    )
    return chart


def _add(
    chart: go.Figure,
    x: np.ndarray,
    y: np.ndarray,
    name: str,
    colour: str,
    mode: str = "lines",
    dash: str = "solid",
    size: int = 5,
) -> None:
    """Add one line; plain lists, because plotly would pack arrays as base64 nobody can read."""
    chart.add_scatter(
        x=x.tolist(),
        y=[float(f"{value:.8g}") for value in y],
        name=name,
        mode=mode,
        line={"color": colour, "dash": dash, "width": 2},
        marker={"size": size, "color": colour},
        hovertemplate=f"%{{y:{DIGITS}}} at step %{{x:,.0f}}",
    )


def _add_scope(chart: go.Figure, scope: str, series: Series, values: np.ndarray) -> None:
    colour = SCOPE_COLOURS.get(scope, BLACK)
    _add(chart, series.steps, values, escape(scope), colour, mode="lines+markers")


def _choose_step_axis(chart: go.Figure, series: Series) -> None:
    if is_log_spaced(series.steps) and series.steps[0] > 0:
        chart.update_xaxes(type="log", dtick=1)
