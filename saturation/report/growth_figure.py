"""The first pictures of a run: how its norm grew, and how far the fitted laws are from it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from saturation.growth import MINIMUM_POINTS, Fit, best_law, describe
from saturation.growth_text import caution
from saturation.power_law import local_exponents
from saturation.report.series import SCOPE_MEANING, Fits, RunTable, Series
from saturation.report.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    MARKERS,
    RUN_COLOURS,
    VERMILION,
    shorten,
    step_axis,
    title,
)

CURVE_POINTS = 400
DOT_GREY = "#A3ADB8"
LAW_NAMES = {"power": "free power", "sqrt": "square root"}


def draw_growth(parent: Figure | SubFigure, run: RunTable, fits: Fits) -> None:
    """Draw the norm of the run's first main scope with its fits, and what the fits leave over."""
    scope, series = run.main_series("l2")
    laws = fits.get(run.name, {}).get(scope, {})
    shown = choose_laws(laws)
    if shown:
        upper, middle, lower = parent.subplots(3, 1, sharex=True, height_ratios=(3.2, 1, 1))
        _draw_leftovers(middle, series, shown)
        _draw_exponents(lower, series, shown)
        step_axis(lower, series.steps)
        warned = caution(len(series))
        if warned:
            _say(upper, warned.replace(": ", ":\n", 1))
    else:
        upper = parent.subplots()
        step_axis(upper, series.steps)
        _say(upper, f"no law fitted: {len(series)} checkpoints, {MINIMUM_POINTS} are needed")
    title(parent, f"How the parameter norm grew through pretraining: {shorten(run.name)}")
    upper.set_title(f"“{scope}”: {SCOPE_MEANING.get(scope, scope)}", color=GREY)
    _draw_curves(upper, series, shown, best_law(laws))
    upper.plot(
        series.steps,
        series.values,
        "o",
        color=DOT_GREY,
        markersize=7,
        label=f"{len(series)} checkpoints",
        zorder=1.5,  # below the curves, which would vanish under dots that lie close
    )
    upper.margins(y=0.1)
    upper.set_ylabel("‖θ‖₂  (Euclidean norm, no unit)")
    handles, labels = upper.get_legend_handles_labels()
    upper.legend(handles[::-1], labels[::-1], loc="lower right")
    if shown and series.steps[0] == 0:
        _mark_start(upper, series)


def draw_scopes(parent: Figure | SubFigure, runs: Sequence[RunTable], fits: Fits) -> None:
    """Draw the norm of every main scope in a panel of its own, all runs over each other."""
    scopes = list(dict.fromkeys(scope for run in runs for scope in run.scopes("l2")))
    columns = min(3, len(scopes))
    rows = math.ceil(len(scopes) / columns)
    panels = parent.subplots(rows, columns, squeeze=False)
    only = f": {shorten(runs[0].name)}" if len(runs) == 1 else ""
    title(parent, rf"Norm of each part of the model, with its fitted power $a·t^p + b${only}")
    for panel, scope in zip(panels.flat, scopes, strict=False):
        _draw_scope(panel, scope, runs, fits)
    for panel in panels[:, 0]:
        panel.set_ylabel("‖θ‖₂")
    spare = list(panels.flat[len(scopes) :])
    for panel in spare:
        panel.set_axis_off()
    handles = _legend_entries(runs)
    if spare:
        spare[0].legend(handles=handles, loc="upper left")
    else:
        parent.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))


def choose_laws(laws: Mapping[str, Fit]) -> list[Fit]:
    """Return the fits worth a curve: the free power, √t (the published claim), and the best law."""
    if not laws:
        return []
    best = best_law(laws)
    names = ["power", "sqrt"]
    if best is not None and best.law not in names:
        names.append(best.law)
    return [laws[name] for name in names if name in laws and not math.isnan(laws[name].r2)]


def explain(fit: Fit) -> str:
    """Return a fit as a legend says it: its equation, and the interval of a free exponent."""
    text = re.sub(r"t\^([\d.]+)", r"$t^{\1}$", describe(fit))
    if fit.interval is not None:
        low, high = fit.interval
        text += f"   (95 %: {low:.2f} to {high:.2f})"
    if fit.law == "power" and fit.without_first is not None and fit.without_first.p is not None:
        text += f"; p = {fit.without_first.p:.2f} without step 0"
    return text


def _draw_curves(axes: Axes, series: Series, shown: Sequence[Fit], best: Fit | None) -> None:
    """Draw each law between the first and the last step, named by its equation."""
    t = np.linspace(series.steps[0], series.steps[-1], CURVE_POINTS)
    for fit, (colour, line) in zip(shown, _law_styles(shown), strict=True):
        name = LAW_NAMES.get(fit.law, fit.law.replace("_", " "))
        label = f"{name}: {explain(fit)}" + (", best by AICc" if fit is best else "")
        axes.plot(t, fit.predict(t), color=colour, linestyle=line, label=label)
        if fit.thirds:
            powers = ", ".join(f"{third.p:.2f}" for third in fit.thirds)
            verdict = "may be constant" if fit.power_is_constant else "not constant"
            label = f"p of thirds of the run: {powers} ({verdict})"
            axes.plot([], [], linestyle="none", label=label)


def _draw_leftovers(axes: Axes, series: Series, shown: Sequence[Fit]) -> None:
    """Draw measured minus fitted, in percent of the whole growth: what a law does not explain."""
    growth = np.ptp(series.values)
    for fit, (colour, line) in zip(shown, _law_styles(shown), strict=True):
        leftover = 100 * (series.values - fit.predict(series.steps)) / growth
        axes.plot(
            series.steps, leftover, color=colour, linestyle=line, marker="o", markersize=3, lw=1.2
        )
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_ylabel("measured − fit\n(% of growth)")


def _draw_exponents(axes: Axes, series: Series, shown: Sequence[Fit]) -> None:
    """Draw the exponent between neighbouring checkpoints, beside that of each law."""
    at, local = local_exponents(series.steps, series.values)
    axes.plot(at, local, "o", color=DOT_GREY, markersize=4, zorder=1.5)
    for fit, (colour, line) in zip(shown, _law_styles(shown), strict=True):
        axes.plot(at, fit.local_exponent(at), color=colour, linestyle=line, lw=1.2)
    axes.set_ylabel("local exponent\nd ln ‖θ‖/d ln t")


def _law_styles(shown: Sequence[Fit]) -> list[tuple[str, object]]:
    """Return colour and line of each curve; the third law, if any, is whichever beats both."""
    known = {"power": (VERMILION, "-"), "sqrt": (BLUE, (0, (5, 2)))}
    return [known.get(fit.law, (GREEN, "-.")) for fit in shown]


def _mark_start(axes: Axes, series: Series) -> None:
    """Write the first and the last norm beside their points."""
    for index, offset, side in ((0, (9, -9), "left"), (-1, (-9, 6), "right")):
        axes.annotate(
            f"{series.values[index]:,.4g}",
            (series.steps[index], series.values[index]),
            xytext=offset,
            textcoords="offset points",
            ha=side,
            color=BLACK,
            fontsize=10,
        )


def _draw_scope(axes: Axes, scope: str, runs: Sequence[RunTable], fits: Fits) -> None:
    """Draw one scope of every run that has it."""
    notes = []
    for index, run in enumerate(runs):
        series = run.series("l2", scope)
        if series is None:
            continue
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        axes.plot(
            series.steps,
            series.values,
            MARKERS[index % len(MARKERS)],
            color=colour,
            markersize=3.5,
            label=run.name,
        )
        power = fits.get(run.name, {}).get(scope, {}).get("power")
        if power is not None:
            t = np.linspace(series.steps[0], series.steps[-1], CURVE_POINTS)
            axes.plot(t, power.predict(t), color=colour, linewidth=1.2)
            notes.append((_exponent(power), colour))
        step_axis(axes, series.steps)
    axes.set_title(scope, weight="bold")
    for line, (note, colour) in enumerate(notes[:6]):
        axes.annotate(
            note,
            (0.98, 0.04),
            xytext=(0, 14 * (len(notes[:6]) - 1 - line)),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            fontsize=10,
            color=colour if len(runs) > 1 else BLACK,
        )


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


def _say(axes: Axes, text: str) -> None:
    """Write a warning into the upper left of a panel."""
    axes.annotate(text, (0.02, 0.96), xycoords="axes fraction", va="top", color=VERMILION)


def _legend_entries(runs: Sequence[RunTable]) -> list[Line2D]:
    """Return an entry for each run, or for dots and line where the title names the only run."""
    if len(runs) == 1:
        entries = [
            Line2D([], [], color=RUN_COLOURS[0], linestyle="none", marker="o", label="checkpoints"),
            Line2D([], [], color=RUN_COLOURS[0], label="fitted power"),
        ]
    else:
        entries = [
            Line2D(
                [],
                [],
                color=RUN_COLOURS[index % len(RUN_COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                label=shorten(run.name),
            )
            for index, run in enumerate(runs)
        ]
    return [*entries, Line2D([], [], linestyle="none", label="p: exponent (95 % interval)")]
