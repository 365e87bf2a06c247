"""Settings of a measurement as `run.json` records them, and which of them numbers depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of activations by which numbers differ, without levels.

    The same ids may come from files of other names: their hash says which they are.
    """
    return {key: said for key, said in flat(settings).items() if not names_a_file(key)}


def names_a_file(key: str) -> bool:
    """Whether a setting says where tokens come from."""
    return key == "source" or key.startswith("vocabulary")


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without levels, and hashes as short as a sentence takes.

    >>> flat({"scale": 10, "tokens": {"length": 128}})
    {'scale': 10, 'length': 128}
    """
    found: dict[str, Any] = {}
    for key, said in settings.items():
        found |= flat(said) if isinstance(said, Mapping) else {key: said}
    return {key: said[:12] if key == "sha256" else said for key, said in found.items()}
