"""How much of a layer's iteration is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from saturation.config.options import Natural, Option, Options


@dataclass(frozen=True)
class SmoothingOptions(Options):
    """Of how many sequences, the first that have two tokens or more, the operators are iterated."""

    joint_sequences: Annotated[
        Natural | None,
        Option(
            "Of how many `smoothing` iterates each layer's own operator 400 times; by default as "
            "many as cost little, none of a T5-small or larger."
        ),
    ] = None


OPTIONS = SmoothingOptions
