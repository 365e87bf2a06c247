"""Pretraining of small models by whose checkpoints the rest of the package is fed.

Text becomes tokens (`tokens`), tokens become batches (`objectives`, `data`), an optimizer of
`optimizers` moves the parameters, and `loop` writes the trajectory that `open_trajectory` reads.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saturation.training.loop import pretrain

__all__ = ["pretrain"]


def __getattr__(name: str) -> Any:
    # JAX, Flax and Orbax are imported with the loop, not with the text and token modules.
    if name not in __all__:
        raise AttributeError(f"module 'saturation.training' has no attribute {name!r}")
    return getattr(importlib.import_module("saturation.training.loop"), name)
