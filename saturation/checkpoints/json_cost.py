"""What JSON takes in memory once parsed: a hostile file can make that thirty times its text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from saturation.errors import CheckpointFormatError

# Bytes that the parser spends for each of these: an empty dict or list, half a short text, an item
# of a list, and a name with its place in a dict (measured in CPython 3.11; rounded up).
_COST: Mapping[bytes, int] = MappingProxyType({b"{": 72, b"[": 64, b'"': 28, b",": 32, b":": 150})
_MOST = 150 * 1024 * 1024
# Text this short can do no harm.
_SHORT = 1024 * 1024


def refuse_heavy_json(where: str, text: bytes) -> None:
    """Raise `CheckpointFormatError` where parsing `text` would take far more memory than it has.

    A safetensors header of 100,000 arrays passes; one of millions of empty lists does not.
    """
    if len(text) <= _SHORT:
        return
    cost = sum(bytes_each * text.count(mark) for mark, bytes_each in _COST.items())
    if cost > _MOST:
        raise CheckpointFormatError(
            f"{where} is damaged or hostile: its {len(text)} bytes of JSON would take about "
            f"{cost // 2**20} MB of memory."
        )
