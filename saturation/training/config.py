"""What `pretrain` is told: model, text, objective, optimizer and checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from saturation.config.files import Section
from saturation.config.options import Count, Fraction, Natural
from saturation.errors import ConfigError

# Each is a folder.
MOST_CHECKPOINTS = 1_000_000


class ModelConfig(Section):
    """The T5 to train: fields of `saturation.models.T5Config`, all but its vocabulary.

    The defaults are a T5 v1.0 that trains in a minute on a laptop.
    """

    emb_dim: Count = 64
    num_heads: Count = 4
    head_dim: Count = 16
    mlp_dim: Count = 256
    num_encoder_layers: Count = 2
    num_decoder_layers: Count = 2
    mlp_activations: Annotated[tuple[str, ...], Field(min_length=1)] = ("relu",)
    logits_via_embedding: bool = True
    per_layer_relative_bias: bool = False
    attention_spectrum: Literal["sharpen", "smooth", "free"] | None = None


class TextConfig(Section):
    """What is read, and in which tokens.

    Attributes:
        files: paths or globs of UTF-8 text; none: Python's own documentation, pydoc_data.topics.
        vocabulary: `bytes` (ByT5's ids), or the path or URL of a sentencepiece model or of a
            tokenizer.json.
    """

    files: tuple[str, ...] = ()
    vocabulary: str = "bytes"


class ObjectiveConfig(Section):
    """T5's span corruption.

    Attributes:
        input_length: encoder positions, in tokens; the targets' length follows from it.
        noise_density: fraction of the text that is masked.
        mean_span_length: mean length of a masked span, in tokens.
    """

    input_length: Count = 128
    noise_density: Fraction = 0.15
    mean_span_length: Annotated[float, Field(ge=1)] = 3.0


class OptimizerConfig(Section):
    """How the parameters move.

    Attributes:
        name: adafactor, adam, adamw or sgd.
        learning_rate: what the schedule is multiplied by.
        schedule: inverse_sqrt (T5's), linear or constant.
        warmup_steps: see the schedule.
        weight_decay: an L2 penalty for sgd and adam, decoupled for adamw and adafactor.
        momentum: for sgd and adafactor.
        min_dim_size_to_factor: Adafactor factors the second moment of arrays at least this large.
        multiply_by_parameter_scale: Adafactor's steps are relative to the size of the array.
    """

    name: str = "adafactor"
    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    schedule: str = "inverse_sqrt"
    warmup_steps: Natural = 10_000
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    min_dim_size_to_factor: Count = 128
    multiply_by_parameter_scale: bool = True


class CheckpointConfig(Section):
    """After which updates a checkpoint is kept: exactly one of three ways to say so.

    The initialisation (step 0) and the last step are always kept. A plain list in the file is
    short for `at`.

    Attributes:
        every: each multiple of this.
        log_spaced: so many in all, step 0 among them, as evenly spaced in log(step) as whole
            numbers allow.
        at: these.
    """

    every: Count | None = None
    log_spaced: Annotated[int, Field(ge=2)] | None = None
    at: tuple[Natural, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _list_means_at(cls, data: Any) -> Any:
        return {"at": data} if isinstance(data, list | tuple) else data

    @model_validator(mode="after")
    def _say_it_once(self) -> CheckpointConfig:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("give exactly one of 'every', 'log_spaced', 'at'")
        return self

    def chosen(self, steps: int) -> tuple[int, ...]:
        """The steps to keep in a run of `steps` updates, ascending.

        >>> CheckpointConfig(log_spaced=8).chosen(100)
        (0, 1, 2, 5, 10, 22, 46, 100)

        Raises:
            ConfigError: when more are asked for than there are, or one lies beyond the end.
        """
        if self.every is not None:
            _refuse_many("every", steps // self.every)
            return tuple(sorted({*range(0, steps, self.every), steps}))
        if self.at is not None:
            if max(self.at, default=0) > steps:
                raise ConfigError(f"checkpoints.at: {max(self.at)} is beyond steps = {steps}.")
            return tuple(sorted({0, *self.at, steps}))
        return _log_spaced(self.log_spaced or 2, steps)


def _refuse_many(way: str, count: int) -> None:
    if count > MOST_CHECKPOINTS:
        raise ConfigError(
            f"checkpoints.{way}: {count} checkpoints are asked for, and {MOST_CHECKPOINTS} are the "
            "most that are kept."
        )


def _log_spaced(count: int, steps: int) -> tuple[int, ...]:
    if count > steps + 1:
        raise ConfigError(f"checkpoints.log_spaced: {count} are asked for, of {steps + 1} steps.")
    _refuse_many("log_spaced", count)
    chosen = [0]
    for step in np.geomspace(1, steps, count - 1):
        chosen.append(max(chosen[-1] + 1, round(step)))  # early ones would round to the same
    return (*chosen[:-1], steps)


class PretrainConfig(Section):
    """A model trained from its initialisation, whose checkpoints form a trajectory.

    Attributes:
        out: folder the trajectory is written to, or gs://…
        model: its sizes.
        text: what it reads.
        objective: what it must learn.
        optimizer: how it moves.
        batch_size: examples in an update.
        steps: updates.
        checkpoints: which are kept.
        log_every: updates between two rows of log.csv.
        seed: of the initialisation and of the batches.
        dtype: of the arithmetic; parameters and optimizer are float32 in either case.
    """

    out: str
    steps: Count
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch_size: Count = 16
    checkpoints: CheckpointConfig = CheckpointConfig(log_spaced=2)
    log_every: Count = 1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
