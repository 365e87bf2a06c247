"""The direction in which parameters move."""

from saturation.measures.direction.measure import DIRECTION as MEASURE

__all__ = ["MEASURE"]
