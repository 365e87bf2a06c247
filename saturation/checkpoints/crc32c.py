"""CRC-32C, the checksum of TensorFlow's and zarr's files, in numpy.

A checksum goes byte by byte, and so would Python. But it is linear: the checksum of two pieces is
that of the first, pushed on by as many zero bytes as the second has, plus (XOR) that of the second.
So the data is cut into many equal lanes whose checksums advance together, word by word, as one
numpy array, and the lanes are joined at the end, pairs at a time.
Source: Castagnoli's polynomial as in RFC 3720, section 12.1; joining as in zlib's `crc32_combine`.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_POLYNOMIAL = 0x82F63B78
_ONES = np.uint32(0xFFFFFFFF)
_LANES = 4096
# TensorFlow and LevelDB store checksums so masked, since a checksum of data that holds its own
# checksum is a constant.
_MASK_DELTA = 0xA282EAD8


def crc32c(data: bytes | memoryview | np.ndarray) -> int:
    """Return the CRC-32C of `data` (bytes)."""
    values = np.frombuffer(data, np.uint8)
    lanes = min(_LANES, 1 << max(values.size // 256, 1).bit_length() - 1)
    words = values.size // (4 * lanes)
    body = words * 4 * lanes
    state = np.zeros(lanes, np.uint32)
    # The register starts as ones, which are the same as ones added to the first four bytes.
    state[0] = _ONES
    if words:
        columns = np.ascontiguousarray(values[:body].view("<u4").reshape(lanes, words).T)
        state = _advance(columns, state)
        length = 4 * words
        while state.size > 1:
            state = _push(state[0::2], length) ^ state[1::2]
            length *= 2
    register = int(state[0])
    tables = _tables()[0].tolist()
    for byte in values[body:].tolist():
        register = (register >> 8) ^ tables[(register ^ byte) & 0xFF]
    return register ^ 0xFFFFFFFF


def unmasked(stored: int) -> int:
    """Return the checksum that was stored masked, as TensorFlow and LevelDB do."""
    rotated = (stored - _MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17) | (rotated << 15) & 0xFFFFFFFF


def _advance(columns: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Take in one 32-bit word per lane after another; `columns` is (words, lanes)."""
    first, second, third, fourth = _tables()
    for words in columns:
        state = state ^ words
        state = (
            fourth[state & 0xFF]
            ^ third[(state >> np.uint32(8)) & 0xFF]
            ^ second[(state >> np.uint32(16)) & 0xFF]
            ^ first[state >> np.uint32(24)]
        )
    return state


@cache
def _tables() -> tuple[np.ndarray, ...]:
    """Return what each value of the lowest byte becomes after 1, 2, 3 and 4 bytes."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    tables = [table]
    for _ in range(3):
        tables.append((tables[-1] >> np.uint32(8)) ^ table[tables[-1] & 0xFF])
    return tuple(tables)


def _push(state: np.ndarray, count: int) -> np.ndarray:
    """Return the registers after `count` zero bytes."""
    result = np.zeros_like(state)
    for bit, image in enumerate(_zeros(count)):
        result ^= np.where((state >> np.uint32(bit)) & 1, np.uint32(image), np.uint32(0))
    return result


@cache
def _zeros(count: int) -> tuple[int, ...]:
    """Return what each single bit of the register becomes after `count` zero bytes."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if count == 1:
        table = _tables()[0]
        return tuple(((bits >> np.uint32(8)) ^ table[bits & 0xFF]).tolist())
    half = np.array(_zeros(count // 2), np.uint32)
    image = _push(half, count // 2)
    return tuple((_push(image, 1) if count % 2 else image).tolist())
