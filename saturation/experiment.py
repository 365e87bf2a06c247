"""What is asked for as a whole: an experiment file carried out, a report of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import model_validator

from saturation.config import Natural, Section
from saturation.results.folder import RunFolder
from saturation.results.parts import read_run_json
from saturation.results.table import load_results, load_vectors
from saturation.runs.config import ActivationsConfig
from saturation.runtime.progress import Progress
from saturation.runtime.signals import stop_requested
from saturation.storage.write import refuse_url
from saturation.training.config import PretrainConfig


def run_experiment(config: ExperimentConfig) -> str:
    """Carry out an experiment file: trajectory, measures, fits, figures; return the summary's text.

    What an earlier, interrupted call has done is reused.

    Raises:
      SaturationError: any of the steps fails; what was finished stays.
    """
    from saturation.runs.measure import measure
    from saturation.runs.settings import read_settings
    from saturation.trajectory.trajectory import open_trajectory

    asked = config.activations.model_dump()
    if config.pretrain is None:
        trajectory = open_trajectory(str(config.trajectory), config.steps)
        settings = read_settings(config.measures, trajectory=trajectory, **asked)
    else:
        from saturation.text.vocabulary import embedding_rows, open_to_pretrain
        from saturation.training import pretrain

        # What cannot be read, or is of another vocabulary, is said before anything is trained.
        own = config.pretrain.text.vocabulary
        settings = read_settings(
            config.measures, **{**asked, "vocabulary": asked["vocabulary"] or own}
        )
        if settings is not None:
            rows = embedding_rows(open_to_pretrain(own))
            settings.refuse_other_vocabulary(rows, config.pretrain.out)
        with Progress("Pretraining", "steps") as progress:
            source = str(pretrain(config.pretrain, progress))
        trajectory = open_trajectory(source, config.steps)
    with stop_requested() as stop, Progress("Measuring", "B") as progress:
        outcome = measure(
            trajectory,
            config.measures,
            config.out,
            activations=settings,
            progress=progress,
            stop=stop,
        )
    outcome.refuse_nonfinite(config.out)
    paths = report([config.out], figures=config.report, page=config.page)
    summary = next(path for path in paths if path.suffix == ".txt")
    return f"{summary.read_text(encoding='utf-8')}\nFigures: {paths[0].parent}"


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
    from saturation.report import fit_tables, write_figures, write_page, write_summary

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
        facts = {names[run]: read_run_json(RunFolder(run)) for run in runs}
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


class ExperimentConfig(Section):
    """Checkpoints, what is measured on them, and where the results and figures go.

    Attributes:
        out: folder of the run: the table of results.
        report: folder of the figures.
        pretrain: the trajectory is made first, unless it is there already; or
        trajectory: path or URL of one that exists.
        measures: their names.
        steps: which checkpoints: all, `START:STOP:EVERY` or a list.
        activations: the tokens that measures of activations are taken on, and how.
        page: file of an interactive page, `report.html`.
    """

    out: str
    report: str
    pretrain: PretrainConfig | None = None
    trajectory: str | None = None
    measures: tuple[str, ...] = ("norms", "direction")
    steps: str | tuple[Natural, ...] | None = None
    activations: ActivationsConfig = ActivationsConfig()
    page: str | None = None

    @model_validator(mode="after")
    def _one_trajectory(self) -> ExperimentConfig:
        if (self.pretrain is None) == (self.trajectory is None):
            raise ValueError("give either 'pretrain' or 'trajectory', and not both")
        return self
