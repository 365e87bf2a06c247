"""Models as Flax modules: T5 in its three published forms."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saturation.models.config import T5Config
    from saturation.models.t5 import T5, valid_decoder_tokens, valid_encoder_tokens

__all__ = ["T5", "T5Config", "valid_decoder_tokens", "valid_encoder_tokens"]

_HOME = {
    "T5": "saturation.models.t5",
    "T5Config": "saturation.models.config",
    "valid_decoder_tokens": "saturation.models.t5",
    "valid_encoder_tokens": "saturation.models.t5",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that a configuration can be read without JAX."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
