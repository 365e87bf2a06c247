"""Scan and Snap in a trained model: attention to common and to distinct tokens."""

from saturation.measures.scan.measure import SCAN as MEASURE

__all__ = ["MEASURE"]
