"""How well a model predicts tokens: its loss, its standard error, its perplexity."""

from saturation.measures.loss.measure import LOSS as MEASURE

__all__ = ["MEASURE"]
