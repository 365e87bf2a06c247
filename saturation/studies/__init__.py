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
    "in-context-gd": "saturation.studies.in_context_gd",
    "looped-transformers": "saturation.studies.looped_transformers",
    "benign-overfitting": "saturation.studies.benign_overfitting",
    "low-rank-sparse": "saturation.studies.low_rank_sparse",
    "regression-mixtures": "saturation.studies.regression_mixtures",
    "agentic-transformer": "saturation.studies.agentic_transformer",
    "adversarial-bias": "saturation.studies.adversarial_bias",
    "tracin": "saturation.studies.tracin.study",
    "leader-gd": "saturation.studies.leader_gd",
    "frequency-principle": "saturation.studies.frequency_principle",
    "learned-initialisation": "saturation.studies.learned_initialisation",
    "energy-view": "saturation.studies.energy_view",
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
    """Return title and paper of a study.

    Where they are literals in its file, as they should be, that is read and not run: a study may
    take seconds to import.

    Raises:
        ArgumentError: there is no such study.
    """
    found = importlib.util.find_spec(STUDIES[name]) if name in STUDIES else None
    if found is not None and found.origin is not None:
        tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            said = dict(zip(("name", "title", "paper"), call.args, strict=False))
            said |= {str(one.arg): one.value for one in call.keywords}
            texts = [said.get(key) for key in ("title", "paper")]
            literal = [one.value for one in texts if isinstance(one, ast.Constant)]
            if getattr(call.func, "id", None) == "Study" and len(literal) == 2:
                return str(literal[0]), str(literal[1])
    study = find_study(name)
    return study.title, study.paper


def demo(name: str, out: str | None = None) -> tuple[str, bool, list[Path]]:
    """Run a planted example; see `studies.oversmoothing.demo`, the one there is.

    Raises:
        ArgumentError: there is no such demo.
    """
    if name != "oversmoothing":
        raise ArgumentError(f"There is no demo {name!r}; there are: oversmoothing.")
    return importlib.import_module(STUDIES[name]).demo(out)
