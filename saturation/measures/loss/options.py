"""What of the tokens an encoder, or a T5, has to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from saturation.config.options import Natural, Option, Options


@dataclass(frozen=True)
class LossOptions(Options):
    """By which tokens are hidden; a decoder predicts all, from those before."""

    loss_seed: Annotated[
        Natural,
        Option(
            "By which `loss` draws the tokens that an encoder or a T5 has to predict.",
            recorded=False,
        ),
    ] = 0


OPTIONS = LossOptions
