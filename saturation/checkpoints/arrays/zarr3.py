"""Arrays in zarr version 3, as Orbax writes them: `zarr.json`, and shards under `c/0/0`.

A shard holds many inner chunks and, at one of its ends, an index of where each begins and how long
it is. Read: regular grids, the codecs `sharding_indexed`, `bytes`, `zstd`, `gzip` and `crc32c`.
Source: https://zarr-specs.readthedocs.io/en/latest/v3/core/ and its list of codecs.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from saturation.checkpoints.arrays import bounds
from saturation.checkpoints.arrays.checksum import crc32c
from saturation.checkpoints.arrays.zarr import (
    ChunkedArray,
    Fetch,
    decompress,
    parse_fill,
    parse_metadata,
)
from saturation.checkpoints.disk_array import DTYPES
from saturation.errors import CheckpointFormatError, UnreadTypeError

DESCRIPTION = "zarr.json"

_EMPTY = 2**64 - 1
_CHECKSUM_BYTES = 4


class Zarr3Array(ChunkedArray):
    """A zarr version 3 array behind a function from key to bytes.

    Args:
      where: how errors name the array.
      fetch: returns the bytes under a key such as `"zarr.json"` or `"c/0/1"`, or None.
      elided: chunks that hold nothing but the fill value were not written, so that a missing one
        is that and no damage.

    Raises:
      CheckpointFormatError: the description is missing, damaged, or of a kind not read here.
    """

    def __init__(self, where: str, fetch: Fetch, elided: bool):
        self._fetch = fetch
        meta = parse_metadata(f"{where}/{DESCRIPTION}", fetch(DESCRIPTION), version=3)
        data_type, fill = meta.get("data_type"), meta.get("fill_value")
        grid, encoding = _named(meta.get("chunk_grid")), _named(meta.get("chunk_key_encoding"))
        if grid[0] != "regular":
            raise _unread(where, f"chunk grid {bounds.shown(grid[0])}")
        if not isinstance(data_type, str) or data_type not in DTYPES:
            raise UnreadTypeError(
                where, f"the data type {bounds.shown(data_type)} is not read here"
            )
        if encoding[0] not in ("default", "v2"):
            raise _unread(where, f"chunk keys {bounds.shown(encoding[0])}")
        self._prefix = ("c",) if encoding[0] == "default" else ()
        self._separator = encoding[1].get("separator", "/" if self._prefix else ".")
        if self._separator not in ("/", "."):
            raise _unread(where, f"chunk keys parted by {bounds.shown(self._separator)}")
        self._codecs = _codecs(where, meta.get("codecs"))
        super().__init__(
            where,
            bounds.sizes(where, "shape", meta.get("shape")),
            bounds.sizes(where, "chunk_shape", grid[1].get("chunk_shape"), least=1),
            DTYPES[data_type],
        )
        self._fill = parse_fill(where, fill, self.dtype) if elided else None

    def _chunk(self, place: tuple[int, ...]) -> np.ndarray:
        key = self._separator.join((*self._prefix, *map(str, place))) or "c"
        where = f"{self._where}/{key}"
        data = self._fetch(key)
        if data is None:
            return self._absent(where, self._chunks)
        name, settings = self._codecs[0]
        if name != "sharding_indexed":
            return self._decode(where, self._codecs, data, self._chunks)
        return self._shard(where, settings, data)

    def _shard(self, where: str, settings: dict[str, Any], data: bytes) -> np.ndarray:
        """Decode the inner chunks of a shard."""
        inner = bounds.sizes(where, "chunk_shape", settings.get("chunk_shape"), least=1)
        if len(inner) != len(self._chunks) or any(
            outer % size for outer, size in zip(self._chunks, inner, strict=True)
        ):
            raise _unread(where, f"inner chunks {inner} of shards {self._chunks}")
        grid = tuple(outer // size for outer, size in zip(self._chunks, inner, strict=True))
        codecs = _codecs(where, settings.get("codecs"))
        places = _index(where, settings, data, math.prod(grid))
        # Inner chunks may all be the same bytes.
        whole = math.prod(self._chunks) * self.dtype.itemsize
        bounds.unpacked(where, len(data), whole, expansion=bounds.TOO_LARGE)
        shard = np.empty(self._chunks, self.dtype)
        for position, place in zip(np.ndindex(*grid), places, strict=True):
            start, size = int(place[0]), int(place[1])
            target = tuple(slice(p * n, (p + 1) * n) for p, n in zip(position, inner, strict=True))
            if start == size == _EMPTY:
                shard[target] = self._absent(f"{where} (inner chunk {position})", inner)
                continue
            if start + size > len(data):
                raise CheckpointFormatError(f"{where} is truncated or its index is damaged.")
            shard[target] = self._decode(where, codecs, data[start : start + size], inner)
        return shard

    def _decode(
        self, where: str, codecs: Sequence[Any], data: bytes, shape: tuple[int, ...]
    ) -> np.ndarray:
        size = math.prod(shape) * self.dtype.itemsize
        # Codecs are listed in the order of writing.
        names = [name for name, _ in codecs]
        if names[-1:] == ["crc32c"]:
            data, names = _checked(where, data), names[:-1]
        compressor = names[1] if len(names) == 2 else None
        if names[:1] != ["bytes"] or len(names) > 2 or compressor not in (None, "zstd", "gzip"):
            raise _unread(where, f"codecs {bounds.shown(names)}")
        return np.frombuffer(decompress(where, compressor, data, size), self.dtype).reshape(shape)


def _index(where: str, settings: dict[str, Any], data: bytes, count: int) -> np.ndarray:
    """Return (start, size) of each inner chunk of a shard."""
    if count > bounds.MOST_INNER:
        raise _unread(where, f"{count} inner chunks (more than {bounds.MOST_INNER}) of a shard")
    codecs = [name for name, _ in _codecs(where, settings.get("index_codecs"))]
    if codecs not in (["bytes"], ["bytes", "crc32c"]):
        raise _unread(where, f"index codecs {bounds.shown(codecs)}")
    size = 16 * count + _CHECKSUM_BYTES * (len(codecs) - 1)
    if size > len(data):
        raise CheckpointFormatError(f"{where} is truncated: its index alone has {size} bytes.")
    at_start = settings.get("index_location") == "start"
    raw = data[:size] if at_start else data[len(data) - size :]
    raw = _checked(where, raw) if len(codecs) == 2 else raw
    return np.frombuffer(raw, "<u8").reshape(count, 2)


def _checked(where: str, data: bytes) -> bytes:
    """Return the data less the checksum behind it, which must be right."""
    body, stored = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if len(stored) < _CHECKSUM_BYTES or crc32c(body) != struct.unpack("<I", stored)[0]:
        raise CheckpointFormatError(f"{where} is truncated or damaged: its checksum is wrong.")
    return body


def _codecs(where: str, value: Any) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(value, list) or not value:
        raise _unread(where, f"codecs {bounds.shown(value)}")
    codecs = [_named(codec) for codec in value]
    for name, settings in codecs:
        if name == "bytes" and settings.get("endian", "little") != "little":
            raise _unread(where, "big-endian bytes")
    return codecs


def _named(value: Any) -> tuple[str, dict[str, Any]]:
    """Return the name and configuration of a codec, grid or encoding."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return "", {}
    settings = value.get("configuration")
    return value["name"], settings if isinstance(settings, dict) else {}


def _unread(where: str, what: str) -> CheckpointFormatError:
    return CheckpointFormatError(f"{where}: {what} are damaged or not read here.")
