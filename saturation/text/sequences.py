"""The tokens that measures of activations are taken on, and the hash that makes runs comparable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Int32

from saturation.errors import ConfigError, MeasureError
from saturation.storage.local_files import read_regular
from saturation.text.beside import refuse_bytes, say_how_to_get_one
from saturation.text.corpus import read_corpus
from saturation.text.vocabulary import BYTES, mask_token, open_vocabulary, special_tokens

BUILTIN = "builtin"
IDS = "ids"  # the source holds ids, and of which vocabulary it does not say
GIVEN = "given"
DECODER_INPUTS = {
    "shifted": "the encoder's tokens, shifted right behind a 0",
    "same": "the encoder's tokens, unshifted",
    GIVEN: "given with the tokens",
}
MOST_SEQUENCES = 2048  # of what is read whole
CORPUS_LENGTH = 128


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of token ids: for an encoder and a decoder, or for a model's one stack.

    For two stacks 0 is padding, as T5 has it. For one it is −1, since every id can be a token's.

    Attributes:
      encoder_input_tokens: (sequences, encoder length), or those of the one stack.
      decoder_input_tokens: (sequences, decoder length); None for one stack.
      source: what they were read from.
      vocabulary: that made ids of a text, by its fingerprint; or "ids".
      vocabulary_file: where it was read from; "" for bytes and ids.
      vocabulary_size: how many ids it has; 0 where nothing says it.
      decoder_input: a key of `DECODER_INPUTS`, or two of them joined by "+" where a file gives the
        decoder's tokens in some lines alone.
      special_tokens: the ids that the vocabulary put before and behind each sequence of one stack.
      mask_token: the id that hides a token from an encoder; None where nothing says it.
      first_sentinel: the id of the first span that is cut out, where the vocabulary says one.
      targets: (sequences, length), what a forward of its own has to say at each position, −1 where
        nothing; None of tokens that are only read.
    """

    encoder_input_tokens: Int32[np.ndarray, "sequences encoder_length"]
    decoder_input_tokens: Int32[np.ndarray, "sequences decoder_length"] | None
    source: str
    vocabulary: str = IDS
    vocabulary_file: str = ""
    vocabulary_size: int = 0
    decoder_input: str = GIVEN
    special_tokens: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    mask_token: int | None = None
    first_sentinel: int | None = None
    targets: Int32[np.ndarray, "sequences length"] | None = None

    @property
    def one_stack(self) -> bool:
        """Whether the tokens are for a model with one stack."""
        return self.decoder_input_tokens is None

    @property
    def padding(self) -> int:
        """The id that is no token's."""
        return -1 if self.one_stack else 0

    @property
    def stacks(self) -> tuple[np.ndarray, ...]:
        """The tokens of each of the model's stacks."""
        decoder = self.decoder_input_tokens
        return (self.encoder_input_tokens, *(() if decoder is None else (decoder,)))

    def fingerprint(self) -> dict[str, Any]:
        """Return source, vocabulary, sizes and a hash of the ids, as `run.json` records them."""
        digest = hashlib.sha256()
        for tokens in self.stacks:
            digest.update(f"{tokens.shape}".encode() + tokens.astype("<i4").tobytes())
        vocabulary = {
            "source": self.source,
            "vocabulary": self.vocabulary,
            "vocabulary_file": self.vocabulary_file,
            "vocabulary_size": self.vocabulary_size,
        }
        sizes: dict[str, Any] = {"sequences": len(self.encoder_input_tokens)}
        if self.decoder_input_tokens is None:
            sizes["length"] = self.encoder_input_tokens.shape[1]
            sizes["special_tokens"] = [list(ids) for ids in self.special_tokens]
        else:
            vocabulary["decoder_input"] = self.decoder_input
            sizes["encoder_length"] = self.encoder_input_tokens.shape[1]
            sizes["decoder_length"] = self.decoder_input_tokens.shape[1]
        return vocabulary | sizes | {"sha256": digest.hexdigest()}

    def batches(self, size: int, multiple: int = 1) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the tokens of each stack, and the targets if any, `size` rows at a time.

        All batches have one shape.

        Rows of padding, which are no sequences, fill up the last one.

        Args:
          size: rows of a batch, or the number of sequences where that is less; rounded up to
          multiple: the number of devices that share a batch.
        """
        tables = [(table, self.padding) for table in self.stacks]
        tables += [] if self.targets is None else [(self.targets, -1)]
        count = len(self.encoder_input_tokens)
        rows = -(-min(size, count) // multiple) * multiple
        missing = ((0, -count % rows), (0, 0))
        padded = [np.pad(table, missing, constant_values=empty) for table, empty in tables]
        for start in range(0, count, rows):
            yield tuple(table[start : start + rows] for table in padded)

    def texts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return [(tokens, which of them count)], both (sequences, length), each text once.

        Where the decoder reads what the encoder does, the text is there once, behind the
        decoder's start.
        """
        encoder, decoder = self.encoder_input_tokens, self.decoder_input_tokens
        if decoder is None:
            return [(np.maximum(encoder, 0), encoder >= 0)]
        if np.array_equal(decoder[:, 1:], encoder[:, :-1]):
            whole = np.concatenate([decoder, encoder[:, -1:]], axis=1)
            return [(whole, _counts(whole))]
        return [(encoder, encoder > 0), (decoder, _counts(decoder))]

    def refuse_unknown(self, vocab_size: int, path: str) -> None:
        """Raise where the ids are not of the vocabulary of the model at `path`.

        Args:
          vocab_size: rows of its embedding.
          path: named in the error.

        Raises:
          MeasureError: an id lies outside; or the ids are bytes, and the model's are pieces, since
            it has more than 400.
        """
        if self.vocabulary == BYTES:
            refuse_bytes(self.source, vocab_size, path)
        largest = max(table.max() for table in self.stacks)
        if largest >= vocab_size:
            raise MeasureError(
                f"{self.source} has token {largest}, and the model in {path} has a vocabulary of "
                f"{vocab_size}. {say_how_to_get_one('the folder of its checkpoint')}"
            )


def read_tokens(
    source: str = BUILTIN,
    vocabulary: str = BYTES,
    sequences: int | None = 32,
    length: int = 128,
    decoder_input: str = "shifted",
    one_stack: bool = False,
) -> TokenBatch:
    """Return the tokens to measure on.

    Args:
      source: a `.jsonl` file of token ids, one sequence a line, a list or
        `{"encoder": [...], "decoder": [...]}`; a text file or a glob; or "builtin", the
        documentation of Python that ships with it.
      vocabulary: for text, what `open_vocabulary` takes: "bytes", which only a model of bytes
        understands, or the path or URL of a tokenizer.json or of a sentencepiece model.
      sequences: for text, how many windows, spaced evenly; of a `.jsonl` at most so many lines.
        None: as many as there are, without overlap, but at most 2,048.
      length: for text, tokens of a window; longer lines of a `.jsonl` are cut.
      decoder_input: what the decoder gets where the source does not say: the encoder's tokens
        shifted right behind a 0, or the same unshifted (as in Merrill et al. 2021).
      one_stack: the model has no decoder beside its encoder, or no encoder. Windows of a text get
        the special tokens that the vocabulary adds; in a `.jsonl` −1 is padding.

    Raises:
      ConfigError: the source cannot be read, is too short, or holds no token ids.
    """
    if decoder_input not in ("shifted", "same"):  # the keys that can be asked for
        raise ConfigError(f"The decoder's input is 'shifted' or 'same', not {decoder_input!r}.")
    made_by: dict[str, Any] = {}
    if is_ids(source):
        pairs = _read_jsonl(Path(source), sequences or MOST_SEQUENCES, one_stack)
    else:
        windows, made_by = _windows(source, vocabulary, sequences, length, one_stack)
        pairs = [(window, None) for window in windows]
    if one_stack:
        rows = _padded([tokens[:length] for tokens, _ in pairs], -1)
        return TokenBatch(rows, None, source, **made_by)
    encoder = [tokens[:length] for tokens, _ in pairs]
    decoder = [
        _decoder_tokens(tokens, decoder_input) if given is None else given[:length]
        for tokens, (_, given) in zip(encoder, pairs, strict=True)
    ]
    kinds = {decoder_input if given is None else GIVEN for _, given in pairs}
    return TokenBatch(
        _padded(encoder),
        _padded(decoder),
        source,
        **made_by,
        decoder_input="+".join(sorted(kinds)),
    )


def is_ids(source: str) -> bool:
    """Whether a source of `read_tokens` holds token ids, for which no vocabulary is needed."""
    return source.endswith(".jsonl")


def read_corpus_tokens(
    source: str, vocabulary: str = BYTES, length: int = 128, one_stack: bool = False
) -> TokenBatch:
    """Return a corpus to count in which tokens occur together: all of a source of `read_tokens`.

    Args:
      source: as for `read_tokens`; at most 2,048 sequences of it.
      vocabulary: as for `read_tokens`.
      length: tokens of a sequence, 128 at most: the pairs of tokens grow with its square.
      one_stack: as for `read_tokens`.

    Raises:
      ConfigError: as `read_tokens`.
    """
    length = min(length, CORPUS_LENGTH)
    return read_tokens(source, vocabulary, None, length, one_stack=one_stack)


def _counts(decoder_tokens: np.ndarray) -> np.ndarray:
    """Which decoder inputs are tokens: the first, which may be the 0 to start with, and not 0."""
    return (decoder_tokens > 0) | (np.arange(decoder_tokens.shape[1]) == 0)


def _decoder_tokens(tokens: list[int], decoder_input: str) -> list[int]:
    return [0, *tokens[:-1]] if decoder_input == "shifted" else tokens


def _padded(rows: list[list[int]], padding: int = 0) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), padding, np.int32)
    for row, tokens in zip(table, rows, strict=True):
        row[: len(tokens)] = tokens
    return table


def _windows(
    source: str, vocabulary: str, sequences: int | None, length: int, one_stack: bool
) -> tuple[list[list[int]], dict[str, Any]]:
    """Return windows of a text's tokens, and what `TokenBatch` says of their vocabulary."""
    opened = open_vocabulary(vocabulary)
    tokens = opened.encode(read_corpus(() if source == BUILTIN else (source,)).text)
    before, behind = special_tokens(opened) if one_stack else ((), ())
    length = max(length - len(before) - len(behind), 1)
    if sequences is None:
        sequences = max(1, min(len(tokens) // length, MOST_SEQUENCES))
    if len(tokens) < sequences * length:
        raise ConfigError(
            f"{source} has {len(tokens)} tokens, and {sequences} sequences of {length} need "
            f"{sequences * length}; give more text, or fewer or shorter sequences."
        )
    if not one_stack and not tokens.all():
        raise ConfigError(
            f"{source}: {vocabulary} gives some of the text the id 0, which is padding to a T5. "
            "Leave that out of the text, or give token ids in a .jsonl."
        )
    starts = np.linspace(0, len(tokens) - length, sequences).astype(int)
    made_by: dict[str, Any] = {
        "vocabulary": opened.fingerprint,
        "vocabulary_file": "" if opened.file is None else vocabulary,
        "vocabulary_size": opened.size,
    }
    if one_stack:
        made_by |= {"special_tokens": (before, behind), "mask_token": mask_token(opened)}
    elif opened.first_sentinel >= 0:
        made_by["first_sentinel"] = opened.first_sentinel
    windows = (tokens[start : start + length].tolist() for start in starts)
    return [[*before, *window, *behind] for window in windows], made_by


def _read_jsonl(path: Path, most: int, one_stack: bool) -> list[tuple[list[int], list[int] | None]]:
    try:
        # Spreadsheets and editors of Windows put a byte order mark before the text.
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path}: the tokens cannot be read: {reason}.") from error
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ConfigError(f"{path}: there is no sequence of token ids in it.")
    parse = _parse_one_stack if one_stack else _parse_line
    return [parse(path, number, line) for number, line in numbered[:most]]


def _parse_one_stack(path: Path, number: int, line: str) -> tuple[list[int], None]:
    data = _json(line)
    tokens = data.get("tokens") if isinstance(data, dict) else data
    if not _is_ids(tokens, -1):
        raise ConfigError(
            f"{path}, line {number}: a list of token ids (whole numbers from 0, and -1 for "
            f'padding) was expected, or {{"tokens": [...]}}; found {line[:60]!r}.'
        )
    if max(tokens) < 0:
        raise ConfigError(f"{path}, line {number}: the ids are all -1, which is padding.")
    return tokens, None


def _parse_line(path: Path, number: int, line: str) -> tuple[list[int], list[int] | None]:
    data = _json(line)
    encoder, decoder = data, None
    if isinstance(data, dict):
        encoder, decoder = data.get("encoder"), data.get("decoder")
    if not _is_ids(encoder) or not (decoder is None or _is_ids(decoder)):
        raise ConfigError(
            f"{path}, line {number}: a list of token ids (whole numbers from 0) was expected, or "
            f'{{"encoder": [...], "decoder": [...]}}; found {line[:60]!r}.'
        )
    if not any(encoder):
        raise ConfigError(f"{path}, line {number}: the encoder's ids are all 0, which is padding.")
    return encoder, decoder


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_ids(value: Any, least: int = 0) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(token) is int and least <= token < 2**31 for token in value)
    )
