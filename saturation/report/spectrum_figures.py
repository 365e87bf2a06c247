"""Eigenvalues of heads in the complex plane, layer by layer, and through training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Complex128
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch, Rectangle

from saturation.report.saturation_figures import HEADS
from saturation.report.series import RunTable, quartiles
from saturation.report.style import (
    BLACK,
    BLUE,
    GREY,
    SKY,
    WIDTH,
    is_log_spaced,
    log_values,
    shorten,
    step_axis,
    title,
)

KINDS = {"encoder": "attention", "decoder": "self_attention"}
COLUMNS = 6
PRODUCT = r"diag(g) $W_V W_O$"
TREND_HEIGHT = 3.2  # inches
AGAIN, PART, ALIKE = "#EADCF4", "#DCEBF7", "#FBE9D7"
REGIONS = {
    "|1 + λ| > 1, left: alike again, turning sign": AGAIN,
    "|1 + λ| < 1: not alike; they part if λ^A < 0": PART,
    "|1 + λ| > 1, right: tokens become alike": ALIKE,
}
TRENDS = {
    "fraction_negative": "share of λ with Re λ < 0",
    "spectral_radius": "max |λ|, median of heads",
    "asymmetry": "asymmetry: 0 symmetric, 1 skew",
    "sharpens_below": "parts if min λ^A < this; −1: never",
}


def draw_spectrum(parent: Figure | SubFigure, run: RunTable) -> None:
    """Draw the spectrum of each layer at three checkpoints, and what it became through training."""
    title(parent, f"Do heads smooth or sharpen? Eigenvalues λ of {PRODUCT}: {shorten(run.name)}")
    chosen = shown_layers(run)
    rows, columns = -(-len(chosen) // COLUMNS), min(len(chosen), COLUMNS)
    ratios = [height(run) - TREND_HEIGHT, TREND_HEIGHT]
    planes, trends = parent.subfigures(2, 1, squeeze=False, height_ratios=ratios)[:, 0]
    panels = planes.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes, (stack, layer) in zip(panels.flat, chosen, strict=False):
        _plane(axes, run, stack, layer)
    for axes in panels[:, 0]:
        axes.set_ylabel("Im", fontsize=8)
    _legend(planes, run)
    trends.suptitle("Through training, λ as the weights have it (rms = 1)", fontsize=10)
    for axes, (metric, label) in zip(trends.subplots(1, len(TRENDS)), TRENDS.items(), strict=True):
        _trend(axes, run, metric)
        axes.set_title(label, fontsize=9)
    handles, labels = trends.axes[0].get_legend_handles_labels()
    trends.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)


def height(run: RunTable) -> float:
    """Return the inches that `draw_spectrum` needs: more for a second row of planes."""
    chosen = shown_layers(run)
    width = WIDTH / max(min(len(chosen), COLUMNS), 2)
    return TREND_HEIGHT + 1.4 + -(-len(chosen) // COLUMNS) * (width + 0.2)


def shown_layers(run: RunTable) -> list[tuple[str, int]]:
    """Return up to six layers of each stack, evenly chosen by depth, the encoder's first."""
    return [(stack, layer) for stack in KINDS for layer in _evenly(layers_of(run, stack), COLUMNS)]


def layers_of(run: RunTable, stack: str) -> list[int]:
    """Return the layers of a stack whose eigenvalues are there, by depth."""
    found = eigenvalue_rows(run, stack)["scope"].str.extract(r"layers_(\d+)/")[0]
    return sorted({int(layer) for layer in found})


def eigenvalue_rows(run: RunTable, stack: str, layer: int | None = None) -> pd.DataFrame:
    """Return the rows of `load_vectors` for a stack's self-attention, or for one layer's."""
    number = r"\d+" if layer is None else str(layer)
    pattern = rf"{stack}/layers_{number}/{KINDS[stack]}/head_\d+"
    return run.eigenvalues.loc[run.eigenvalues["scope"].str.fullmatch(pattern)]


def effective(
    run: RunTable, stack: str, layer: int, step: int
) -> tuple[Complex128[np.ndarray, " eigenvalues"], bool]:
    """Return all heads' λ of a layer at a step, and whether they are divided by its input's rms.

    That is known where `smoothing` was measured at that step; else they are as the weights say.
    """
    rows = eigenvalue_rows(run, stack, layer)
    rows = rows[rows["step"] == step]
    real, imaginary = (np.concatenate([[], *rows[part]]) for part in ("real", "imaginary"))
    before = f"{stack}/layers_{layer - 1}" if layer else f"{stack}/embedding"
    rms = run.series("token_rms", before)
    scale = np.nan if rms is None else rms.at(step)
    known = bool(np.isfinite(scale))
    return (real + 1j * imaginary) / (scale if known else 1.0), known


def window(values: Complex128[np.ndarray, " eigenvalues"]) -> tuple[float, int]:
    """Return how far from 0 a square must reach to show nearly all, and how many lie outside."""
    size = np.maximum(np.abs(np.real(values)), np.abs(np.imag(values)))
    size = size[np.isfinite(size)]
    reach = max(2.4, 1.05 * float(np.quantile(size, 0.98))) if len(size) else 2.4
    return reach, int((size > reach).sum())


def scaled_by(divided: Sequence[bool]) -> str:
    """Return what eigenvalues are, some of which `effective` divided by the rms and some not."""
    if all(divided):
        return "λ/rms"
    return "λ (/rms where measured)" if any(divided) else "λ (rms not measured)"


def _checkpoints(run: RunTable) -> list[int]:
    steps = sorted(run.eigenvalues["step"].unique().tolist())
    return _evenly(steps, 3)


def _evenly(items: Sequence[int], most: int) -> list[int]:
    count = min(most, len(items))
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _plane(axes: Axes, run: RunTable, stack: str, layer: int) -> None:
    everything, divided = [], []
    for step, colour in zip(_checkpoints(run), _colours(run), strict=True):
        values, known = effective(run, stack, layer, step)
        divided.append(known)
        axes.scatter(
            np.real(values), np.imag(values), s=9, color=colour, alpha=0.65, lw=0, zorder=3
        )
        everything.append(values)
    reach, outside = window(np.concatenate(everything))
    axes.set_facecolor(ALIKE)
    axes.add_patch(Rectangle((-4 * reach, -4 * reach), 4 * reach - 1, 8 * reach, color=AGAIN, lw=0))
    axes.add_patch(Circle((-1, 0), 1, color=PART, lw=0))
    axes.axhline(0, color=GREY, lw=0.6)
    axes.axvline(0, color=GREY, lw=0.6)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.grid(False)
    axes.tick_params(labelsize=8)
    more = f", {outside} λ outside" if outside else ""
    axes.set_title(f"{stack} layer {layer}{more}", fontsize=9)
    axes.set_xlabel(f"Re {scaled_by(divided)}", fontsize=8)


def _colours(run: RunTable) -> list[str]:
    return [GREY, SKY, BLUE][-len(_checkpoints(run)) :]


def _legend(planes: SubFigure, run: RunTable) -> None:
    dots = [
        Line2D([], [], ls="none", marker="o", ms=5, color=colour, label=f"step {step:,}")
        for step, colour in zip(_checkpoints(run), _colours(run), strict=True)
    ]
    shades = [Patch(color=colour, label=label) for label, colour in REGIONS.items()]
    planes.legend(handles=[*dots, *shades], loc="outside lower center", ncols=3, fontsize=9)


def _trend(axes: Axes, run: RunTable, metric: str) -> None:
    for kind, (pattern, colour) in HEADS.items():
        heads = list(run.matching(metric, pattern).values())
        if not heads:
            continue
        steps, (low, middle, high) = quartiles(heads)
        axes.plot(steps, middle, "o-", color=colour, ms=3, label=f"{kind} (median, quartiles)")
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)
        step_axis(axes, steps, is_log_spaced(steps))
    if metric == "spectral_radius":
        log_values(axes)
    if metric == "sharpens_below":
        axes.set_ylim(-1.08, 1.08)
    axes.set_xlabel("training step", fontsize=9)
    if metric == "fraction_negative":
        axes.axhline(0.5, color=BLACK, lw=0.7, ls=":")
    axes.tick_params(labelsize=8)
