"""Models as Flax modules: T5 in its three published forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saturation._package import on_first_use

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


__getattr__, __dir__ = on_first_use(__name__, _HOME)
