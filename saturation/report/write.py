"""A report of measured runs: figures with a text, a page, or both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saturation.results.state import open_run
from saturation.results.table import load_results, load_vectors
from saturation.storage.write import refuse_url


def report(
    runs: Sequence[str],
    figures: str | None = None,
    page: str | None = None,
    partial: bool = False,
) -> list[Path]:
    """Draw the figures of measured runs with a `summary.txt`, or a page of them, or both.

    Args:
      runs: folders or URLs of runs.
      figures: folder for PNG, PDF and text.
      page: HTML file.
      partial: take incomplete runs as they are.

    Returns:
      The paths written.

    Raises:
      ResultsError: a run is missing or incomplete, or a path is a URL or cannot be written.
    """
    from saturation.plots.series import fit_tables
    from saturation.report.figures import write_figures
    from saturation.report.page import write_page
    from saturation.report.summary import write_summary

    for path, what in ((page, "page"), (figures, "folder of figures")):
        refuse_url(path or "", what)
    names = short_names(runs)
    tables = {names[run]: load_results(run, partial=partial) for run in runs}
    fits = fit_tables(tables)
    written = []
    eigenvalues = {names[run]: load_vectors(run, "spectrum") for run in runs}
    if figures is not None:
        written += write_figures(tables, fits, figures, eigenvalues)
        written.append(write_summary(tables, fits, Path(figures) / "summary.txt"))
    if page is not None:
        facts = {names[run]: dict(open_run(run).described) for run in runs}
        written.append(write_page(tables, fits, page, facts, eigenvalues))
    return written


def short_names(runs: Sequence[str]) -> dict[str, str]:
    """Return {run: the last folders of its path, as many as tell the runs apart}.

    >>> short_names(["/a/x/results", "/a/y/results"])
    {'/a/x/results': 'x/results', '/a/y/results': 'y/results'}
    """
    parts = {run: run.rstrip("/").split("/") for run in runs}
    for depth in range(1, max(map(len, parts.values()))):
        names = {run: "/".join(path[-depth:]) for run, path in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {run: run for run in runs}
