"""How figures look: type, axes of steps and of logarithms, files on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Num
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    SymmetricalLogLocator,
)

from saturation.errors import ResultsError
from saturation.plots.colours import GREY
from saturation.storage.write import write_whole

WIDTH = 11.0  # inches
DOTS_PER_INCH = 150
NAME_LENGTH = 45  # characters of a run's name that a title shows

RC: Any = {  # matplotlib types the keys, one by one
    "font.family": "DejaVu Sans",  # comes with matplotlib and has ‖, θ, δ, √ and ¼
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelcolor": "#222222",
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E7EB",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.12,
    "mathtext.default": "regular",
    "pdf.fonttype": 42,  # text stays text in the PDF
}


def new_figure(height: float) -> Figure:
    """Return an empty figure, `height` inches tall; to be called and drawn on under `RC`."""
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def step_axis(axes: Axes, steps: Num[np.ndarray, " points"], logarithmic: bool = False) -> None:
    """Label the axis of training steps; a logarithmic one is linear up to the first step after 0.

    That keeps step 0, which has no logarithm, on the axis beside the others. To be called when
    something is drawn: a single step is the only one that is named.
    """
    positive = steps[steps > 0]
    if logarithmic and len(positive):
        axes.set_xscale("symlog", linthresh=float(positive.min()), linscale=0.5)
        axes.xaxis.set_major_locator(
            SymmetricalLogLocator(base=10, linthresh=float(positive.min()))
        )
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if len(steps) == 1 and axes.dataLim.width == 0:
        axes.set_xticks(steps)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("training step")


def log_values(axes: Axes) -> None:
    """Make the axis of values logarithmic, with ticks that can be read however little it spans.

    Not where no value is above 0.
    """
    if not any(np.any(np.asarray(line.get_ydata(), float) > 0) for line in axes.get_lines()):
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_locator(NullLocator())
    if high < 10 * low:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    elif high < 1000 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        return  # powers of ten, as matplotlib writes them
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def title(part: SubFigure | Figure, text: str) -> None:
    """Write the title of a figure, or of one run's part of it, at its left edge."""
    part.suptitle(text, x=0.01, ha="left", weight="bold")


def shorten(name: str) -> str:
    """Return a run's name as a title has room for it: the end of a long path says most."""
    return name if len(name) <= NAME_LENGTH else "…" + name[1 - NAME_LENGTH :]


def save_figure(figure: Figure, directory: Path, name: str) -> list[Path]:
    """Write a figure as NAME.png and NAME.pdf, each whole or not at all, and without a timestamp.

    Raises:
        ResultsError: the directory cannot be written.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not again for each file
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}}
    paths = []
    for kind, facts in metadata.items():
        path = directory / f"{name}.{kind}"
        save = _saver(figure, kind, facts)
        try:
            write_whole(path, save)
        except OSError as error:
            raise ResultsError(
                f"Cannot write {path}: {error.strerror or error}. "
                "Make room or choose another directory for the figures."
            ) from error
        paths.append(path)
    return paths


def _saver(figure: Figure, kind: str, metadata: dict[str, None]) -> Any:
    def save(file: BinaryIO) -> None:
        figure.savefig(file, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)

    return save
