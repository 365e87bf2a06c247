"""Texts that models are trained and measured on."""

from __future__ import annotations

import glob
import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saturation.errors import ConfigError
from saturation.storage.local_files import read_regular

STANDARD_LIBRARY = "pydoc_data.topics"


@dataclass(frozen=True)
class Corpus:
    """A text to train on.

    Attributes:
        text: all documents, two newlines apart.
        sources: the files it was read from, or the module of the standard library.
    """

    text: str
    sources: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Hash of the text, which is recorded beside what was trained on it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_corpus(patterns: Sequence[str] = ()) -> Corpus:
    """The text of UTF-8 files, in the order of their sorted names.

    Args:
        patterns: paths or globs. None of them: the documentation of Python itself, topic by
            topic, which every Python has with it but which differs between its versions.

    Raises:
        ConfigError: when a pattern matches no file, or a file is not UTF-8 text.
    """
    if not patterns:
        topics: dict[str, str] = importlib.import_module(STANDARD_LIBRARY).topics
        return Corpus("\n\n".join(topics[name] for name in sorted(topics)), (STANDARD_LIBRARY,))
    paths = sorted({path for pattern in patterns for path in _matches(pattern)})
    return Corpus("\n\n".join(_read_text(path) for path in paths), tuple(map(str, paths)))


def _matches(pattern: str) -> list[Path]:
    try:
        found = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
    except ValueError:  # of a name that no file can have
        found = []
    if not found:
        raise ConfigError(f"{pattern!r}: there is no such text file (looked from {Path.cwd()}).")
    return found


def _read_text(path: Path) -> str:
    try:
        return read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected UTF-8 text, found a byte that is none at position {error.start}."
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
