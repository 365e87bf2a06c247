"""What is asked for as a whole: an experiment file carried out."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import Field, TypeAdapter, field_validator, model_validator

from saturation.config.files import Section, know_every_key
from saturation.config.options import Natural
from saturation.report.write import report
from saturation.runs.options import activation_options, option_class
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

    if config.pretrain is None:
        trajectory = open_trajectory(str(config.trajectory), config.steps)
        settings = read_settings(config.measures, trajectory=trajectory, options=config.activations)
    else:
        from saturation.text.vocabulary import embedding_rows, open_to_pretrain
        from saturation.training import pretrain

        # What cannot be read, or is of another vocabulary, is said before anything is trained.
        own = config.pretrain.text.vocabulary
        options = dataclasses.replace(
            config.activations, vocabulary=config.activations.vocabulary or own
        )
        settings = read_settings(config.measures, options=options)
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
        activations: what measures of activations are taken on, and how: the options of
            `saturation measure` as keys, made into what `activation_options` returns.
        page: file of an interactive page, `report.html`.
    """

    out: str
    report: str
    pretrain: PretrainConfig | None = None
    trajectory: str | None = None
    measures: tuple[str, ...] = ("norms", "direction")
    steps: str | tuple[Natural, ...] | None = None
    activations: Any = Field(default_factory=activation_options)
    page: str | None = None

    @field_validator("activations", mode="plain")
    @classmethod
    def _options(cls, data: Any) -> Any:
        kind = option_class()
        known = [one.name for one in dataclasses.fields(kind)]
        return TypeAdapter(kind).validate_python(know_every_key(data, known))

    @model_validator(mode="after")
    def _one_trajectory(self) -> ExperimentConfig:
        if (self.pretrain is None) == (self.trajectory is None):
            raise ValueError("give either 'pretrain' or 'trajectory', and not both")
        return self
