"""A small YAML file that says where the checkpoints of a trajectory lie, and the ones we ship.

    url: gs://bucket/run/checkpoint_{step}     {step}: a folder or file for each step
    steps: 0:100000:1000                       START:STOP:EVERY, STOP included, or a list; or a
                                               text of both: "0, 1, 2, 1000:143000:1000"

`url` without `{step}` is any one trajectory, such as `hf://ORG/REPO@step_*`; `steps` then says what
is to be expected there. Or, where nothing is regular:

    checkpoints:
      - {step: 1000000, url: gs://bucket/a}
      - {step: 1100000, url: gs://bucket/b}

A URL that is a relative path is relative to the manifest.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from saturation.config.files import Section
from saturation.errors import CheckpointFormatError, ConfigError
from saturation.storage.open import open_folder
from saturation.storage.plain_yaml import load_yaml, say_where
from saturation.storage.trust import refuse_lead, shown_url

_SUFFIXES = (".yaml", ".yml")
_LARGEST = 4 * 2**20
_MOST_STEPS = 1_000_000
Step = Annotated[int, Field(ge=0)]


class Entry(Section):
    """One checkpoint of a manifest: its step and where it lies."""

    step: Step
    url: str


class Manifest(Section):
    """Where the checkpoints of a trajectory lie, and what is known of it.

    Attributes:
        url: of the trajectory, or of a checkpoint with `{step}` in it.
        steps: the steps that there are.
        checkpoints: each with its step and URL, in place of `url`.
        title, source, size, licence, opened: for people: what it is, who published it where, how
            much it is, under what terms, and whether and when it was read with this package.
    """

    url: str | None = None
    steps: str | tuple[Step, ...] | None = None
    checkpoints: tuple[Entry, ...] = ()
    title: str = ""
    source: str = ""
    size: str = ""
    licence: str = ""
    opened: str = ""

    @model_validator(mode="after")
    def _say_where(self) -> Manifest:
        if (self.url is None) == (not self.checkpoints):
            raise ValueError("give either 'url' or 'checkpoints', and not both")
        if self.url and "{step}" in self.url and self.steps is None:
            raise ValueError("'url' has {step} in it: say with 'steps' which there are")
        counts = Counter(entry.step for entry in self.checkpoints)
        if twice := sorted(step for step, count in counts.items() if count > 1):
            raise ValueError(f"the step {twice[0]} stands twice under 'checkpoints'")
        self.listed_steps()
        return self

    def listed_steps(self) -> tuple[int, ...]:
        """Return the steps that the manifest lists, ascending; none where it does not say."""
        if self.checkpoints:
            return tuple(sorted(entry.step for entry in self.checkpoints))
        if not isinstance(self.steps, str):
            return tuple(sorted(set(self.steps or ())))
        found: set[int] = set()
        for part in self.steps.split(","):
            said = re.fullmatch(r"(\d{1,18})(?::(\d{1,18}):(\d{1,18}))?", part.strip())
            start, stop, every = (int(said[n] or said[1]) for n in (1, 2, 3)) if said else (0, 0, 0)
            count = (stop - start) // every if said and every else _MOST_STEPS + 1
            if said is None or (said[3] and count > _MOST_STEPS) or len(found) > _MOST_STEPS:
                raise ValueError(
                    f"steps {self.steps!r} is not START:STOP:EVERY nor a list of steps"
                )
            found |= set(range(start, stop + 1, every)) if said[3] else {start}
        return tuple(sorted(found))


@dataclass(frozen=True)
class TrajectoryLocations:
    """Where a trajectory lies.

    Attributes:
      path: how it is called in what is printed.
      url: the one place of all checkpoints, or None.
      urls: else the place of each step.
      expected: the steps that there should be, as far as that is known.
    """

    path: str
    url: str | None
    urls: dict[int, str]
    expected: tuple[int, ...]


def is_manifest(path: str) -> bool:
    """Say whether a path or URL is that of a manifest, by its name."""
    return path.partition("?")[0].endswith(_SUFFIXES)


def known_trajectories() -> dict[str, Any]:
    """Return {name: file} of the public trajectories that the package knows."""
    folder = resources.files("saturation.trajectory") / "public"
    files = (file for file in folder.iterdir() if file.name.endswith(_SUFFIXES))
    return {file.name.rpartition(".")[0]: file for file in sorted(files, key=lambda f: f.name)}


def read_manifest(path: str) -> TrajectoryLocations:
    """Return the places that a manifest lists.

    Args:
      path: of the file, or its URL, or the name of a known trajectory.

    Raises:
      ConfigError: it is no such manifest.
      CheckpointFormatError: it is not there.
    """
    if is_manifest(path):
        folder = open_folder(path)
        (name,) = folder.files
        if folder.size(name) > _LARGEST:
            raise ConfigError(f"{path} is too large for a manifest of checkpoints.")
        manifest, base = parse(shown_url(path), folder.read(name)), folder.path
    else:
        manifest, base = parse(path, known_trajectories()[path].read_bytes()), ""
    expected = manifest.listed_steps()
    if manifest.url and "{step}" not in manifest.url:
        url = _absolute(path, base, manifest.url)
        if is_manifest(url):
            raise ConfigError(f"{path}: its 'url' is a manifest again, {url}: open that one.")
        return TrajectoryLocations(url, url, {}, expected)
    template = {step: str(manifest.url).replace("{step}", str(step)) for step in expected}
    urls = {entry.step: entry.url for entry in manifest.checkpoints} or template
    return TrajectoryLocations(
        path, None, {step: _absolute(path, base, url) for step, url in urls.items()}, expected
    )


def parse(path: str, content: bytes) -> Manifest:
    """Return what a manifest's content says.

    Raises:
      ConfigError: it is no YAML, a key is unknown or missing, or a value unusable.
    """
    try:
        return Manifest.model_validate(load_yaml(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        text = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {f'{where}: ' if where else ''}{text}.") from error
    except (yaml.YAMLError, ValueError) as error:
        why = say_where(error) if isinstance(error, yaml.YAMLError) else ""
        raise ConfigError(
            f"{path}: a manifest of checkpoints was expected: no YAML{why}."
        ) from error


def _absolute(path: str, base: str, url: str) -> str:
    """Return a URL of a manifest, whose folder is `base`, also where the URL is relative."""
    if "://" in url:
        if "://" in base:
            refuse_lead(base, url)
        return url
    if "://" in base and url.startswith(("/", "~")):
        raise CheckpointFormatError(
            f"{shown_url(path)}: {url!r} is a path of this machine, which a manifest from "
            "elsewhere may not name; it was expected to be a URL or relative to the manifest."
        )
    return posixpath.normpath(posixpath.join(base, url)) if "://" not in base else f"{base}/{url}"
