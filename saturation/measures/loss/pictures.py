"""The loss through training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from saturation.plots.colours import BLUE
from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.plots.series import RunTable

READS = (
    "Loss: mean over the predicted tokens of −ln p, in nats; e^loss is the perplexity. A decoder "
    "predicts each next token, an encoder hidden tokens, a T5 spans that are cut out."
)
AXIS = Axis("loss, nats")


def pictures(run: RunTable) -> Iterator[Picture]:
    """Yield the loss by step, where there is one."""
    found = run.series("loss", "total")
    if found is None:
        return
    errors = run.series("loss_stderr", "total")
    band: dict[str, Any] = {}
    if errors is not None:
        error = np.array([errors.at(int(step)) for step in found.steps])
        band = {"low": found.values - error, "high": found.values + error}
    line = Line(found.steps, found.values, colour=BLUE, symbol="circle", **band)
    says = "Band: standard error over sequences." if band else ""
    panel = Panel("Loss", [line], AXIS, says=says, wide=True)
    yield Picture("loss", "Loss", "Loss", READS, [[panel]], on_tokens=True)


def compared(run: RunTable) -> Iterator[tuple[str, Line, Axis, str]]:
    """Yield (title, line, axis, what it is) of the number by which runs are compared."""
    found = run.series("loss", "total")
    if found is not None:
        yield "Loss", Line(found.steps, found.values), AXIS, "`loss`, mean over predicted tokens."
