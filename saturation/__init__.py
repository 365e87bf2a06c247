"""Measure what pretraining does to a transformer's parameters and attention, from its checkpoints.

The names below are the public surface; each is imported from its module on first use, so that
`import saturation` costs nothing.

>>> import saturation
>>> "fit_growth" in dir(saturation)
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from saturation.attention import tempered_softmax
    from saturation.growth import fit_growth
    from saturation.limit import saturate, scale_parameters
    from saturation.results import load_results
    from saturation.run import measure
    from saturation.trajectory import open_trajectory

_HOME = {
    "open_trajectory": "saturation.trajectory",
    "measure": "saturation.run",
    "load_results": "saturation.results",
    "fit_growth": "saturation.growth",
    "tempered_softmax": "saturation.attention",
    "saturate": "saturation.limit",
    "scale_parameters": "saturation.limit",
}
__all__ = [
    "fit_growth",
    "load_results",
    "measure",
    "open_trajectory",
    "saturate",
    "scale_parameters",
    "tempered_softmax",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'saturation' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
