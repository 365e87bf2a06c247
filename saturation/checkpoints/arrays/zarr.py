"""Arrays in zarr version 2: a small description, and chunks under the keys `0.0`, `0.1`, ...

Zarr readers fill any missing chunk with a default. Here a chunk that is not there is an error that
names it: a file was lost, and zeros would be measured as weights. But where the array declares a
`fill_value`, its writer leaves out chunks that hold nothing else, and a missing one is that.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from saturation.checkpoints.arrays import bounds
from saturation.checkpoints.disk_array import DTYPES, Box, DiskArray, box_shape
from saturation.errors import CheckpointFormatError, UnreadTypeError

try:
    from deflate import DeflateError, gzip_decompress
except ImportError:  # the extra `gzip`: others do the same at two thirds of the speed
    DeflateError, gzip_decompress = zlib.error, None

DESCRIPTION = ".zarray"

# What a key holds, or None where there is no such key.
Fetch = Callable[[str], bytes | None]

# The most that one byte can decompress to: deflate's limit, and a zstd block (128 KiB) from the
# 4 bytes that can encode it. A declared size beyond that is a lie, told before memory is spent.
_EXPANSION = {"gzip": 1100, "zlib": 1100, "zstd": 40_000, "blosc": 40_000}
_GZIP = b"\x1f\x8b"
# The sizes in the header of a blosc container: of what it holds, of a block, of itself.
_BLOSC = struct.Struct("<4x3I")


class ChunkedArray(DiskArray):
    """An array cut into equal chunks, of which only those that a slice needs are read.

    Args:
      where: how errors name the array, such as its folder.
      shape: the array's shape.
      chunks: the shape of each chunk; the last ones reach beyond the array.
      dtype: the type of the elements.
    """

    def __init__(
        self, where: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype
    ):
        self.shape, self.dtype = bounds.array_shape(where, shape, dtype.itemsize), dtype
        self._where = where
        self._chunks = bounds.chunk_shape(where, chunks, shape, dtype.itemsize)
        # What chunks hold that were left out, where the writer leaves such chunks out.
        self._fill: np.ndarray | None = None

    def _absent(self, where: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return what a chunk holds that is not there, where that is known."""
        if self._fill is None:
            raise CheckpointFormatError(
                f"{where} is missing: this chunk of an array of shape {self.shape} was not copied "
                "or never written."
            )
        bounds.elided(where, self.shape, self._chunks, self.dtype.itemsize)
        return np.broadcast_to(self._fill, shape)

    @property
    def chunk_shape(self) -> tuple[int, ...]:  # noqa: D102
        return self._chunks

    @abstractmethod
    def _chunk(self, place: tuple[int, ...]) -> np.ndarray:
        """Return the whole chunk at a place of the grid."""

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:  # noqa: D102
        pieces = tuple(
            range(part.start // size, -(-part.stop // size))
            for part, size in zip(box, self._chunks, strict=True)
        )
        if out is None and math.prod(map(len, pieces)) == 1:
            place = tuple(piece[0] for piece in pieces)
            return self._chunk(place)[self._within(place, box)[0]].copy()
        out = np.empty(box_shape(box), self.dtype) if out is None else out
        for place in bounds.grid(pieces if out.size else [range(0)]):
            inside, target = self._within(place, box)
            out[target] = self._chunk(place)[inside]
        return out

    def _within(self, place: tuple[int, ...], box: Box) -> tuple[Box, Box]:
        """Return what of the chunk at `place` is wanted, and where in the result it goes."""
        inside, target = [], []
        for position, size, part in zip(place, self._chunks, box, strict=True):
            start, stop = max(part.start, position * size), min(part.stop, (position + 1) * size)
            inside.append(slice(start - position * size, stop - position * size))
            target.append(slice(start - part.start, stop - part.start))
        return tuple(inside), tuple(target)


class ZarrArray(ChunkedArray):
    """A zarr version 2 array behind a function from key to bytes.

    Args:
      where: how errors name the array, such as its folder.
      fetch: returns the bytes under a key such as `".zarray"` or `"0.1"`, or None.
      elided: chunks that hold nothing but a declared fill value were not written.

    Raises:
      UnreadTypeError: its elements have a type that is not read here.
      CheckpointFormatError: `.zarray` is missing, damaged, or of a kind not read here.
    """

    def __init__(self, where: str, fetch: Fetch, elided: bool = True):
        described = f"{where}/{DESCRIPTION}"
        meta = parse_metadata(described, fetch(DESCRIPTION), version=2)
        self._fetch = fetch
        self._order = meta.get("order", "C")
        self._separator = meta.get("dimension_separator", ".")
        self._compressor = _compressor(described, meta)
        if self._order not in ("C", "F") or self._separator not in (".", "/"):
            raise CheckpointFormatError(
                f"{described} is damaged: order {bounds.shown(self._order)}, separator "
                f"{bounds.shown(self._separator)}."
            )
        super().__init__(
            where,
            bounds.sizes(described, "shape", meta.get("shape")),
            bounds.sizes(described, "chunks", meta.get("chunks"), least=1),
            _dtype(described, meta.get("dtype")),
        )
        self._fill = parse_fill(described, meta.get("fill_value"), self.dtype) if elided else None

    def _chunk(self, place: tuple[int, ...]) -> np.ndarray:
        key = self._separator.join(map(str, place)) or "0"
        where = f"{self._where}/{key}"
        data = self._fetch(key)
        if data is None:
            return self._absent(where, self._chunks)
        size = math.prod(self._chunks) * self.dtype.itemsize
        raw = decompress(where, self._compressor, data, size)
        return np.frombuffer(raw, self.dtype).reshape(self._chunks, order=self._order)


def decompress(where: str, compressor: str | None, data: bytes, size: int) -> bytes | memoryview:
    """Return the `size` bytes that `data` holds, never spending memory on more.

    Args:
      where: how errors name the chunk.
      compressor: `"gzip"`, `"zlib"`, `"zstd"`, `"blosc"`, or None for plain bytes.
      data: the chunk as stored.
      size: the size in bytes that the chunk must have.

    Raises:
      CheckpointFormatError: the data is damaged or does not have that size.
    """
    if compressor is None:
        raw = data
    else:
        bounds.unpacked(where, len(data), size, _EXPANSION[compressor])
        raw = (_blosc if compressor == "blosc" else _inflate)(where, compressor, data, size)
    if len(raw) != size:
        raise CheckpointFormatError(
            f"{where} is truncated or damaged: it holds {'more than ' * (len(raw) > size)}"
            f"{min(len(raw), size)} bytes and {size} were expected."
        )
    return raw


def _inflate(where: str, compressor: str, data: bytes, size: int) -> bytes | memoryview:
    try:
        # Where gzip's data says its size, that is verified with its checksum, and what follows the
        # buffer of the size that is due needs no look. zstd refuses whatever has another size.
        known = data[:2] == _GZIP and int.from_bytes(data[-4:], "little") == size % 2**32
        if known and gzip_decompress is not None:
            return memoryview(gzip_decompress(data, size))
        if known or compressor == "zstd":
            import pyarrow as pa

            codec = pa.Codec("gzip" if known else "zstd")
            return memoryview(codec.decompress(data, decompressed_size=size))
        # 47: gzip or zlib, whichever the header says.
        stream = zlib.decompressobj(47)
        raw = stream.decompress(data, size + 1)
        if len(raw) == size and not stream.eof:
            raise ValueError("the end is cut off, and with it the checksum")
        return raw
    except (zlib.error, DeflateError, OSError, ValueError) as error:
        raise CheckpointFormatError(
            f"{where} is truncated or damaged: {compressor} says {str(error).strip()!r}."
        ) from error


def _blosc(where: str, compressor: str, data: bytes, size: int) -> memoryview:
    """Unpack a blosc container by TensorStore, as the one chunk of an array in memory."""
    import tensorstore as ts

    # TensorStore would make room for whatever the header says.
    if len(data) < 16 or _BLOSC.unpack_from(data)[::2] != (size, len(data)):
        raise CheckpointFormatError(
            f"{where} is truncated or damaged: its header (blosc) does not say that {len(data)} "
            f"bytes unpack to {size}."
        )
    settings = {"id": compressor, "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
    metadata = {"shape": [size], "chunks": [size], "dtype": "|u1", "compressor": settings}
    metadata |= {"zarr_format": 2, "order": "C", "filters": None, "fill_value": None}
    context = ts.Context()
    store = ts.KvStore.open({"driver": "memory"}, context=context).result()
    store.write(DESCRIPTION, json.dumps(metadata).encode()).result()
    store.write("0", data).result()
    try:
        spec = {"driver": "zarr", "kvstore": {"driver": "memory"}}
        return ts.open(spec, context=context, open=True).result().read().result().data
    except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
        reason = str(error).split(" [")[0].splitlines()[0]
        raise CheckpointFormatError(
            f"{where} is truncated or damaged (blosc): {bounds.shown(reason)}."
        ) from error


def parse_metadata(described: str, data: bytes | None, version: int) -> dict[str, Any]:
    """Return the description of a zarr array of a version.

    Raises:
      CheckpointFormatError: it is missing, no JSON, or of another version.
    """
    if data is None:
        raise CheckpointFormatError(f"{described} is missing, which describes the array.")
    meta = bounds.parse_json(described, data)
    if not isinstance(meta, dict) or meta.get("zarr_format") != version or meta.get("filters"):
        raise CheckpointFormatError(
            f"{described} does not describe a zarr array of version {version} without filters."
        )
    return meta


def parse_fill(described: str, value: Any, dtype: np.dtype) -> np.ndarray | None:
    """Return the number that an array declares for what is not there, or None.

    Raises:
      CheckpointFormatError: the array's type does not hold that number.
    """
    if value in ("NaN", "Infinity", "-Infinity"):
        value = float(value)
    if not isinstance(value, (int, float)):
        return None
    try:
        with np.errstate(all="ignore"):
            # Rounded, as what was written was; a whole number is not.
            rounded = dtype.kind in "fVc"
            found = np.array(float(value) if rounded else value).astype(dtype)
            exact = rounded or found == value
    except (OverflowError, ValueError) as error:
        raise _unfit(described, value, dtype) from error
    if not exact:
        raise _unfit(described, value, dtype)
    return found


def _unfit(described: str, value: Any, dtype: np.dtype) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"{described} is damaged: its fill_value, {bounds.shown(value)}, is none of the type "
        f"{dtype}."
    )


def _dtype(described: str, value: object) -> np.dtype:
    # Bare names, "bfloat16" among them, are tensorstore's extension of zarr.
    if isinstance(value, str) and value in DTYPES:
        return DTYPES[value]
    try:
        dtype = np.dtype(value) if isinstance(value, str) and value[:1] in "<|" else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype not in DTYPES.values():
        raise UnreadTypeError(
            described,
            f"the type {bounds.shown(value)} is not read here (little-endian numbers are)",
        )
    return dtype


def _compressor(described: str, meta: dict[str, Any]) -> str | None:
    compressor = meta.get("compressor")
    if compressor is None:
        return None
    name = compressor.get("id") if isinstance(compressor, dict) else None
    if not isinstance(name, str) or name not in _EXPANSION:
        raise CheckpointFormatError(
            f"{described}: the compressor {bounds.shown(compressor)} is not read here "
            f"({', '.join(_EXPANSION)} are)."
        )
    return name
