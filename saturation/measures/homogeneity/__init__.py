"""How nearly a network scales with its parameters."""

from saturation.measures.homogeneity.measure import HOMOGENEITY as MEASURE
from saturation.measures.homogeneity.measure import homogeneity

__all__ = ["MEASURE", "homogeneity"]
