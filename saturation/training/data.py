"""Where text comes from, and the batches made of it: a pure function of (seed, step)."""

from __future__ import annotations

import glob
import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from saturation.errors import ConfigError
from saturation.local_files import read_regular
from saturation.training.objectives import (
    SpanLengths,
    random_spans_mask,
    shift_right,
    spans_to_sentinels,
)
from saturation.training.tokens import Vocabulary

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


class Batch(NamedTuple):
    """Token ids of one step of training; 0 is padding.

    Attributes:
        encoder_input_tokens: corrupted text.
        decoder_input_tokens: the targets shifted right.
        decoder_target_tokens: what the decoder must say.
    """

    encoder_input_tokens: Int32[np.ndarray, "batch inputs"]
    decoder_input_tokens: Int32[np.ndarray, "batch targets"]
    decoder_target_tokens: Int32[np.ndarray, "batch targets"]


@dataclass(frozen=True)
class SpanCorruptionBatches:
    """Batches of span corruption on windows of a text drawn uniformly.

    The same (seed, step) always gives the same batch, whatever was drawn before, so that a run
    that is resumed sees what it would have seen.

    Attributes:
        tokens: ids of the whole text.
        vocabulary: the one that made them, for its sentinels.
        lengths: see `lengths_to_fill`.
        batch_size: examples in a batch.
        seed: any non-negative integer.
    """

    tokens: Int32[np.ndarray, " tokens"]
    vocabulary: Vocabulary
    lengths: SpanLengths
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.tokens) < self.lengths.text:
            raise ConfigError(
                f"the text has {len(self.tokens)} tokens and one example takes "
                f"{self.lengths.text}: give more text or a smaller input_length."
            )

    def __call__(self, step: int) -> Batch:
        """The batch of update number `step`, counted from 0."""
        # The key of a counter-based generator is the pair itself: no state to save or to restore.
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        starts = rng.integers(len(self.tokens) - self.lengths.text + 1, size=self.batch_size)
        text = self.tokens[starts[:, None] + np.arange(self.lengths.text)]
        mask = random_spans_mask(rng, self.batch_size, self.lengths)
        inputs = spans_to_sentinels(text, mask, self.vocabulary.first_sentinel)
        targets = spans_to_sentinels(text, ~mask, self.vocabulary.first_sentinel)
        return Batch(inputs, shift_right(targets), targets)
