"""How alike tokens grow with depth."""

from saturation.measures.smoothing.measure import SMOOTHING as MEASURE

__all__ = ["MEASURE"]
