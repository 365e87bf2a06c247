"""Studies: the claims of papers beside small simulations, and whether the two agree."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from saturation.errors import ArgumentError

if TYPE_CHECKING:
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


def about(name: str) -> tuple[str, str]:
    """Return title and paper of a study: literals in its file, which is read and not run.

    Raises:
        ArgumentError: there is no such study, or its file does not say them as literals.
    """
    if name not in STUDIES:
        raise ArgumentError(f"There is no study {name!r}; there are: {', '.join(STUDIES)}.")
    found = importlib.util.find_spec(STUDIES[name])
    if found is None or found.origin is None:
        raise ArgumentError(f"The study {name!r} is not installed: {STUDIES[name]} is missing.")
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = (call for call in calls if getattr(call.func, "id", None) == "Study")
    said = {one.arg: one.value for call in made for one in call.keywords}
    try:
        return ast.literal_eval(said["title"]), ast.literal_eval(said["paper"])
    except (KeyError, ValueError) as error:
        raise ArgumentError(
            f"{found.origin}: a Study with title and paper as texts was expected."
        ) from error


def demo(name: str, out: str | None = None) -> tuple[str, bool, list[Path]]:
    """Run a planted example; see `studies.oversmoothing.demo`, the one there is.

    Raises:
        ArgumentError: there is no such demo.
    """
    if name != "oversmoothing":
        raise ArgumentError(f"There is no demo {name!r}; there are: oversmoothing.")
    return importlib.import_module(STUDIES[name]).demo(out)
