"""Eigenvalues of every head's value-output map."""

from saturation.measures.spectrum.measure import SPECTRUM as MEASURE
from saturation.measures.spectrum.measure import (
    asymmetry,
    nonzero_eigenvalues,
    regime,
    sharpens_below,
)

__all__ = ["MEASURE", "asymmetry", "nonzero_eigenvalues", "regime", "sharpens_below"]
