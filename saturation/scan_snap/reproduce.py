"""One figure of the paper, from simulation to CSV and picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from saturation.errors import ArgumentError
from saturation.progress import Progress
from saturation.runfolder import RunFolder
from saturation.scan_snap.figures import Rows, figure_3, figure_4, figure_6
from saturation.scan_snap.predictions import agreement

FIGURES = (3, 4, 6)


def reproduce(
    figure: int,
    out: str,
    last_tokens: Sequence[int] = (1, 3, 5, 10),
    seeds: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Path]:
    """Simulate a figure and write it to `out`: figureN.csv, .png and .pdf (3: theory.csv too).

    Args:
        figure: one of `FIGURES`.
        out: a local folder.
        last_tokens: of figure 6.
        seeds: of figure 6.
        seed: from which all random numbers follow.
        progress: of figure 6.

    Returns:
        The paths written.

    Raises:
        ArgumentError: there is no such figure, or a number is not positive.
        ResultsError: the folder cannot be written.
    """
    from saturation.report import scan_snap as pictures

    if figure not in FIGURES:
        raise ArgumentError(f"There is no figure {figure} here; there are 3, 4 and 6.")
    if seeds < 1 or not last_tokens or min(last_tokens) < 1:
        raise ArgumentError("Figure 6 needs at least one seed and positive numbers of last tokens.")
    folder = Path(out)
    if figure == 6:
        rows = figure_6(last_tokens, seeds, seed, progress)
        return [_write(folder, "figure6.csv", rows), *pictures.write_figure_6(rows, folder)]
    if figure == 4:
        rows = figure_4(seed)
        return [_write(folder, "figure4.csv", rows), *pictures.write_figure_4(rows, folder)]
    rows = figure_3()
    theory = _write(folder, "theory.csv", agreement(rows, seed))
    return [_write(folder, "figure3.csv", rows), theory, *pictures.write_figure_3(rows, folder)]


def _write(folder: Path, name: str, rows: Rows) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_shown(value) for value in row.values()] for row in rows)
    RunFolder(folder).write(name, text.getvalue().encode())
    return folder / name


def _shown(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
