"""Vocabularies: text to token ids and back, with the sentinels that span corruption needs.

To pretrain with, all number their special tokens as T5 does: 0 is padding, 1 is end of sequence, 2
is unknown.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from saturation.checkpoints import open_folder
from saturation.errors import CheckpointFormatError, ConfigError

BYTES = "bytes"
TOKENIZER = "tokenizer.json"
PAD = 0
EOS = 1
UNKNOWN = 2

_SOME_TEXT = "a text"
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

    @property
    def file(self) -> tuple[str, bytes] | None:
        """Usual name and contents of the file it is read from; None where it needs none."""
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
    fingerprint = BYTES
    file = None

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
        path: a `.model` file trained, as T5's, with pad_id=0, eos_id=1, unk_id=2; or its URL.

    Raises:
        ConfigError: when sentencepiece is not installed, the file is missing or no such model,
            or it numbers its special tokens otherwise.
    """

    def __init__(self, path: str | Path) -> None:
        self._model, self._content = _load_sentencepiece(str(path))
        self._pieces = int(self._model.get_piece_size())
        special = (self._model.pad_id(), self._model.eos_id(), self._model.unk_id())
        if special != (PAD, EOS, UNKNOWN):
            raise ConfigError(
                f"{path}: a vocabulary for T5 has pad, eos, unk = 0, 1, 2; this one has "
                f"{', '.join(map(str, special))}. Train it with --pad_id=0 --eos_id=1 --unk_id=2, "
                f"or give the model's own {TOKENIZER}."
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
        return f"sentencepiece:{hashlib.sha256(self._content).hexdigest()}"

    @property
    def file(self) -> tuple[str, bytes]:
        """The model, under T5X's name for it."""
        return "sentencepiece.model", self._content

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of the pieces of `text`."""
        return np.asarray(self._model.encode(text), dtype=np.int32)

    def decode(self, ids: Int32[np.ndarray, " tokens"]) -> str:
        """Text of the ids that are pieces."""
        return self._model.decode([int(i) for i in ids if UNKNOWN <= i < self._pieces])


class TokenizerVocabulary:
    """A `tokenizer.json`, as the library `tokenizers` writes it and Hugging Face models have it.

    Args:
        path: the file, or its URL.

    Raises:
        ConfigError: when tokenizers is not installed, or the file is missing or no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._tokenizer, self._content = _load_tokenizer(self._path)
        # What it was saved with for batches of a training would cut the text, or fill it up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @property
    def size(self) -> int:
        """The highest id and one."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def first_sentinel(self) -> int:
        """The id of <extra_id_0>; −1 where there is none: such a vocabulary pretrains nothing."""
        found = self._tokenizer.token_to_id("<extra_id_0>")
        return -1 if found is None else found

    @property
    def fingerprint(self) -> str:
        """Hash of the file."""
        return f"{TOKENIZER}:{hashlib.sha256(self._content).hexdigest()}"

    @property
    def file(self) -> tuple[str, bytes]:
        """The file under its usual name."""
        return TOKENIZER, self._content

    def refuse_untrainable(self) -> None:
        """Raise `ConfigError` where padding is not 0, the end not 1, or there is no sentinel."""
        tokens = ("<pad>", "</s>", "<extra_id_0>")
        pad, end, sentinel = found = [self._tokenizer.token_to_id(token) for token in tokens]
        if (pad, end) != (PAD, EOS) or sentinel is None:
            said = ", ".join(f"{token} {id_}" for token, id_ in zip(tokens, found, strict=True))
            raise ConfigError(
                f"{self._path}: a T5 is pretrained with <pad> 0, </s> 1 and sentinels from "
                f"<extra_id_0> downwards; this vocabulary has {said}."
            )

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of the pieces of `text`."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def special_tokens(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the tokenizer puts before and behind a text, such as [CLS] and [SEP]."""
        whole = self._tokenizer.encode(_SOME_TEXT)
        added = [bool(flag) for flag in whole.special_tokens_mask]
        inside = [number for number, special in enumerate(added) if not special]
        if not inside:
            return (), ()
        return tuple(whole.ids[: inside[0]]), tuple(whole.ids[inside[-1] + 1 :])

    def mask_token(self) -> int | None:
        """The id that hides a token from an encoder, by its usual names; None without one."""
        found = (self._tokenizer.token_to_id(name) for name in ("[MASK]", "<mask>"))
        return next((id_ for id_ in found if id_ is not None), None)

    def decode(self, ids: Int32[np.ndarray, " tokens"]) -> str:
        """Text of the ids that are pieces."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def special_tokens(vocabulary: Vocabulary) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that a vocabulary puts before and behind a text; only a tokenizer has some."""
    if isinstance(vocabulary, TokenizerVocabulary):
        return vocabulary.special_tokens()
    return (), ()


def mask_token(vocabulary: Vocabulary) -> int | None:
    """Return the id that hides a token, where the vocabulary says one."""
    return vocabulary.mask_token() if isinstance(vocabulary, TokenizerVocabulary) else None


def _read(path: str) -> bytes:
    """Return what a vocabulary's file holds, here or at a URL."""
    place, _, name = os.path.expanduser(path).rpartition("/")
    try:
        folder = open_folder(place or ("/" if path.startswith("/") else "."))
        content = folder.read(name)
        folder.refuse_pointer(name, content)
    except CheckpointFormatError as error:
        local = "://" not in path and not os.path.isfile(os.path.expanduser(path))
        reason = "there is no such vocabulary file." if local else str(error)
        raise ConfigError(f"{path}: {reason}") from error
    return content


def _load_sentencepiece(path: str) -> tuple[Any, bytes]:
    library = _library(path, "sentencepiece", "a sentencepiece vocabulary")
    content = _read(path)
    try:
        return library.SentencePieceProcessor(model_proto=content), content
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"{path}: expected a sentencepiece model; it does not load.") from error


def _load_tokenizer(path: str) -> tuple[Any, bytes]:
    library, content = _library(path, "tokenizers", f"a {TOKENIZER}"), _read(path)
    try:
        return library.Tokenizer.from_str(content.decode()), content
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(
            f"{path}: expected a {TOKENIZER} of the library tokenizers; it does not load."
        ) from error


def _library(path: str, package: str, what: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{path}: {what} needs the package `{package}`; "
            'install it with pip install "saturation-jax[text]".'
        ) from error


def open_vocabulary(name: str) -> Vocabulary:
    """The vocabulary that a configuration names.

    Args:
        name: `bytes`; or the path or URL of a sentencepiece model, or of a tokenizer.json (by its
            ending, .json).

    Raises:
        ConfigError: it cannot be read.
    """
    if name == BYTES:
        return ByteVocabulary()
    return TokenizerVocabulary(name) if name.endswith(".json") else SentencePieceVocabulary(name)


def open_to_pretrain(name: str) -> Vocabulary:
    """The vocabulary of `open_vocabulary`, fit to pretrain a T5 with.

    Raises:
        ConfigError: it cannot be read, has no sentinels, or has not T5's padding and end of
            sequence.
    """
    vocabulary = open_vocabulary(name)
    if isinstance(vocabulary, TokenizerVocabulary):
        vocabulary.refuse_untrainable()
    return vocabulary


def embedding_rows(vocabulary: Vocabulary) -> int:
    """Rows of the embedding: the vocabulary padded to a multiple of 128 (bytes: 384, as ByT5)."""
    return -(-vocabulary.size // EMBEDDING_MULTIPLE) * EMBEDDING_MULTIPLE
