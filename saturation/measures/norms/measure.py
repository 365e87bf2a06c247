"""Norms of the parameters (MEASURES §2; Merrill et al. 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np

from saturation.measures.base import ArrayInfo, Block, Statistics, WeightMeasure


def terms(block: Block) -> dict[str, Any]:
    """Return the elementwise terms of Σθ², max|θ| and the count of NaN and ±∞."""
    size = abs(block.stored)
    finite = size < np.asarray(np.inf, size.dtype)  # False for NaN too
    return {"sum_squares": block.now * block.now, "max_abs": size, "nonfinite": ~finite}


def metrics(statistics: Statistics, arrays: ArrayInfo) -> dict[str, np.ndarray]:
    """Return the norms of one scope.

    l2 = ‖θ‖₂; rms = ‖θ‖₂/√size; l2_fan_in = √Σ_W ‖W‖²/fan_in(W) over kernels; min_rms =
    min_W ‖W‖_F/√size over matrices; max_abs = max |θ|; nonfinite = the count of NaN and ±∞ (where
    there are any, the others are not finite).
    """
    sum_squares = statistics["sum_squares"]
    total = sum_squares.sum(axis=0)
    values = {
        "l2": np.sqrt(total),
        "rms": np.sqrt(total / arrays.size.sum()),
        "max_abs": statistics["max_abs"].max(axis=0),
        "nonfinite": statistics["nonfinite"].sum(axis=0),
    }
    kernels = ~np.isnan(arrays.fan_in[:, 0])
    if kernels.any():
        scaled = sum_squares[kernels] / arrays.fan_in[kernels]
        values["l2_fan_in"] = np.sqrt(scaled.sum(axis=0))
    matrices = arrays.rank[:, 0] >= 2
    if matrices.any():
        mean_squares = sum_squares[matrices] / arrays.size[matrices]
        values["min_rms"] = np.sqrt(mean_squares.min(axis=0))
    return values


NORMS = WeightMeasure(
    name="norms",
    definition="l2 = ‖θ‖₂, rms = ‖θ‖₂/√size, l2_fan_in, min_rms, max_abs and nonfinite values",
    source="Merrill et al. 2021 (arXiv 2010.09697), §3",
    statistics={"sum_squares": "sum", "max_abs": "max", "nonfinite": "sum"},
    terms=terms,
    metrics=metrics,
)
