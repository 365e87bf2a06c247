"""Arrays of a trajectory that are no parameters because they never change.

Rotary tables, masks and caches are known by name where a checkpoint is opened. Names that could be
a trained array's or a table's are decided here by their bits: what is the same at the first, the
middle and the last step is a constant. Names that only trained arrays have (`weight`, `kernel`,
`scale`, `bias`, …) are never decided so, since norms of an untrained or frozen model stand still.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from saturation.checkpoints.base import LeftOut, Parameter

if TYPE_CHECKING:
    from saturation.trajectory.trajectory import Trajectory

_TRAINED = re.compile(r"weights?|kernel|scale|bias|(rel_)?embedding|gamma|beta|value")
_TABLE_LEAF = re.compile(
    r"pe|pos(ition(al)?)?_?(enc|emb|table)\w*|(sin|cos)|\w*_(sin|cos)"
    r"|\w*(sinusoid|freq|cache|mask|buffer|slope|alibi|rope|rotary|const|table|window|filter"
    r"|mean|std|range|grid|indices)\w*",
    re.IGNORECASE,
)
_TABLE_MODULE = re.compile(
    r"\w*(sinusoid|buffer|rope|rotary|alibi|pos(ition(al)?)?_enc)\w*", re.IGNORECASE
)
_FEWEST_STEPS = 2


def may_be_constant(name: str) -> bool:
    """Say whether an array's bits decide that it is no parameter.

    >>> may_be_constant("decoder/pos_encoder/pe"), may_be_constant("encoder/encoder_norm/scale")
    (True, False)
    """
    *modules, leaf = name.split("/")
    if _TRAINED.fullmatch(leaf):
        return any(map(_TABLE_MODULE.fullmatch, modules[-1:]))
    return bool(_TABLE_LEAF.fullmatch(leaf)) or any(map(_TABLE_MODULE.fullmatch, modules))


def constants(trajectory: Trajectory, parameters: Mapping[str, Parameter]) -> list[LeftOut]:
    """Return those of the parameters that have the same bits at the first, middle and last step.

    Args:
      trajectory: the checkpoints; of a single one nothing can be said.
      parameters: the parameters that they share.
    """
    steps = trajectory.steps
    if len(steps) < _FEWEST_STEPS:
        return []
    looked = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    return [
        LeftOut(name, f"its bits are the same at steps {', '.join(map(str, looked))}")
        for name in parameters
        if may_be_constant(name) and _same_bits(trajectory, looked, name)
    ]


def _same_bits(trajectory: Trajectory, steps: list[int], name: str) -> bool:
    checkpoints = [trajectory[step] for step in steps]
    if any(name not in one.parameters for one in checkpoints):
        return False
    if len({(one.parameters[name].shape, one.parameters[name].dtype) for one in checkpoints}) > 1:
        return False
    first, *others = (one.read(name).tobytes() for one in checkpoints)
    return all(other == first for other in others)
