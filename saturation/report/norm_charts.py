"""The page's charts of norms: growth with its laws, and layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from saturation.growth import Fit, best_law
from saturation.growth_text import exponent, say_laws
from saturation.power_law import local_exponents
from saturation.report.chart_style import (
    MOST_NAMED,
    Panel,
    add_line,
    choose_step_axis,
    empty_chart,
    escape,
    rows_chart,
    traces,
)
from saturation.report.growth_figure import CURVE_POINTS, DOT_GREY, LAW_NAMES, choose_laws
from saturation.report.motion_figures import relative_rate
from saturation.report.series import SCOPE_MEANING, Fits, RunTable
from saturation.report.style import BLACK, BLUE, GREEN, SCOPE_COLOURS, VERMILION

LAW_LINES = {"power": (VERMILION, "solid"), "sqrt": (BLUE, "dash")}


def growth_panels(run: RunTable, fits: Fits) -> Iterator[Panel]:
    """Yield the norm of the whole with its laws, what these leave over, and each part."""
    scope, series = run.main_series("l2")
    if len(series) == 1:
        chart = rows_chart(run.parts("l2"), "‖θ‖₂")
        yield Panel(chart, "Norm of each part", wide=True)
        return
    laws = fits.get(run.name, {}).get(scope, {})
    said = say_laws(laws, series.steps, series.values) if laws else []
    says = " ".join([f"Scope `{scope}`: {SCOPE_MEANING.get(scope, scope)}.", *said])
    yield Panel(growth_chart(run, fits), "How the norm grew", says, wide=True)
    leftover = leftover_chart(run, fits)
    if leftover is not None:
        says = (
            "Measured − fit. Scatter around 0 is a law that holds, a bend is a law that does not."
        )
        yield Panel(leftover, "What the laws leave over", says, wide=True)
        says = "ln(ρ′/ρ)/ln(t′/t) at √(t·t′). That of a law varies wherever b ≠ 0."
        yield Panel(exponent_chart(run, fits), "Local exponent", says, wide=True)
    if len(run.scopes("l2")) > 1:
        chart = scope_chart(run, "l2", "‖θ‖₂", logarithmic=True)
        yield Panel(chart, "Norm of each part", "Logarithmic axis.", wide=True)


def growth_chart(run: RunTable, fits: Fits) -> go.Figure:
    """Return the norm of the run's first main scope with its fitted laws."""
    scope, series = run.main_series("l2")
    laws = fits.get(run.name, {}).get(scope, {})
    best = best_law(laws)
    chart = empty_chart("‖θ‖₂", height=430)
    add_line(chart, series.steps, series.values, "checkpoints", DOT_GREY, mode="markers", size=9)
    t = np.linspace(series.steps[0], series.steps[-1], CURVE_POINTS)
    for fit in choose_laws(laws):
        colour, dash = LAW_LINES.get(fit.law, (GREEN, "dashdot"))
        add_line(chart, t, fit.predict(t), _law_label(fit, best), colour, dash=dash)
    chart.update_layout(hovermode="x unified")
    return chart


def leftover_chart(run: RunTable, fits: Fits) -> go.Figure | None:
    """Return what each fitted law misses, in percent of the whole growth; None without laws."""
    scope, series = run.main_series("l2")
    shown = choose_laws(fits.get(run.name, {}).get(scope, {}))
    if not shown:
        return None
    chart = empty_chart("% of growth", height=260)
    for fit in shown:
        colour, dash = LAW_LINES.get(fit.law, (GREEN, "dashdot"))
        leftover = 100 * (series.values - fit.predict(series.steps)) / np.ptp(series.values)
        name = LAW_NAMES.get(fit.law, fit.law)
        add_line(chart, series.steps, leftover, name, colour, mode="lines+markers", dash=dash)
    return chart


def exponent_chart(run: RunTable, fits: Fits) -> go.Figure:
    """Return the exponent between neighbouring checkpoints, and that of each fitted law."""
    scope, series = run.main_series("l2")
    at, local = local_exponents(series.steps, series.values)
    chart = empty_chart("d ln ‖θ‖/d ln t", height=260)
    add_line(chart, at, local, "checkpoints", DOT_GREY, mode="markers", size=7)
    for fit in choose_laws(fits.get(run.name, {}).get(scope, {})):
        colour, dash = LAW_LINES.get(fit.law, (GREEN, "dashdot"))
        name = LAW_NAMES.get(fit.law, fit.law)
        add_line(chart, at, fit.local_exponent(at), name, colour, dash=dash)
    choose_step_axis(chart, series.steps)
    return chart


def layer_panels(run: RunTable) -> Iterator[Panel]:
    """Yield the norm of each layer, coloured by depth, a chart for each stack."""
    for stack, layers in run.layers("l2").items():
        if max(map(len, layers.values())) == 1:
            rows = {f"layer {number}": series for number, series in layers.items()}
            chart = rows_chart(rows, "‖θ‖₂ of the layer")
            yield Panel(chart, f"{stack}: norm of each layer")
            continue
        deepest = max(1, *layers)
        chart = empty_chart("‖θ‖₂ of the layer")
        for number, series in layers.items():
            [colour] = sample_colorscale("Viridis", [0.92 * number / deepest])
            name = f"layer {number}"
            add_line(chart, series.steps, series.values, name, str(colour), "lines+markers")
        chart.update_layout(showlegend=len(layers) <= MOST_NAMED)
        yield Panel(chart, f"{stack}: norm of each layer", "Dark: next to the input.")


def scope_chart(run: RunTable, metric: str, label: str, logarithmic: bool = False) -> go.Figure:
    """Return one metric of every main scope against the training step."""
    chart, steps = empty_chart(label), np.empty(0, np.int64)
    for scope, series in run.parts(metric).items():
        values = relative_rate(series) if metric == "relative_step" else series.values
        colour = SCOPE_COLOURS.get(scope, BLACK)
        add_line(chart, series.steps, values, escape(scope), colour, mode="lines+markers")
        steps = np.union1d(steps, series.steps)
    choose_step_axis(chart, steps)
    if logarithmic and any(y and y > 0 for line in traces(chart) for y in line.y):
        chart.update_yaxes(type="log", exponentformat="power")
    return chart


def _law_label(fit: Fit, best: Fit | None) -> str:
    name = LAW_NAMES.get(fit.law, fit.law.replace("_", " "))
    power = f", {exponent(fit)}" if fit.law == "power" else ""
    return name + power + (" (best by AICc)" if fit is best else "")
