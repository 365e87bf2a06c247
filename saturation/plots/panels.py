"""A picture as data: panels of marks on two axes, which matplotlib and plotly draw alike.

Texts may have θ_t, t^0.56 and `metric`; each renderer sets them in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float, Num

MOST_ROWS = 24  # of a heat map: that are named, and as high as a name
Dash = Literal["solid", "dash", "dot", "dashdot", "none"]
Symbol = Literal[
    "", "circle", "open circle", "square", "diamond", "open diamond", "triangle", "cross", "dash"
]  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Points joined in order; `low` and `high` are a band around them, or bars.

    Attributes:
        x: places on the horizontal axis, or categories.
        y: values; NaN is a gap.
        name: in the legend; "" is not named. Lines of one name share an entry.
        dash: how it is drawn; "none" draws the symbols alone.
        symbol: at each point; "" draws none, but at a single point.
        bars: whether `low` and `high` are bars at each point; at a single point they always are.
        size: of the symbols, in points.
        width: of the line, in points.
    """

    x: Num[np.ndarray, " points"] | Sequence[str]
    y: Float[np.ndarray, " points"]
    name: str = ""
    colour: str = "#000000"
    dash: Dash = "solid"
    symbol: Symbol = ""
    size: float = 4.0
    width: float = 1.4
    opacity: float = 1.0
    low: Float[np.ndarray, " points"] | None = None
    high: Float[np.ndarray, " points"] | None = None
    bars: bool = False


@dataclass(frozen=True)
class Dots:
    """Points that are not joined, coloured by a value on the scale from dark to light.

    Attributes:
        by: the value of each point.
        label: what the colours mean.
    """

    x: Float[np.ndarray, " points"]
    y: Float[np.ndarray, " points"]
    by: Num[np.ndarray, " points"]
    label: str
    size: float = 4.0
    opacity: float = 0.8


@dataclass(frozen=True)
class HeatMap:
    """A row a name and a column a step, coloured by value.

    Attributes:
        limits: of the colours; None: the values' own.
        colours: "viridis", or "RdBu" where the middle is special.
        columns: what the steps are.
    """

    steps: Num[np.ndarray, " steps"]
    rows: Sequence[str]
    values: Float[np.ndarray, "rows steps"]
    label: str
    limits: tuple[float, float] | None = None
    colours: Literal["viridis", "RdBu"] = "viridis"
    columns: str = "training step"

    @property
    def reach(self) -> tuple[float, float] | None:
        """From where to where an axis of the values runs, beside dots at a single step."""
        if self.limits is None:
            return None
        margin = 0.03 * (self.limits[1] - self.limits[0])
        return self.limits[0] - margin, self.limits[1] + margin


@dataclass(frozen=True)
class Histogram:
    """How many values lie between neighbouring edges."""

    values: Float[np.ndarray, " values"]
    edges: Float[np.ndarray, " edges"]
    name: str
    colour: str
    filled: bool = True


@dataclass(frozen=True)
class Rule:
    """A line right across a panel at one value; the axis is the one that has the value."""

    at: float
    axis: Literal["x", "y"] = "y"
    dash: Dash = "solid"


@dataclass(frozen=True)
class Region:
    """A shaded part of the plane: a disk, all that is left of `x`, or everything."""

    shape: Literal["disk", "left", "all"]
    name: str
    colour: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0


@dataclass(frozen=True)
class Note:
    """A text at a point, or without one in a corner of the panel."""

    text: str
    x: float | None = None
    y: float | None = None
    corner: Literal["upper left", "lower right"] = "upper left"
    colour: str = "#000000"


Mark = Line | Dots | HeatMap | Histogram | Rule | Region | Note
Kind = TypeVar("Kind", Line, Dots, HeatMap, Histogram, Rule, Region, Note)


@dataclass(frozen=True)
class Axis:
    """What an axis says and how it runs.

    Attributes:
        scale: "whole" has ticks at whole numbers alone; "steps" are training steps, logarithmic
            where checkpoints crowd at the start, with step 0 on the axis; "log" is linear where no
            value is above 0; "categories" are names.
        order: of the categories.
    """

    label: str = ""
    scale: Literal["linear", "whole", "log", "steps", "categories"] = "linear"
    limits: tuple[float, float] | None = None
    order: Sequence[str] = ()


STEPS = Axis("training step", "steps")


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        says: how to read it, in a sentence above the page's chart.
        height: in inches of a figure of 11 inches.
        legend: whether it names its marks itself; else all panels of a figure share one legend.
        equal: whether a unit is as long on both axes.
        dense: whether it has more lines than a page can hold: the page leaves it out.
        wide: whether it takes a row of its own.
    """

    title: str
    marks: Sequence[Mark]
    y: Axis
    x: Axis = STEPS
    says: str = ""
    height: float = 3.4
    legend: bool = False
    equal: bool = False
    dense: bool = False
    wide: bool = False

    @property
    def steps(self) -> np.ndarray:
        """All places of its lines, sorted, of an axis of steps."""
        found = [np.asarray(mark.x) for mark in self.marks if isinstance(mark, Line)]
        return np.unique(np.concatenate(found)) if found else np.empty(0)

    def of(self, kind: type[Kind]) -> Iterator[Kind]:
        """Yield the marks of one kind, in order."""
        return (mark for mark in self.marks if isinstance(mark, kind))


@dataclass(frozen=True)
class Table:
    """Rows of texts under the names of their columns; numbers are set to the right.

    Attributes:
        title: above it; "" for none.
        notes: sentences below it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()

    @property
    def right(self) -> list[bool]:
        """Which columns are set to the right: those of numbers."""
        return [all(map(is_number, cells)) for cells in zip(*self.rows, strict=True)]

    def lines(self) -> list[str]:
        """Return it set in columns, for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            placed = zip(cells, widths, self.right, strict=True)
            return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in placed).rstrip()

        return [*filter(None, [self.title]), line(self.columns), *map(line, self.rows)]


def is_number(text: str) -> bool:
    """Say whether a cell is a number, with or without a unit, or the dash of a missing one.

    >>> [is_number(text) for text in ("1,024", "-0.5 %", "-", "3 of 8", "sqrt")]
    [True, True, True, False, False]
    """
    return bool(re.fullmatch(r"[-–−]|[-−+]?[\d,.]+(e[-+]?\d+)?( ?%)?", text))


@dataclass(frozen=True)
class Picture:
    """What one measure shows of one run: a file of figures, and a section of the page.

    Attributes:
        name: of the file.
        title: above the figure.
        heading: above the section.
        reads: how to read it, with units.
        rows: the panels, a row after another.
        tables: above the page's charts.
        note: what is left out.
        on_tokens: whether it shows what was computed on tokens, which stands under the figure.
    """

    name: str
    title: str
    heading: str
    reads: str
    rows: Sequence[Sequence[Panel]]
    tables: Sequence[Table] = ()
    note: str = ""
    on_tokens: bool = False

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All its panels."""
        return tuple(panel for row in self.rows for panel in row)
