"""How the parameters' norm grew: the whole with its laws, each part, each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from saturation.growth.fit import MINIMUM_POINTS, Fit, best_law, equation
from saturation.growth.power_law import local_exponents
from saturation.growth.text import caution, choose_laws
from saturation.plots.colours import (
    BLACK,
    BLUE,
    DOT_GREY,
    GREEN,
    RUN_COLOURS,
    SCOPE_COLOURS,
    VERMILION,
    shades,
)
from saturation.plots.notation import plain
from saturation.plots.panels import (
    STEPS,
    Axis,
    Dash,
    HeatMap,
    Line,
    Mark,
    Note,
    Panel,
    Picture,
    Rule,
)
from saturation.plots.series import RunTable, StepSeries, on_steps

CURVE_POINTS = 400
LAW_NAMES = {"power": "free power", "sqrt": "square root"}
NORM = "‖θ‖₂  (Euclidean norm, no unit)"
# Growth laws are read off a linear axis of steps, on which √t and t are what they look like.
LINEAR = Axis("training step", "linear")
READS = "The Euclidean norm of all parameters of a scope, without unit."


def pictures(run: RunTable) -> Iterator[Picture]:
    """Yield the growth of the whole with its laws, and the norms of layers."""
    if not run.scopes("l2"):
        return
    rows = [(panel,) for panel in growth_panels(run)]
    yield Picture("growth", "How the parameter norm grew through pretraining", "Growth", READS,
                  rows)  # fmt: skip
    if run.layers("l2"):
        panels = layer_panels(run)
        yield Picture("layers", "Norm of each layer", "Layers", READS, [panels])


def together(runs: Sequence[RunTable]) -> Iterator[Picture]:
    """Yield the norm of every main scope, all runs over each other."""
    scopes = list(dict.fromkeys(scope for run in runs for scope in run.scopes("l2")))
    if not scopes or all(len(run.scopes("l2")) < 2 for run in runs):
        return
    panels = [scope_panel(scope, runs) for scope in scopes]
    rows = [panels[start : start + 3] for start in range(0, len(panels), 3)]
    title = "Norm of each part of the model, with its fitted power a·t^p + b"
    yield Picture("scopes", title, "Parts of the model", READS, rows)


def compared(run: RunTable) -> Iterator[tuple[str, Line, Axis, str]]:
    """Yield (title, line, axis, what it is) of the number by which runs are compared."""
    if not run.scopes("l2"):
        return
    _, series = run.main_series("l2")
    if series.values[0]:
        line = Line(series.steps, series.values / series.values[0])
        says = "Of the first of `blocks`, `encoder`, … that the run has."
        yield "Norm relative to the first checkpoint", line, Axis("‖θ‖₂ / ‖θ_first‖₂"), says


def growth_panels(run: RunTable) -> Iterator[Panel]:
    """Yield the norm of the whole with its laws, what these leave over, and each part."""
    scope, series = run.main_series("l2")
    laws = run.laws.get(scope, {})
    shown = choose_laws(laws)
    yield _growth(scope, run.meaning(scope) or scope, series, laws, shown)
    if shown:
        yield _leftovers(series, shown)
        yield _exponents(series, shown)
    parts = run.parts("l2")
    if len(parts) > 1:
        lines = [
            Line(one.steps, one.values, name, SCOPE_COLOURS.get(name, BLACK), symbol="circle")
            for name, one in parts.items()
        ]
        yield Panel("Norm of each part", lines, Axis("‖θ‖₂", "log"), says="Logarithmic axis.",
                    legend=True, wide=True)  # fmt: skip


def layer_panels(run: RunTable) -> list[Panel]:
    """Return the norm of every layer, a panel a stack, dark next to the input."""
    panels = []
    for stack, layers in run.layers("l2").items():
        steps, values = on_steps(list(layers.values()))
        rows = [f"layer {number}" for number in layers]
        if len(steps) == 1:
            marks: list[Mark] = [HeatMap(steps, rows, values, "‖θ‖₂ of the layer")]
        else:
            marks = [
                Line(one.steps, one.values, name, colour, symbol="circle", size=3)
                for (name, one), colour in zip(
                    zip(rows, layers.values(), strict=True), shades(len(layers)), strict=True
                )
            ]
        panels.append(Panel(f"{stack}, {len(layers)} layers", marks, Axis("‖θ‖₂ of the layer")))
    return panels


def scope_panel(scope: str, runs: Sequence[RunTable]) -> Panel:
    """Return one scope of every run that has it, with its fitted power."""
    marks: list[Mark] = []
    notes = []
    for index, run in enumerate(runs):
        series = run.series("l2", scope)
        if series is None:
            continue
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        name = plain(run.name) if len(runs) > 1 else "checkpoints"
        marks.append(Line(series.steps, series.values, name, colour, "none", "circle", 3.5))
        power = run.laws.get(scope, {}).get("power")
        if power is not None:
            t = np.linspace(series.steps[0], series.steps[-1], CURVE_POINTS)
            fitted = "" if len(runs) > 1 else "fitted power"
            marks.append(Line(t, power.predict(t), fitted, colour, width=1.2))
            notes.append(_exponent(power))
    if len(notes) == 1:
        marks.append(Note(notes[0], corner="lower right"))
    elif notes:
        marks.append(Note("; ".join(notes[:6]), corner="lower right"))
    axis = LINEAR if notes else STEPS
    return Panel(scope, marks, Axis("‖θ‖₂"), axis, runs[0].meaning(scope), 3.0)


def _growth(
    scope: str, meaning: str, series: StepSeries, laws: Mapping[str, Fit], shown: Sequence[Fit]
) -> Panel:
    marks: list[Mark] = [
        Line(
            series.steps, series.values, f"{len(series)} checkpoints", DOT_GREY, "none", "circle", 7
        )
    ]
    best = best_law(laws)
    t = np.linspace(series.steps[0], series.steps[-1], CURVE_POINTS)
    for fit in shown:
        colour, dash = _look(fit)
        name = f"{_name(fit)}: {_explain(fit)}{', best by AICc' if fit is best else ''}"
        marks.append(Line(t, fit.predict(t), name, colour, dash, width=1.8))
    warned = caution(len(series)) if shown else None
    if not shown:
        warned = f"no law fitted: {len(series)} checkpoints, {MINIMUM_POINTS} are needed"
    if warned:
        marks.append(Note(warned, colour=VERMILION))
    if shown and series.steps[0] == 0:
        for index in (0, -1):
            place = float(series.steps[index]), float(series.values[index])
            marks.append(Note(f"{series.values[index]:,.4g}", *place))
    title = f"“{scope}”: {meaning}"
    axis = LINEAR if shown else STEPS
    return Panel(title, marks, Axis(NORM), axis, height=4.6, legend=True, wide=True)


def _leftovers(series: StepSeries, shown: Sequence[Fit]) -> Panel:
    """Return measured minus fitted, in percent of the whole growth: what a law does not explain."""
    growth = np.ptp(series.values)
    marks: list[Mark] = [Rule(0)]
    for fit in shown:
        colour, dash = _look(fit)
        leftover = 100 * (series.values - fit.predict(series.steps)) / growth
        marks.append(Line(series.steps, leftover, _name(fit), colour, dash, "circle", 3))
    says = "Measured − fit. Scatter around 0 is a law that holds, a bend is a law that does not."
    return Panel("What the laws leave over", marks, Axis("measured − fit (% of growth)"), LINEAR,
                 says, 2.2, wide=True)  # fmt: skip


def _exponents(series: StepSeries, shown: Sequence[Fit]) -> Panel:
    """Return the exponent between neighbouring checkpoints, beside that of each law."""
    at, local = local_exponents(series.steps, series.values)
    marks: list[Mark] = [Line(at, local, "between checkpoints", DOT_GREY, "none", "circle")]
    for fit in shown:
        colour, dash = _look(fit)
        marks.append(Line(at, fit.local_exponent(at), _name(fit), colour, dash))
    says = "ln(ρ′/ρ)/ln(t′/t) at √(t·t′). That of a law varies wherever b ≠ 0."
    return Panel("Local exponent", marks, Axis("d ln ‖θ‖/d ln t"), LINEAR, says, 2.2, wide=True)


def _look(fit: Fit) -> tuple[str, Dash]:
    """Return colour and dash of a law; the third one, if any, is whichever beats both."""
    known: dict[str, tuple[str, Dash]] = {"power": (VERMILION, "solid"), "sqrt": (BLUE, "dash")}
    return known.get(fit.law, (GREEN, "dashdot"))


def _name(fit: Fit) -> str:
    return LAW_NAMES.get(fit.law, fit.law.replace("_", " "))


def _explain(fit: Fit) -> str:
    """Return a fit as a legend says it: its equation, and what is known of a free exponent."""
    text = equation(fit)
    if fit.interval is not None:
        low, high = fit.interval
        text += f" (95 %: {low:.2f} to {high:.2f})"
    if fit.law == "power" and fit.without_first is not None and fit.without_first.p is not None:
        text += f"; p = {fit.without_first.p:.2f} without step 0"
    if fit.thirds:
        powers = ", ".join(f"{third.p:.2f}" for third in fit.thirds)
        text += f"; p of thirds: {powers}" + ("" if fit.power_is_constant else " (not constant)")
    return text


def _exponent(power: Fit) -> str:
    """Return the exponent, as "p = 0.56 (0.53 to 0.60)", or that the series has none."""
    if power.p is None or math.isnan(power.p):
        return "constant"
    if power.p_at_bound:
        return "no power of t fits"
    text = f"p = {power.p:.2f}"
    if power.interval is not None:
        text += f" ({power.interval[0]:.2f} to {power.interval[1]:.2f})"
    return text
