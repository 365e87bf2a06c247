"""The picture of `saturation demo oversmoothing`: a column a planted spectrum, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from saturation.report.style import (
    BLACK,
    BLUE,
    GREY,
    RC,
    VERMILION,
    new_figure,
    save_figure,
    title,
)

Panels = Mapping[str, Mapping[str, np.ndarray]]


def write_figure(rows: Sequence[Mapping[str, Any]], panels: Panels, folder: Path) -> list[Path]:
    """Draw cosines, rank and HFC/LFC of every case against the layer; return the paths written."""
    with matplotlib.rc_context(RC):
        figure = new_figure(7.2)
        grid = figure.subplots(3, len(rows), sharex=True, sharey="row", squeeze=False)
        for column, row in zip(grid.T, rows, strict=True):
            panel = panels[row["case"]]
            column[0].set_title(f"{row['case']}\n{row['shows']}", fontsize=9)
            _cosines(column[0], panel)
            column[1].plot(panel["effective_rank"], color=BLACK)
            _ratio(column[2], panel, row["change"])
            column[2].set_xlabel("layer")
        for axes, label in zip(
            grid[:, 0], ("mean cosine", "effective rank", "HFC/LFC"), strict=True
        ):
            axes.set_ylabel(label)
        grid[1, 0].set_ylim(0, None)
        grid[0, 0].legend(loc="center right", fontsize=8)
        grid[2, 0].legend(loc="upper right", fontsize=8)
        title(
            figure,
            "X′ = X + A X H: spectra decide whether tokens become equal or part, in rank one "
            "either way",
        )
        return save_figure(figure, folder, "oversmoothing")


def _cosines(axes: Axes, panel: Mapping[str, np.ndarray]) -> None:
    axes.axhline(0, color=GREY, lw=0.7)
    axes.plot(panel["token_cosine_abs"], color=VERMILION, ls="--", label="|cos|")
    axes.plot(panel["token_cosine"], color=BLUE, label="cos")
    axes.set_ylim(-0.25, 1.05)


def _ratio(axes: Axes, panel: Mapping[str, np.ndarray], change: float) -> None:
    ratio = panel["hfc_lfc"]
    layers = np.arange(len(ratio))
    forecast = ratio[-1] * np.exp(change * (layers - layers[-1]))
    axes.plot(layers, ratio, color=BLACK, label="measured")
    axes.plot(layers, forecast, color=VERMILION, ls=":", label="forecast slope")
    axes.set_yscale("log")
