"""Planted examples: what is predicted, what comes out, and whether the two agree."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saturation.errors import ArgumentError

DEMOS = {"oversmoothing": "saturation.demos.oversmoothing"}


@dataclass(frozen=True)
class Shown:
    """What a demo found.

    Attributes:
      text: a table of prediction, measurement and verdict, with how to read it.
      agrees: whether every prediction came true.
      rows: the same as data.
    """

    text: str
    agrees: bool
    rows: list[dict[str, Any]]


def demo(name: str, out: str | None = None) -> tuple[Shown, list[Path]]:
    """Run a planted example.

    Args:
      name: of `DEMOS`.
      out: a local folder for NAME.csv, NAME.png and NAME.pdf; nothing is written without.

    Returns:
      What was found, and the paths written.

    Raises:
      ArgumentError: there is no such demo.
      ResultsError: the folder cannot be written.
    """
    if name not in DEMOS:
        raise ArgumentError(f"There is no demo {name!r}; there are: {', '.join(DEMOS)}.")
    return importlib.import_module(DEMOS[name]).run(out)
