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

BUILTIN = "builtin"
MOST_SEQUENCES = 2048  # of what is read whole
CORPUS_LENGTH = 128


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of token ids for the encoder and the decoder; 0 is padding.

    Attributes:
      encoder_input_tokens: (sequences, encoder length).
      decoder_input_tokens: (sequences, decoder length).
      source: what they were read from.
    """

    encoder_input_tokens: Int32[np.ndarray, "sequences encoder_length"]
    decoder_input_tokens: Int32[np.ndarray, "sequences decoder_length"]
    source: str

    def describe(self) -> dict[str, Any]:
        """Return source, sizes and a hash of the ids, as `run.json` records them."""
        digest = hashlib.sha256()
        for tokens in (self.encoder_input_tokens, self.decoder_input_tokens):
            digest.update(f"{tokens.shape}".encode() + tokens.astype("<i4").tobytes())
        return {
            "source": self.source,
            "sequences": len(self.encoder_input_tokens),
            "encoder_length": self.encoder_input_tokens.shape[1],
            "decoder_length": self.decoder_input_tokens.shape[1],
            "sha256": digest.hexdigest(),
        }

    def batches(self, size: int, multiple: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (encoder, decoder) tokens of `size` rows at a time, all batches of one shape.

        Rows of padding, which are no sequences, fill up the last one.

        Args:
          size: rows of a batch, or the number of sequences where that is less; rounded up to
          multiple: the number of devices that share a batch.
        """
        tables = (self.encoder_input_tokens, self.decoder_input_tokens)
        rows = -(-min(size, len(tables[0])) // multiple) * multiple
        missing = -len(tables[0]) % rows
        encoder, decoder = (np.pad(table, ((0, missing), (0, 0))) for table in tables)
        for start in range(0, len(encoder), rows):
            yield encoder[start : start + rows], decoder[start : start + rows]

    def texts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return [(tokens, which of them count)], both (sequences, length), each text once.

        Where the decoder reads what the encoder does, the text is there once, behind the
        decoder's start.
        """
        encoder, decoder = self.encoder_input_tokens, self.decoder_input_tokens
        if np.array_equal(decoder[:, 1:], encoder[:, :-1]):
            whole = np.concatenate([decoder, encoder[:, -1:]], axis=1)
            return [(whole, _counts(whole))]
        return [(encoder, encoder > 0), (decoder, _counts(decoder))]

    def refuse_unknown(self, vocab_size: int, path: str) -> None:
        """Raise `MeasureError` where an id lies outside the vocabulary of the model at `path`."""
        largest = max(self.encoder_input_tokens.max(), self.decoder_input_tokens.max())
        if largest >= vocab_size:
            raise MeasureError(
                f"{self.source} has token {largest}, and the model in {path} has a vocabulary of "
                f"{vocab_size}; give token ids of its own vocabulary in a .jsonl, or its "
                "sentencepiece model with --vocabulary."
            )


def read_tokens(
    source: str = BUILTIN,
    vocabulary: str = "bytes",
    sequences: int | None = 32,
    length: int = 128,
    decoder_input: str = "shifted",
) -> TokenBatch:
    """Return the tokens to measure on.

    Args:
      source: a `.jsonl` file of token ids, one sequence a line, a list or
        `{"encoder": [...], "decoder": [...]}`; a text file or a glob; or "builtin", the
        documentation of Python that ships with it.
      vocabulary: for text, "bytes" or a sentencepiece model's file.
      sequences: for text, how many windows, spaced evenly; of a `.jsonl` at most so many lines.
        None: as many as there are, without overlap, but at most 2,048.
      length: for text, tokens of a window; longer lines of a `.jsonl` are cut.
      decoder_input: what the decoder gets where the source does not say: the encoder's tokens
        shifted right behind a 0, or the same unshifted (as in Merrill et al. 2021).

    Raises:
      ConfigError: the source cannot be read, is too short, or holds no token ids.
    """
    if decoder_input not in ("shifted", "same"):
        raise ConfigError(f"The decoder's input is 'shifted' or 'same', not {decoder_input!r}.")
    if source.endswith(".jsonl"):
        pairs = _read_jsonl(Path(source), sequences or MOST_SEQUENCES)
    else:
        pairs = [(window, None) for window in _windows(source, vocabulary, sequences, length)]
    encoder = [tokens[:length] for tokens, _ in pairs]
    decoder = [
        _decoder_tokens(tokens, decoder_input) if given is None else given[:length]
        for tokens, (_, given) in zip(encoder, pairs, strict=True)
    ]
    return TokenBatch(_padded(encoder), _padded(decoder), source)


def read_corpus_tokens(source: str, vocabulary: str = "bytes", length: int = 128) -> TokenBatch:
    """Return a corpus to count in which tokens occur together: all of a source of `read_tokens`.

    Args:
      source: as for `read_tokens`; at most 2,048 sequences of it.
      vocabulary: as for `read_tokens`.
      length: tokens of a sequence, 128 at most: the pairs of tokens grow with its square.

    Raises:
      ConfigError: as `read_tokens`.
    """
    return read_tokens(source, vocabulary, None, min(length, CORPUS_LENGTH))


def _counts(decoder_tokens: np.ndarray) -> np.ndarray:
    """Which decoder inputs are tokens: the first, which may be the 0 to start with, and not 0."""
    return (decoder_tokens > 0) | (np.arange(decoder_tokens.shape[1]) == 0)


def _decoder_tokens(tokens: list[int], decoder_input: str) -> list[int]:
    return [0, *tokens[:-1]] if decoder_input == "shifted" else tokens


def _padded(rows: list[list[int]]) -> np.ndarray:
    table = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, tokens in zip(table, rows, strict=True):
        row[: len(tokens)] = tokens
    return table


def _windows(source: str, vocabulary: str, sequences: int | None, length: int) -> list[list[int]]:
    from saturation.training.data import read_corpus
    from saturation.training.tokens import open_vocabulary

    corpus = read_corpus(() if source == BUILTIN else (source,))
    tokens = open_vocabulary(vocabulary).encode(corpus.text)
    if sequences is None:
        sequences = max(1, min(len(tokens) // length, MOST_SEQUENCES))
    if len(tokens) < sequences * length:
        raise ConfigError(
            f"{source} has {len(tokens)} tokens, and {sequences} sequences of {length} need "
            f"{sequences * length}; give more text, or fewer or shorter sequences."
        )
    starts = np.linspace(0, len(tokens) - length, sequences).astype(int)
    return [tokens[start : start + length].tolist() for start in starts]


def _read_jsonl(path: Path, most: int) -> list[tuple[list[int], list[int] | None]]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path}: the tokens cannot be read: {reason}.") from error
    if not lines:
        raise ConfigError(f"{path}: there is no sequence of token ids in it.")
    return [_parse_line(path, number, line) for number, line in enumerate(lines[:most], start=1)]


def _parse_line(path: Path, number: int, line: str) -> tuple[list[int], list[int] | None]:
    try:
        data = json.loads(line)
    except ValueError:
        data = None
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


def _is_ids(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(token) is int and 0 <= token < 2**31 for token in value)
    )
