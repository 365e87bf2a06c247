"""Studies: the claims of papers beside small simulations, and whether the two agree."""

from __future__ import annotations

import importlib
from pathlib import Path

from saturation.errors import ArgumentError
from saturation.studies.base import Study

STUDIES = {  # {name: the module whose STUDY it is}
    "scan-snap": "saturation.studies.scan_snap.study",
    "oversmoothing": "saturation.studies.oversmoothing",
}


def find_study(name: str) -> Study:
    """Import a study.

    Raises:
        ArgumentError: there is none of that name.
    """
    if name not in STUDIES:
        raise ArgumentError(f"There is no study {name!r}; there are: {', '.join(STUDIES)}.")
    return importlib.import_module(STUDIES[name]).STUDY


def demo(name: str, out: str | None = None) -> tuple[str, bool, list[Path]]:
    """Run a planted example; see `studies.oversmoothing.demo`, the one there is.

    Raises:
        ArgumentError: there is no such demo.
    """
    if name != "oversmoothing":
        raise ArgumentError(f"There is no demo {name!r}; there are: oversmoothing.")
    return importlib.import_module(STUDIES[name]).demo(out)
