"""Experiment files: what may be written in them, read and checked before anything runs.

A file is YAML. Every mistake is one sentence that names the file and the key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from saturation.errors import ConfigError
from saturation.storage.local_files import read_regular
from saturation.storage.plain_yaml import load_yaml, say_where

_MOST_BYTES = 1024 * 1024  # of a file; those that came with the package have 2,000


class Section(BaseModel):
    """A part of an experiment file: immutable, and with no key that it does not know."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, data: Any) -> Any:
        return know_every_key(data, cls.model_fields)


def know_every_key(data: Any, known: Iterable[str]) -> Any:
    """Return the data of a section.

    Raises:
        ValueError: it has a key that is not known; the text has the nearest one.
    """
    known = sorted(known)
    for key in data if isinstance(data, Mapping) else ():
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"there is no key {key!r}; the nearest is {nearest!r} "
                f"(there are {', '.join(known)})"
            )
    return data


Config = TypeVar("Config", bound=Section)


def load_config(
    path: str | Path,
    overrides: Mapping[str, str] | None,
    kind: type[Config],
    section: str = "",
) -> Config:
    """Read and check a configuration file.

    Args:
        path: the YAML file.
        overrides: dotted keys and their values, as `--set optimizer.learning_rate=0.1` gives
            them; a value is read as YAML reads it.
        kind: what the file is to be.
        section: a key under which the file may have it, such as `pretrain` in an experiment.

    Raises:
        ConfigError: when the file is missing or no YAML, a key is unknown, or a value unusable.
    """
    data = _read_mapping(path)
    if section in data:
        data = data[section] or {}
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
