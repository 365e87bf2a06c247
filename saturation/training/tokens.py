"""Vocabularies: text to token ids and back, with the sentinels that span corruption needs.

Both number their special tokens as T5 does: 0 is padding, 1 is end of sequence, 2 is unknown.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from saturation.errors import ConfigError

PAD = 0
EOS = 1
UNKNOWN = 2

SENTINELS = 100  # T5 and ByT5 set aside as many for the spans of one example
EMBEDDING_MULTIPLE = 128  # both pad the rows of their embedding to a multiple of this


@runtime_checkable
class Vocabulary(Protocol):
    """What the training data asks of a vocabulary.

    Ids are 0 … size − 1, sentinels included. Sentinels are numbered downwards: the first masked
    span is `first_sentinel`, the next the id below it. Two vocabularies that encode differently
    have different fingerprints.
    """

    @property
    def size(self) -> int:
        """Number of ids."""
        ...

    @property
    def first_sentinel(self) -> int:
        """Id of the first masked span."""
        ...

    @property
    def fingerprint(self) -> str:
        """What is recorded beside a model that was trained with it."""
        ...

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Token ids of `text`, with no end-of-sequence token."""
        ...

    def decode(self, ids: Int32[np.ndarray, " tokens"]) -> str:
        """Text of `ids`; padding, end of sequence and sentinels leave no trace."""
        ...


class ByteVocabulary:
    """UTF-8 bytes as ByT5 numbers them: byte b is id b + 3.

    ByT5 adds no ids for its sentinels but reuses the last 100 byte ids, 258 downwards (Xue et al.,
    TACL 2022, §3.1; `seqio.ByteVocabulary()` without extra ids in its tasks.py). The eleven ids
    258 … 248 are bytes that UTF-8 never contains; an example with more spans than that shares
    ids with lead bytes of rare scripts, as ByT5's own do.

    >>> ByteVocabulary().encode("Aé").tolist()
    [68, 198, 172]
    """

    size = 259
    first_sentinel = 258
    fingerprint = "bytes"

    _offset = 3
    _lowest_sentinel = 248

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of the UTF-8 bytes of `text`."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) + self._offset

    def decode(self, ids: Int32[np.ndarray, " tokens"]) -> str:
        """Text of the ids that are bytes of UTF-8; what is no valid UTF-8 is left out."""
        ids = np.asarray(ids)
        bytes_ = ids[(ids >= self._offset) & (ids < self._lowest_sentinel)] - self._offset
        return bytes_.astype(np.uint8).tobytes().decode(errors="ignore")


class SentencePieceVocabulary:
    """A sentencepiece model with T5's 100 extra ids appended, the last of them the first sentinel.

    Args:
        path: a `.model` file trained, as T5's, with pad_id=0, eos_id=1, unk_id=2.

    Raises:
        ConfigError: when sentencepiece is not installed, the file is missing or no such model,
            or it numbers its special tokens otherwise.
    """

    def __init__(self, path: str | Path) -> None:
        self._model = _load_sentencepiece(Path(path))
        self._pieces = int(self._model.get_piece_size())
        self._sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        special = (self._model.pad_id(), self._model.eos_id(), self._model.unk_id())
        if special != (PAD, EOS, UNKNOWN):
            raise ConfigError(
                f"{path}: a vocabulary for T5 has pad, eos, unk = 0, 1, 2; this one has "
                f"{', '.join(map(str, special))}. Train it with --pad_id=0 --eos_id=1 --unk_id=2."
            )

    @property
    def size(self) -> int:
        """Number of pieces plus the 100 sentinels."""
        return self._pieces + SENTINELS

    @property
    def first_sentinel(self) -> int:
        """The last id: T5's <extra_id_0>."""
        return self.size - 1

    @property
    def fingerprint(self) -> str:
        """Hash of the model file."""
        return f"sentencepiece:{self._sha256}"

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of the pieces of `text`."""
        return np.asarray(self._model.encode(text), dtype=np.int32)

    def decode(self, ids: Int32[np.ndarray, " tokens"]) -> str:
        """Text of the ids that are pieces."""
        return self._model.decode([int(i) for i in ids if UNKNOWN <= i < self._pieces])


def _load_sentencepiece(path: Path) -> Any:
    try:
        from sentencepiece import (  # pyright: ignore[reportMissingImports]
            SentencePieceProcessor,
        )
    except ImportError as error:
        raise ConfigError(
            f"{path}: a sentencepiece vocabulary needs the package `sentencepiece`; "
            'install it with pip install "saturation-jax[text]".'
        ) from error
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such vocabulary file.")
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"{path}: expected a sentencepiece model; it does not load.") from error


def open_vocabulary(name: str) -> Vocabulary:
    """The vocabulary that a configuration names: `bytes`, or the path of a sentencepiece model."""
    return ByteVocabulary() if name == "bytes" else SentencePieceVocabulary(name)


def embedding_rows(vocabulary: Vocabulary) -> int:
    """Rows of the embedding: the vocabulary padded to a multiple of 128 (bytes: 384, as ByT5)."""
    return -(-vocabulary.size // EMBEDDING_MULTIPLE) * EMBEDDING_MULTIPLE
