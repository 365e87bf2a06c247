"""Measure what pretraining does to a transformer's parameters and attention, from its checkpoints.

The names below are the public surface; each is imported from its module on first use, so that
`import saturation` costs nothing.

>>> import saturation
>>> "fit_growth" in dir(saturation)
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saturation._package import __version__ as __version__
from saturation._package import on_first_use

if TYPE_CHECKING:
    from saturation.attention import tempered_softmax
    from saturation.growth.fit import fit_growth
    from saturation.limit import saturate, scale_parameters
    from saturation.results.table import load_results, load_vectors
    from saturation.runs.measure import measure
    from saturation.runs.settings import ActivationSettings
    from saturation.trajectory.trajectory import open_trajectory

_HOME = {
    "open_trajectory": "saturation.trajectory.trajectory",
    "measure": "saturation.runs.measure",
    "ActivationSettings": "saturation.runs.settings",
    "load_results": "saturation.results.table",
    "load_vectors": "saturation.results.table",
    "fit_growth": "saturation.growth.fit",
    "tempered_softmax": "saturation.attention",
    "saturate": "saturation.limit",
    "scale_parameters": "saturation.limit",
}
__all__ = [
    "ActivationSettings",
    "fit_growth",
    "load_results",
    "load_vectors",
    "measure",
    "open_trajectory",
    "saturate",
    "scale_parameters",
    "tempered_softmax",
]


__getattr__, __dir__ = on_first_use(__name__, _HOME)
