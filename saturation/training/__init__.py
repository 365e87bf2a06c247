"""Pretraining of small models by whose checkpoints the rest of the package is fed.

Text becomes tokens (`text.vocabulary`), tokens become batches (`data`, by `text.span_corruption`),
an optimizer of `optimizers` moves the parameters, and `loop` writes the trajectory that
`open_trajectory` reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saturation._package import on_first_use

if TYPE_CHECKING:
    from saturation.training.loop import pretrain

__all__ = ["pretrain"]

# JAX, Flax and Orbax are imported with the loop, not with the text and token modules.
_HOME = {"pretrain": "saturation.training.loop"}


__getattr__, __dir__ = on_first_use(__name__, _HOME)
