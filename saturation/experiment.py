"""What is asked for as a whole: an experiment file carried out, a report of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saturation.progress import Progress
from saturation.results import load_results
from saturation.signals import stop_requested

if TYPE_CHECKING:
    from saturation.config import ExperimentConfig


def run_experiment(config: ExperimentConfig) -> str:
    """Carry out an experiment file: trajectory, measures, fits, figures; return the summary's text.

    What an earlier, interrupted call has done is reused.

    Raises:
      SaturationError: any of the steps fails; what was finished stays.
    """
    from saturation.run import measure
    from saturation.trajectory import open_trajectory

    source = config.trajectory
    if config.pretrain is not None:
        from saturation.training import pretrain

        with Progress("Pretraining", "steps") as progress:
            source = str(pretrain(config.pretrain, progress))
    trajectory = open_trajectory(str(source), config.steps)
    with stop_requested() as stop, Progress("Measuring", "B") as progress:
        outcome = measure(trajectory, config.measures, config.out, progress=progress, stop=stop)
    outcome.refuse_nonfinite(config.out)
    paths = report([config.out], config.report)
    summary = next(path for path in paths if path.suffix == ".txt")
    return f"{summary.read_text(encoding='utf-8')}\nFigures: {paths[0].parent}"


def report(runs: Sequence[str], directory: str, partial: bool = False) -> list[Path]:
    """Draw the figures of measured runs and write `summary.txt` beside them; return the paths.

    Raises:
      ResultsError: a run is missing or incomplete, or the directory cannot be written.
    """
    from saturation.report import fit_tables, write_figures, write_summary

    tables = {run: load_results(run, partial=partial) for run in runs}
    fits = fit_tables(tables)
    written = write_figures(tables, fits, directory)
    summary = Path(directory) / "summary.txt"
    write_summary(tables, fits, summary)
    return [*written, summary]
