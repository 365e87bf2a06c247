"""A measurement: what is left to compute, and the one driver that computes it."""
