"""Experiment files: what may be written in them, read and checked before anything runs.

A file is YAML. `saturation pretrain` reads a `PretrainConfig`, `saturation run` an
`ExperimentConfig`, which says where the checkpoints come from, what is measured and where the
results go. Every mistake is one sentence that names the file and the key.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from saturation.errors import ConfigError
from saturation.local_files import read_regular
from saturation.plain_yaml import load_yaml, say_where

# Beyond, they are no numbers that arrays and files count with.
Count = Annotated[int, Field(ge=1, lt=2**63)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
# Each is a folder.
MOST_CHECKPOINTS = 1_000_000
_MOST_BYTES = 1024 * 1024  # of a file; those that came with the package have 2,000
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of an experiment file: immutable, and with no key that it does not know."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                known = sorted(cls.model_fields)
                nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"there is no key {key!r}; the nearest is {nearest!r} "
                    f"(there are {', '.join(known)})"
                )
        return data


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


class ActivationsConfig(Section):
    """What measures of activations are taken on: the options of `saturation measure`.

    Attributes:
        tokens: a text file or a glob, a .jsonl of token ids, or builtin.
        vocabulary: for text, a tokenizer.json, a sentencepiece model or bytes; by default that of
            `pretrain`, or the one beside the checkpoints.
        sequences: how many windows of the text.
        length: tokens of a window.
        decoder_input: the text behind a 0 (shifted), or unshifted (same), as published.
        corpus: what `scan` tells common from distinct tokens by; by default all of the tokens.
        limits: what `saturation` compares with.
        batch_size: sequences in one forward pass.
        scale: the finite c of f(x; cθ).
        terms: terms of the series of the parameter limit.
        joint_sequences: of how many `smoothing` iterates each layer's own operator; by default
            as many as cost little, none of a T5-small or larger.
        fast: allow the device's default precision of matrix products.
        mesh: devices that share the sequences of a batch (data) and the parameters (model).
    """

    tokens: str = "builtin"
    vocabulary: str | None = None
    sequences: Count = 32
    length: Annotated[int, Field(ge=2)] = 128
    decoder_input: Literal["shifted", "same"] = "shifted"
    corpus: str | None = None
    limits: tuple[str, ...] = ("attention", "parameter", "scaled")
    batch_size: Count = 8
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1000.0
    terms: Count = 4
    joint_sequences: Annotated[int, Field(ge=0)] | None = None
    fast: bool = False
    mesh: dict[Literal["data", "model"], Count] | None = None


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


Config = TypeVar("Config", PretrainConfig, ExperimentConfig)


def load_config(
    path: str | Path,
    overrides: Mapping[str, str] | None = None,
    kind: type[Config] = ExperimentConfig,
) -> Config:
    """Read and check an experiment file.

    Args:
        path: the YAML file.
        overrides: dotted keys and their values, as `--set optimizer.learning_rate=0.1` gives
            them; a value is read as YAML reads it.
        kind: what the file is to be; a `PretrainConfig` is also taken from the section
            `pretrain` of an experiment.

    Raises:
        ConfigError: when the file is missing or no YAML, a key is unknown, or a value unusable.
    """
    data = _read_mapping(path)
    if kind is PretrainConfig and "pretrain" in data:
        data = data["pretrain"] or {}
    for key, text in (overrides or {}).items():
        _override(data, key, text)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_sentence(error)}") from error


def _read_mapping(path: str | Path) -> dict[str, Any]:
    try:
        data = load_yaml(read_regular(path, _MOST_BYTES).decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path}: the configuration cannot be read: {reason}.") from error
    except yaml.YAMLError as error:
        where = say_where(error)
        raise ConfigError(f"{path}{where}: the configuration is not valid YAML.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values.")
    return data


def _override(data: dict[str, Any], key: str, text: str) -> None:
    *sections, last = key.split(".")
    for name in sections:
        if data.get(name) is None:
            data[name] = {}
        data = data[name]
        if not isinstance(data, dict):
            raise ConfigError(f"--set {key}: {name!r} holds a value, not keys of its own.")
    try:
        data[last] = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}={text}: the value is not valid YAML.") from error


def _sentence(error: ValidationError) -> str:
    """The first of pydantic's complaints, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"the key {where!r} is missing."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, got {first['input']!r}"
    return f"{where}: {message}." if where else f"{message}."
