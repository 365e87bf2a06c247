"""A trajectory: the checkpoints of one pretraining, in the order of their steps."""

from saturation.trajectory.trajectory import Trajectory, open_trajectory

__all__ = ["Trajectory", "open_trajectory"]
