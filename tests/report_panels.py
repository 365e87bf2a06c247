"""What a measure shows of a made table, as data: its panels by title, their lines by name."""

from __future__ import annotations

import numpy as np
import pandas as pd

from saturation.measures import pictures_of
from saturation.plots.panels import Line, Panel, Picture
from saturation.plots.series import RunTable, fit_tables


def run_of(table: pd.DataFrame, eigenvalues: pd.DataFrame | None = None) -> RunTable:
    """A run with its growth laws."""
    return RunTable("run", table, eigenvalues, fit_tables({"run": table})["run"])


def pictures(measure: str, run: RunTable | pd.DataFrame) -> dict[str, Picture]:
    found = pictures_of(measure, run if isinstance(run, RunTable) else run_of(run))
    return {picture.name: picture for picture in found}


def panels(measure: str, run: RunTable | pd.DataFrame) -> dict[str, Panel]:
    """Of all pictures of a measure; a title that occurs twice has a number behind it."""
    found: dict[str, Panel] = {}
    for picture in pictures(measure, run).values():
        for panel in picture.panels:
            again = sum(title.partition(" #")[0] == panel.title for title in found)
            found[f"{panel.title} #{again}" if again else panel.title] = panel
    return found


def lines(panel: Panel) -> dict[str, Line]:
    """The lines of a panel by name; those of one name after another have the last."""
    return {line.name: line for line in panel.of(Line)}


def drawn(panel: Panel) -> dict[str, np.ndarray]:
    return {name: line.y for name, line in lines(panel).items()}
