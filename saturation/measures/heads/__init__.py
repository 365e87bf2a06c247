"""To how many positions each head attends."""

from saturation.measures.heads.measure import HEADS as MEASURE

__all__ = ["MEASURE"]
