"""Blosc 1 containers, the default compression of zarr where nothing else was asked for.

A header, the offsets of equal blocks, and in each block one stream or one for each byte of an
element; a stream as long as what it stands for is stored as it is. Within a block all first bytes
of the elements come first, then all second ones ("shuffled").
Source: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from saturation.errors import CheckpointFormatError

if TYPE_CHECKING:
    import pyarrow as pa

_HEADER = 16
_SHUFFLED, _PLAIN, _BITS_SHUFFLED, _UNSPLIT = 1, 2, 4, 16
_CODECS = {0: "blosclz", 1: "lz4", 2: "snappy", 3: "zlib", 4: "zstd"}
# A block is split into a stream for each byte of its elements unless they are wide or few.
_WIDEST, _FEWEST = 16, 128


class _Damaged(Exception):
    """Something in the container is not as it must be."""


def unpack(where: str, data: bytes, size: int) -> bytes:
    """Return the `size` bytes that a container holds.

    Args:
      where: how errors name the chunk.
      data: the container.
      size: the size in bytes that it must have unpacked.

    Raises:
      CheckpointFormatError: it is damaged, has another size, or a codec not read here.
    """
    try:
        if len(data) < _HEADER:
            raise _Damaged("it ends within its header")
        _, _, flags, width, total, block, packed = struct.unpack_from("<4B3I", data)
        if total != size or packed != len(data):
            raise _Damaged(
                f"it says it unpacks {packed} bytes to {total}, not {len(data)} to {size}"
            )
        if flags & _PLAIN:
            raw = data[_HEADER : _HEADER + size]
        else:
            raw = b"".join(_blocks(data, flags, max(width, 1), total, block))
    except (_Damaged, struct.error, zlib.error, OSError, ValueError) as error:
        raise CheckpointFormatError(f"{where} is truncated or damaged (blosc): {error}.") from error
    if len(raw) != size:
        raise CheckpointFormatError(f"{where} is truncated or damaged (blosc): {len(raw)} bytes.")
    return raw


def _blocks(data: bytes, flags: int, width: int, total: int, block: int) -> Iterator[bytes]:
    if not 0 < block <= total or flags & _BITS_SHUFFLED:
        raise _Damaged(f"its blocks have {block} of {total} bytes, or are shuffled bit by bit")
    count = -(-total // block)
    if _HEADER + 4 * count > len(data):
        raise _Damaged(f"it has no room for {count} blocks")
    for number, start in enumerate(struct.unpack_from(f"<{count}i", data, _HEADER)):
        size = min(block, total - number * block)
        whole = size == block
        split = whole and not flags & _UNSPLIT and width <= _WIDEST and block // width >= _FEWEST
        streams = width if split else 1
        raw = b"".join(_streams(data, flags >> 5, start, size // streams, streams))
        yield _in_order(raw, width) if flags & _SHUFFLED and width > 1 else raw


def _streams(data: bytes, codec: int, at: int, size: int, count: int) -> Iterator[bytes]:
    for _ in range(count):
        if at < _HEADER:
            raise _Damaged(f"a block is said to begin at {at}")
        (packed,) = struct.unpack_from("<i", data, at)
        stream = data[at + 4 : at + 4 + packed]
        if packed <= 0 or len(stream) < packed:
            raise _Damaged(f"a block at {at} ends after {len(stream)} of {packed} bytes")
        yield stream if packed == size else _decode(codec, stream, size)
        at += 4 + packed


def _decode(codec: int, stream: bytes, size: int) -> bytes:
    import pyarrow as pa

    match _CODECS.get(codec):
        case "zlib":
            raw = zlib.decompressobj().decompress(stream, size + 1)
        case "zstd":
            raw = pa.Codec("zstd").decompress(stream, decompressed_size=size).to_pybytes()
        case "lz4":
            lz4 = pa.Codec("lz4_raw")
            raw = lz4.decompress(stream, decompressed_size=size).to_pybytes()
            if _fits(lz4, stream, size - 1):
                raise _Damaged(f"a stream unpacks to less than {size} bytes")
        case name:
            raise _Damaged(f"its codec {name or codec} is not read here (lz4, zlib and zstd are)")
    if len(raw) != size:
        raise _Damaged(f"a stream unpacks to {len(raw)} bytes and {size} were expected")
    return raw


def _fits(codec: pa.Codec, stream: bytes, size: int) -> bool:
    """Say whether a stream unpacks to no more than `size` bytes, which the codec does not tell."""
    try:
        codec.decompress(stream, decompressed_size=size)
    except OSError:
        return False
    return True


def _in_order(raw: bytes, width: int) -> bytes:
    """Undo the shuffling of the bytes of a block."""
    count = len(raw) // width
    body = np.frombuffer(raw, np.uint8, count * width).reshape(width, count)
    return body.T.tobytes() + raw[count * width :]
