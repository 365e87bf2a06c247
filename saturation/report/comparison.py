"""Several runs beside each other: one number of each measure, a line a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from saturation.measures import MEASURES, compared_by
from saturation.plots.colours import RUN_COLOURS
from saturation.plots.notation import plain
from saturation.plots.panels import Axis, Line, Panel
from saturation.plots.series import RunTable


def compared_panels(runs: Sequence[RunTable]) -> Iterator[Panel]:
    """Yield a panel of each number that at least two runs have."""
    found: dict[str, tuple[list[Line], Axis, str]] = {}
    for name in MEASURES if len(runs) > 1 else ():
        for index, run in enumerate(runs):
            colour = RUN_COLOURS[index % len(RUN_COLOURS)]
            for title, line, axis, says in compared_by(name, run):
                lines, _, _ = found.setdefault(title, ([], axis, says))
                lines.append(replace(line, name=plain(run.name), colour=colour, symbol="circle"))
    for title, (lines, axis, says) in found.items():
        if len(lines) > 1:
            yield Panel(title, lines, axis, says=says, height=3.8)
