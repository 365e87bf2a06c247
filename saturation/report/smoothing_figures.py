"""How alike tokens are by depth and through training, beside what the spectra forecast."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from saturation.report.series import RunTable
from saturation.report.smoothing_text import STACKS, depth
from saturation.report.style import (
    BLACK,
    BLUE,
    GREY,
    MARKERS,
    VERMILION,
    is_log_spaced,
    log_values,
    shorten,
    step_axis,
    title,
)

CHECKPOINTS_SHOWN = 4
MOST_STATES_NAMED = 8


def draw_smoothing(parent: Figure | SubFigure, run: RunTable) -> None:
    """Draw a row a stack: similarity by depth, HFC/LFC by depth, forecast and fact, by step."""
    stacks = [stack for stack in STACKS if depth(run, stack, "hfc_lfc")]
    title(parent, f"Do tokens grow alike with depth? {shorten(run.name)}")
    panels = parent.subplots(len(stacks), 4, squeeze=False)
    for row, stack in zip(panels, stacks, strict=True):
        _cosines(row[0], run, stack)
        _ratios(row[1], run, stack)
        _changes(row[2], run, stack)
        _through_training(row[3], run, stack)
        row[0].set_ylabel(f"{stack}\nmean over pairs of tokens", fontsize=9)
    headings = ("Cosine, last checkpoint", "HFC/LFC", "Change a layer", "HFC/LFC by step")
    for axes, heading in zip(panels[0], headings, strict=True):
        axes.set_title(heading, fontsize=10)
    for axes in panels.flat:
        axes.tick_params(labelsize=8)
    for axes in panels[:, :3].flat:
        axes.set_xlabel("depth", fontsize=9)
    for axes in panels[:, 3]:
        axes.set_xlabel("training step", fontsize=9)
    for axes in panels[-1]:
        _legend(axes)
    if len({tuple(depth(run, stack, "hfc_lfc")) for stack in stacks}) > 1:
        for axes in panels[:-1, 3]:  # other states, other colours
            _legend(axes)


def _legend(axes: Axes) -> None:
    """Name lines below the axes, where none can be behind; of too many some, evenly."""
    handles, labels = axes.get_legend_handles_labels()
    count = min(len(labels), MOST_STATES_NAMED)
    named = np.linspace(0, len(labels) - 1, count).round().astype(int)
    axes.legend(
        [handles[place] for place in named],
        [labels[place] for place in named],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        fontsize=8,
        ncols=2 if count > 3 else 1,
    )


def shown_steps(run: RunTable, stack: str) -> list[int]:
    """Return up to four steps of those measured: the first, the last, and two between."""
    steps = sorted({step for at in depth(run, stack, "hfc_lfc").values() for step in at})
    chosen = np.linspace(0, len(steps) - 1, min(CHECKPOINTS_SHOWN, len(steps))).round().astype(int)
    return [steps[index] for index in chosen]


def by_depth(run: RunTable, stack: str, metric: str, step: int) -> Float[np.ndarray, " states"]:
    """Return one metric of every state at one step, NaN where it is not there."""
    order = depth(run, stack, "hfc_lfc")
    found = depth(run, stack, metric)
    return np.array([found.get(state, {}).get(step, np.nan) for state in order])


def state_names(run: RunTable, stack: str) -> list[str]:
    """Return what stands under the states: emb, 0, 1, …, norm."""
    return [
        {"embedding": "emb", "final": "norm"}.get(state) or state.rpartition("_")[2]
        for state in depth(run, stack, "hfc_lfc")
    ]


def _cosines(axes: Axes, run: RunTable, stack: str) -> None:
    last = shown_steps(run, stack)[-1]
    for metric, colour, line, label in (
        ("token_cosine_abs", VERMILION, "--", "|cos|"),
        ("token_cosine", BLUE, "-", "cos"),
        ("token_cosine_centred", GREY, ":", "cos, mean taken off"),
    ):
        values = by_depth(run, stack, metric, last)
        errors = by_depth(run, stack, f"{metric}_stderr", last)
        places = np.arange(len(values))
        axes.errorbar(
            places, values, yerr=errors, color=colour, ls=line, marker="o", ms=3, label=label
        )
    axes.axhline(0, color=GREY, lw=0.7)
    axes.set_ylim(min(-0.15, axes.get_ylim()[0]), 1.03)
    _name_states(axes, run, stack)


def _ratios(axes: Axes, run: RunTable, stack: str) -> None:
    steps = shown_steps(run, stack)
    colours = colormaps["viridis"](np.linspace(0.9, 0.0, len(steps)))
    for step, colour, marker in zip(steps, colours, MARKERS, strict=False):
        values = by_depth(run, stack, "hfc_lfc", step)
        axes.plot(values, color=colour, marker=marker, ms=4, label=f"step {step:,}")
    log_values(axes)
    axes.set_ylabel("HFC/LFC: low is alike", fontsize=9)
    _name_states(axes, run, stack)


def _changes(axes: Axes, run: RunTable, stack: str) -> None:
    """Draw forecast and measured changes of ln(HFC/LFC) of each layer at the last checkpoint."""
    last = shown_steps(run, stack)[-1]
    marks: dict[str, tuple[str, Any]] = {
        "forecast_change": ("forecast", {"marker": "D", "color": VERMILION, "mfc": "none"}),
        "measured_change": ("self-attention did", {"marker": "o", "color": BLACK}),
        "onward_change": ("layers left did", {"marker": "s", "color": BLUE, "mfc": "none"}),
    }
    for metric, (label, look) in marks.items():
        values = by_depth(run, stack, metric, last)
        errors = by_depth(run, stack, f"{metric}_stderr", last)
        kept = np.flatnonzero(np.isfinite(values))
        axes.errorbar(kept, values[kept], yerr=errors[kept], ls="none", ms=6, label=label, **look)
    axes.axhline(0, color=GREY, lw=0.9)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.2 * (high - low), high + 0.2 * (high - low))
    axes.text(0.03, 0.97, "above 0: tokens part", transform=axes.transAxes, fontsize=8, va="top")
    axes.text(0.03, 0.03, "below 0: become alike", transform=axes.transAxes, fontsize=8)
    axes.set_ylabel("change of ln(HFC/LFC)", fontsize=9)
    _name_states(axes, run, stack)


def _through_training(axes: Axes, run: RunTable, stack: str) -> None:
    states = depth(run, stack, "hfc_lfc")
    colours = colormaps["viridis"](np.linspace(0.0, 0.9, len(states)))
    for (state, at), colour in zip(states.items(), colours, strict=True):
        steps, values = np.array(list(at)), list(at.values())
        axes.plot(steps, values, color=colour, lw=1.3, marker=".", label=state)
        step_axis(axes, steps, is_log_spaced(steps))
    log_values(axes)


def _name_states(axes: Axes, run: RunTable, stack: str) -> None:
    """Write emb, 0, 1, …, norm under the states."""
    names = state_names(run, stack)
    spacing = -(-len(names) // MOST_STATES_NAMED)
    named = [0, *range(spacing, len(names) - spacing, spacing), len(names) - 1]
    axes.set_xticks(named, [names[place] for place in named], fontsize=8)
    axes.set_xlim(-0.4, len(names) - 0.6)
