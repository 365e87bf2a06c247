"""Pictures of the Scan and Snap simulations, from their tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Shaped
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from saturation.report.style import (
    BLACK,
    GREY,
    MARKERS,
    RC,
    RUN_COLOURS,
    VERMILION,
    new_figure,
    save_figure,
    title,
)

Row = Mapping[str, Any]

ETA_Y, ETA_Z = r"$\eta_Y$", r"$\eta_Z$"


def write_figure_6(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw entropy against the ratio of learning rates, one panel a number of last tokens."""
    numbers = sorted({row["last_tokens"] for row in rows})
    with matplotlib.rc_context(RC):
        figure = new_figure(4.6)
        panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
        for axes, number in zip(panels, numbers, strict=True):
            _draw_entropy(axes, [row for row in rows if row["last_tokens"] == number])
            axes.set_title(f"{number} last token{'s' if number > 1 else ''}", color=GREY)
        panels[0].set_ylabel("entropy on distinct tokens (nats)")
        panels[-1].legend(title=f"rate of Z, {ETA_Z}", loc="lower right")
        title(
            figure, "How sparse attention becomes: low entropy is few tokens (mean ± sd of seeds)"
        )
        return save_figure(figure, folder, "figure6")


def _draw_entropy(axes: Axes, rows: Sequence[Row]) -> None:
    for place, rate in enumerate(sorted({row["eta_z"] for row in rows})):
        line = _columns([row for row in rows if row["eta_z"] == rate])
        axes.errorbar(
            line["eta_y_over_eta_z"],
            line["entropy_mean"],
            yerr=line["entropy_std"],
            color=RUN_COLOURS[place],
            marker=MARKERS[place],
            capsize=2.5,
            label=f"{rate:g}",
        )
    ratios = sorted({row["eta_y_over_eta_z"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(ratios)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(f"learning rate of Y/of Z, {ETA_Y}/{ETA_Z}")


def write_figure_4(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw what each class attends to, tokens by iterations, one row of panels a learning rate."""
    rates = sorted({row["eta_y"] for row in rows})
    classes = sorted({row["class"] for row in rows})
    peak = max(row["c"] for row in rows)
    with matplotlib.rc_context({**RC, "axes.grid": False}):
        figure = new_figure(3.6 * len(rates))
        grid = figure.subplots(len(rates), len(classes), sharex=True, squeeze=False)
        pairs = [(rate, of_class) for rate in rates for of_class in classes]
        for axes, (rate, of_class) in zip(grid.flat, pairs, strict=True):
            chosen = [r for r in rows if r["eta_y"] == rate and r["class"] == of_class]
            _draw_heat(axes, chosen, peak)
            axes.set_title(f"class {of_class}, {ETA_Y} = {rate:g}, {ETA_Z} = 1", color=GREY)
        for axes in grid[-1]:
            axes.set_xlabel("iteration")
        figure.colorbar(
            grid[0, 0].images[0], ax=grid, label="c: share of the attention", shrink=0.7
        )
        title(figure, "Attention leaves the common tokens and settles on a few distinct ones")
        return save_figure(figure, folder, "figure4")


def _draw_heat(axes: Axes, rows: Sequence[Row], peak: float) -> None:
    table = _columns(rows)
    iterations = int(table["iteration"].max()) + 1
    values = table["c"].reshape(iterations, -1).T
    kinds = [row["kind"] for row in rows[: len(values)]]
    shared = kinds.count("common")
    axes.imshow(
        values, aspect="auto", origin="lower", vmin=0, vmax=peak, cmap="viridis", rasterized=True
    )
    axes.axhline(shared - 0.5, color="white", linewidth=1)
    middles = [(shared - 1) / 2, (shared + len(values) - 1) / 2]
    axes.set_yticks(middles, ["common", "distinct,\nfrequent on top"], va="center")
    axes.tick_params(axis="y", labelsize=9)
    axes.tick_params(axis="y", rotation=90, length=0)


def write_figure_3(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw the winner's growth, the speed of attention and what is left to learn, by time."""
    rates = sorted({row["eta_y"] for row in rows})
    with matplotlib.rc_context(RC):
        figure = new_figure(7.6)
        grid = figure.subplots(3, len(rates), sharex="col", sharey="row", squeeze=False)
        for column, rate in zip(grid.T, rates, strict=True):
            of_rate = [row for row in rows if row["eta_y"] == rate]
            _draw_times(column, of_rate)
            column[0].set_title(f"{ETA_Y} = {rate:g}", color=GREY)
        for axes, label in zip(
            grid[:, 0],
            ("χ, the winner's growth", "γ, attention's speed", "1 − p(next token)"),
            strict=True,
        ):
            axes.set_ylabel(label)
        top = max(*(row["chi"] for row in rows), *(row["chi_upper"] for row in rows))
        grid[0, 0].set_ylim(0.8, 3 * top)
        of = rows[0]
        sizes = f"{of['classes']} classes, {of['size']} tokens, {ETA_Z} = {of['eta_z']:g}"
        handles, labels = grid[1, 0].get_legend_handles_labels()
        bounds, names = grid[0, 0].get_legend_handles_labels()
        figure.legend(
            [*handles, bounds[-1]],
            [*labels, names[-1]],
            loc="outside lower center",
            ncols=2,
            title=f"{sizes}; dotted: t₀ = 2K ln M/{ETA_Y}; cross: Lemma 3's t½",
        )
        title(
            figure,
            "Where classes share one token, theory's γ and t½ hold; where ten, learning lags",
        )
        return save_figure(figure, folder, "figure3")


def _draw_times(column: Iterable[Axes], rows: Sequence[Row]) -> None:
    """One learning rate: growth, speed, residual; a line a number of common tokens."""
    growth, speed, residual = column
    numbers = sorted({row["common"] for row in rows})
    for number, colour in zip(numbers, (RUN_COLOURS[0], BLACK), strict=False):
        table = _columns([row for row in rows if row["common"] == number])
        label = f"gradient flow, {number} common token{'s' if number > 1 else ''}"
        growth.plot(table["time"], table["chi"], color=colour)
        speed.plot(table["time"], table["gamma_simulated"], color=colour, label=label)
        residual.plot(table["time"], table["residual"], color=colour)
    table = _columns([row for row in rows if row["common"] == numbers[-1]])
    speed.plot(table["time"], table["gamma"], color=VERMILION, linestyle="--", label="theory")
    growth.fill_between(
        table["time"],
        table["chi_lower"],
        table["chi_upper"],
        color="#D6E4F0",
        label=f"theory's bounds of χ if C₀ = 1 (language of {numbers[-1]})",
    )
    growth.set_yscale("log")
    residual.plot(table["half_time"][0], 0.5, "x", color=VERMILION, zorder=3)
    residual.set_xlabel("time of gradient flow")
    for axes in column:
        axes.axvline(table["snap_time"][0], color=VERMILION, linestyle=":")


def _columns(rows: Sequence[Row]) -> dict[str, Shaped[np.ndarray, " rows"]]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}
