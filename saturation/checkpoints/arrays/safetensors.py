"""Reads the header of a safetensors file: eight bytes of length, JSON, then the arrays' bytes.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from saturation.checkpoints.arrays import bounds
from saturation.checkpoints.disk_array import DTYPES, DiskArray, FileArray, UnreadArray
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder

_DTYPES = MappingProxyType(
    {
        "BF16": DTYPES["bfloat16"],
        "F8_E4M3": DTYPES["float8_e4m3fn"],
        "F8_E5M2": DTYPES["float8_e5m2"],
        "BOOL": DTYPES["bool"],
        "C64": DTYPES["complex64"],
        **{f"F{bits}": DTYPES[f"float{bits}"] for bits in (16, 32, 64)},
        **{f"I{bits}": DTYPES[f"int{bits}"] for bits in (8, 16, 32, 64)},
        **{f"U{bits}": DTYPES[f"uint{bits}"] for bits in (8, 16, 32, 64)},
    }
)


def is_safetensors(head: bytes) -> bool:
    """Say whether a file that begins with `head` (9 bytes or more) can be safetensors."""
    return len(head) >= 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**40


def read_header(folder: Folder, name: str) -> dict[str, DiskArray]:
    """Return the arrays of a safetensors file by name.

    Raises:
      CheckpointFormatError: a Git-LFS pointer, a truncated file, or a header that is damaged,
        lies about sizes, or lets arrays overlap.
    """
    where = folder.where(name)
    head = folder.head(name, 8 if folder.size(name) >= 1024 else folder.size(name))
    if len(head) < 8:
        raise CheckpointFormatError(f"{where} is truncated: it has {len(head)} bytes.")
    length = struct.unpack("<Q", head[:8])[0]
    start = 8 + length
    if length > bounds.LARGEST_JSON or start > folder.size(name):
        raise CheckpointFormatError(
            f"{where} is truncated or no safetensors file: its header is said to have {length} "
            f"bytes and the file has {folder.size(name)}."
        )
    arrays: dict[str, DiskArray] = {}
    end = start
    for key, entry in sorted(_entries(where, folder.read(name, 8, start)), key=_offset):
        dtype, shape, begin, stop = _described(where, key, entry)
        if start + begin < end:
            raise CheckpointFormatError(f"{where}: the array {key!r} overlaps the one before it.")
        end = start + stop
        if dtype is None:
            reason = f"the type {bounds.shown(entry['dtype'])} is not read here"
            arrays[key] = UnreadArray(f"{where}: {key!r}", shape, reason)
            continue
        array = FileArray(folder, name, start + begin, shape, dtype)
        if stop - begin != array.nbytes:
            raise CheckpointFormatError(
                f"{where}: {key!r} of shape {shape} and type {dtype} is said to have "
                f"{stop - begin} bytes."
            )
        arrays[key] = array
    return arrays


def _entries(where: str, header: bytes) -> list[tuple[str, dict[str, Any]]]:
    pairs = bounds.parse_json(f"{where}: its header", header, object_pairs_hook=_no_duplicates)
    if not isinstance(pairs, dict) or not all(isinstance(entry, dict) for entry in pairs.values()):
        raise CheckpointFormatError(f"{where}: its header is damaged: it names no arrays.")
    entries = [(key, entry) for key, entry in pairs.items() if key != "__metadata__"]
    bounds.refuse_names((key for key, _ in entries), where)
    for key, entry in entries:
        offsets = entry.get("data_offsets")
        good = isinstance(offsets, list) and len(offsets) == 2
        if not good or any(type(place) is not int for place in offsets):
            good = False
        if not good or not 0 <= offsets[0] <= offsets[1] < bounds.TOO_LARGE:
            raise CheckpointFormatError(
                f"{where}: the array {key!r} has the offsets {bounds.shown(offsets)} and two "
                "bytes' places were expected."
            )
    return entries


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _offset(entry: tuple[str, Mapping[str, Any]]) -> tuple[int, int]:
    begin, end = entry[1]["data_offsets"]
    return begin, end


def _described(
    where: str, key: str, entry: Mapping[str, Any]
) -> tuple[np.dtype | None, tuple[int, ...], int, int]:
    """Return an array's type (None where it is not read here), shape, first byte and end."""
    dtype = entry.get("dtype")
    if not isinstance(dtype, str):
        raise CheckpointFormatError(
            f"{where}: the array {key!r} has type {bounds.shown(dtype)}, which is none."
        )
    shape = bounds.sizes(f"{where}: the array {key!r}", "shape", entry.get("shape"))
    begin, end = entry["data_offsets"]
    return _DTYPES.get(dtype), shape, begin, end
