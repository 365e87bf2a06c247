"""How near a network is to its saturated limits."""

from saturation.measures.saturation.measure import SATURATION as MEASURE

__all__ = ["MEASURE"]
