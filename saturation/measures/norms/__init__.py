"""Norms of parameters."""

from saturation.measures.norms.measure import NORMS as MEASURE

__all__ = ["MEASURE"]
