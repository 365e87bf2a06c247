"""What is asked for as a whole: an experiment file carried out."""

from __future__ import annotations

from pydantic import model_validator

from saturation.config import Natural, Section
from saturation.report.write import report
from saturation.runs.config import ActivationsConfig
from saturation.runtime.progress import Progress
from saturation.runtime.signals import stop_requested
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
