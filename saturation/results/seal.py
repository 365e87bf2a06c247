"""What a part of a run says it is, and what `run.json` holds: written with each, checked when read.

A part is known by its name, and names can be given to anything: a part of another run, a copy, half
a table. So its Parquet metadata repeat what it is of (measure, key, steps, the checkpoints'
fingerprints, tokens) and a digest of its values, which no flipped bit survives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saturation.measures import MEASURES
from saturation.measures.base import ActivationMeasure
from saturation.results.settings import comparable

LAYOUT = 2  # of run folders; those of layout 1 have no seals
SEAL = "seal"


def seal_of(described: Mapping[str, Any]) -> str:
    """Return the digest of `run.json` without its own seal."""
    content = {key: value for key, value in described.items() if key != SEAL}
    return _hash(content)


def part_seal(
    described: Mapping[str, Any],
    measure: str,
    key: str,
    span: tuple[int, int],
    columns: Mapping[str, Any],
) -> dict[str, str]:
    """Return what the metadata of a part say.

    Args:
      described: `run.json`.
      measure, key: its names.
      span: first and last step.
      columns: its values, arrays or sequences of one length.
    """
    return {
        "measure": measure,
        "key": key,
        "version": str(MEASURES[measure].version),
        "steps": f"{span[0]}-{span[1]}",
        "origin": _origin(described, measure, span),
        "values": values_digest(columns),
    }


def values_digest(columns: Mapping[str, Any]) -> str:
    """Return a digest of columns' names and values: numbers to the bit, texts, and vectors."""
    digest = hashlib.blake2b(digest_size=16)
    for name, column in columns.items():
        digest.update(f"{name} {len(column)}\n".encode())
        for piece in _pieces(column):
            digest.update(piece)
    return digest.hexdigest()


def _origin(described: Mapping[str, Any], measure: str, span: tuple[int, int]) -> str:
    """A digest of what a part's numbers were computed from."""
    identity = described.get("identity", {})
    steps = [step for step in described["steps"] if span[0] <= step <= span[1]]
    of: list[Any] = [[step, identity.get(str(step))] for step in steps]
    found = MEASURES[measure]
    if isinstance(found, ActivationMeasure):
        of.append(comparable(described.get("activations", {})))
        of.append(comparable(described.get("corpus", {})) if found.needs_corpus else {})
    return _hash(of)


def _pieces(column: Any) -> list[bytes]:
    if len(column) and isinstance(column[0], np.ndarray | list):
        vectors = [np.ascontiguousarray(one, np.float64) for one in column]
        return [f"{len(one)} ".encode() + one.tobytes() for one in vectors]
    values = np.asarray(column)
    if values.dtype.kind in "OUS":
        texts: Sequence[Any] = values.tolist()
        return ["\0".join(map(str, texts)).encode()]
    wide = values.astype(np.int64 if values.dtype.kind in "iub" else np.float64, copy=False)
    return [np.ascontiguousarray(wide).tobytes()]


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
