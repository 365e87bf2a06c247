"""Influence of training examples (Pruthi et al. 2020)."""
