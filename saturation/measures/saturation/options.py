"""What a network is compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Lt

from saturation.config.options import Count, Option, Options, comma_separated
from saturation.errors import MeasureError
from saturation.models.base import LIMITS


@dataclass(frozen=True)
class SaturationOptions(Options):
    """The limits and the finite c, which every other measure that scales a network takes too.

    Raises:
      MeasureError: a name is none of `LIMITS`, or there is none.
    """

    limits: Annotated[
        tuple[str, ...],
        Option(
            "What `saturation` compares with; what is left out costs nothing, and its metrics are "
            "absent.",
            "NAME[,NAME…]",
            comma_separated,
        ),
    ] = LIMITS
    scale: Annotated[
        float, Gt(0), Lt(math.inf), Option("The finite c of f(x; cθ), beside the limits.")
    ] = 1000.0
    terms: Annotated[Count, Option("Terms of the series of the parameter limit.")] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "limits", _checked(self.limits))


OPTIONS = SaturationOptions


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    """Return what a network is to be compared with, in the order of `LIMITS`."""
    unknown = [name for name in names if name not in LIMITS]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "nothing"
        raise MeasureError(
            f"A network is compared with its limits {', '.join(LIMITS)}, not with {found}; give "
            "one or several of these."
        )
    return tuple(name for name in LIMITS if name in names)
