"""What a file may claim: every reader asks here before it believes a header.

A size in a header costs its writer a few bytes and its reader whatever it says. What is claimed is
held against what lies there where a format can (a file's length), and against these bounds always.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from saturation.errors import CheckpointFormatError

# NumPy's own.
MAX_RANK = 64
# Every product of sizes must stay below, as NumPy's and the disk's numbers do.
TOO_LARGE = 2**63
# The largest array of any public model has a hundredth of it; its blocks can still be counted.
_LARGEST_ARRAY = 2**40
# Nothing vouches for the other sizes of an array without elements, and measures count rows.
_LARGEST_BESIDE_EMPTY = 2**24
# What lies in memory though few bytes on the disk vouch for it: a chunk that was not written, one
# that reaches beyond its array, one that unpacks to a hundred times its bytes.
UNVOUCHED_BYTES = 64 * 2**20
_MOST_OF_ARRAY, _MOST_OF_BYTES = 4, 100
# Chunks that may be left out of one array, and inner chunks of one shard.
_MOST_ELIDED, MOST_INNER = 4096, 2**16
# No longer name is a module's, and matching patterns against it could take for ever.
LONGEST_NAME = 1000
_DEEPEST = 100
# Some configurations hold 10³⁰; beyond this, a number is no float either.
_MOST_DIGITS = 300

# Bytes that the parser spends for each of these: an empty dict or list, half a short text, an item
# of a list, and a name with its place in a dict (measured in CPython 3.11; rounded up).
_COST: Mapping[bytes, int] = MappingProxyType({b"{": 72, b"[": 64, b'"': 28, b",": 32, b":": 150})
_MOST_COST = 150 * 2**20
# Text this short can do no harm.
_SHORT = 2**20
LARGEST_JSON = 16 * 2**20


def shown(value: object, most: int = 200) -> str:
    """Return a value as an error shows it, whatever it is and however large."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of 5,000 digits, a list in a list in a list …
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= most else f"{text[:most]}…"


def array_shape(where: str, shape: Iterable[Any], itemsize: int) -> tuple[int, ...]:
    """Return the shape of an array of elements of `itemsize` bytes, which can be one.

    Raises:
      CheckpointFormatError: it has more than 64 axes, sizes that are none, 2⁴⁰ bytes or more, or no
        elements and yet more than 2²⁴ places on its other axes.
    """
    found = sizes(where, "shape", list(shape))
    others = math.prod(size for size in found if size)
    if 0 in found and others > _LARGEST_BESIDE_EMPTY:
        raise CheckpointFormatError(
            f"{where} is damaged or hostile: an array of shape {shown(found)} has no elements, and "
            f"its other sizes may be {_LARGEST_BESIDE_EMPTY} together at most."
        )
    if others * itemsize >= _LARGEST_ARRAY:
        raise CheckpointFormatError(
            f"{where} is damaged or hostile: an array of shape {shown(found)} would have "
            f"{others * itemsize} bytes, and {_LARGEST_ARRAY} are more than any has."
        )
    return found


def sizes(where: str, what: str, value: Any, least: int = 0) -> tuple[int, ...]:
    """Return a list of sizes, none under `least`, whose product is below 2⁶³.

    Raises:
      CheckpointFormatError: it is something else.
    """
    good = isinstance(value, (list, tuple)) and len(value) <= MAX_RANK
    if not good or any(type(size) is not int or not least <= size < TOO_LARGE for size in value):
        raise CheckpointFormatError(
            f"{where} is damaged: {what!r} is {shown(value)}, and a list of at most {MAX_RANK} "
            f"sizes from {least} to 2**63 was expected."
        )
    if math.prod(size for size in value if size) >= TOO_LARGE:
        raise CheckpointFormatError(
            f"{where} is damaged or hostile: the product of {what!r}, {shown(value)}, is 2**63 or "
            "more."
        )
    return tuple(value)


def chunk_shape(
    where: str, chunks: Sequence[int], shape: Sequence[int], itemsize: int
) -> tuple[int, ...]:
    """Return the shape of an array's chunks, which are not far larger than the array.

    Raises:
      CheckpointFormatError: a chunk has another rank, or more than 64 MiB and than four such
        arrays.
    """
    if len(chunks) != len(shape):
        raise CheckpointFormatError(
            f"{where}: its description is damaged: shape {shown(tuple(shape))} and chunks "
            f"{shown(tuple(chunks))} do not go together."
        )
    whole, one = math.prod(shape) * itemsize, math.prod(chunks) * itemsize
    if one > max(UNVOUCHED_BYTES, _MOST_OF_ARRAY * whole):
        raise CheckpointFormatError(
            f"{where} is damaged or hostile: its chunks of shape {shown(tuple(chunks))} have {one} "
            f"bytes each, and the whole array of shape {shown(tuple(shape))} has {whole}."
        )
    return tuple(chunks)


def unpacked(where: str, stored: int, size: int, expansion: int) -> None:
    """Refuse what is said to unpack to more than its bytes can, or weights' do.

    Args:
      where: how errors name it.
      stored: how many bytes there are.
      size: to how many they are to unpack.
      expansion: to how many the compressor can unpack one.

    Raises:
      CheckpointFormatError: `size` is more than that, or more than 64 MiB and 100 times `stored`.
    """
    if size > stored * expansion:
        raise CheckpointFormatError(
            f"{where} is truncated or damaged: its {stored} bytes cannot hold {size}."
        )
    if size > max(UNVOUCHED_BYTES, _MOST_OF_BYTES * stored):
        raise CheckpointFormatError(
            f"{where} is damaged or hostile: its {stored} bytes are to unpack to {size}, more than "
            f"{_MOST_OF_BYTES} times as many."
        )


def elided(where: str, shape: Sequence[int], chunks: Sequence[int], itemsize: int) -> None:
    """Refuse to take a chunk that is not there for one of equal elements, in an array too large.

    Raises:
      CheckpointFormatError: the array has more than 128 MiB or 4096 chunks, so that a missing one
        is one that was lost.
    """
    pieces = math.prod(-(-size // part) for size, part in zip(shape, chunks, strict=True))
    if math.prod(shape) * itemsize > 2 * UNVOUCHED_BYTES or pieces > _MOST_ELIDED:
        raise CheckpointFormatError(
            f"{where} is missing: this chunk of an array of shape {tuple(shape)} was not copied or "
            "never written."
        )


def grid(pieces: Sequence[range]) -> Iterator[tuple[int, ...]]:
    """Yield the places of a grid one by one: `itertools.product` would make lists of its axes.

    >>> next(grid([range(2, 2**40), range(3, 5)]))
    (2, 3)
    """
    if not pieces:
        yield ()
        return
    for first in pieces[0]:
        for rest in grid(pieces[1:]):
            yield first, *rest


def refuse_names(names: Iterable[object], where: str) -> None:
    """Raise `CheckpointFormatError` where an array's name is no name that files can have.

    A name is text of 1 to 1000 characters, without NUL and without half characters (surrogates).
    """
    for name in names:
        if not isinstance(name, str) or not name.strip("./"):
            raise CheckpointFormatError(f"{where}: {shown(name)} is no name of an array.")
        if len(name) > LONGEST_NAME:
            raise CheckpointFormatError(
                f"{where}: an array has a name of {len(name)} characters, and {LONGEST_NAME} are "
                "the most that is read here. The checkpoint is damaged or hostile."
            )
        if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise CheckpointFormatError(
                f"{where}: the array's name {ascii(name)[:200]} has characters that no file's name "
                "can have (NUL, or half a character). The checkpoint is damaged or hostile."
            )


def parse_json(where: str, text: bytes, **options: Any) -> Any:
    """Return what JSON says, within bounds of its size, depth and numbers.

    Args:
      where: how errors name the file.
      text: the JSON.
      options: of `json.loads`.

    Raises:
      CheckpointFormatError: it is no JSON in UTF-8, has more than 16 MiB, 100 levels or a number of
        300 digits, or would take far more memory than its text.
    """
    refuse_heavy_json(where, text)
    try:
        found = json.loads(text, parse_int=_bounded_int, **options)
    except (ValueError, RecursionError) as error:
        no_json = isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, RecursionError))
        reason = "it is no JSON" if no_json else str(error)
        raise CheckpointFormatError(f"{where} is damaged: {reason}.") from error
    _refuse_deep(where, found)
    return found


def refuse_heavy_json(where: str, text: bytes) -> None:
    """Raise `CheckpointFormatError` where parsing `text` would take far more memory than it has.

    A safetensors header of 100,000 arrays passes; one of millions of empty lists does not.
    """
    if len(text) <= _SHORT:
        return
    if len(text) > LARGEST_JSON:
        raise CheckpointFormatError(
            f"{where} is too large to be what it is called: {len(text)} bytes of JSON."
        )
    cost = sum(bytes_each * text.count(mark) for mark, bytes_each in _COST.items())
    if cost > _MOST_COST:
        raise CheckpointFormatError(
            f"{where} is damaged or hostile: its {len(text)} bytes of JSON would take about "
            f"{cost // 2**20} MB of memory."
        )


def _bounded_int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"it has a number of {len(text)} digits")
    return int(text)


def _refuse_deep(where: str, found: Any) -> None:
    level = [found] if isinstance(found, (dict, list)) else []
    for _ in range(_DEEPEST):
        level = [
            item
            for one in level
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise CheckpointFormatError(
        f"{where} is damaged or hostile: its JSON is nested more than {_DEEPEST} levels deep."
    )
