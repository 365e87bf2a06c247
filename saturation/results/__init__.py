"""A run on disk: its folder, its parts, and the tables that are made of them."""

from saturation.results.table import load_results, load_vectors

__all__ = ["load_results", "load_vectors"]
