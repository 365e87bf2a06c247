"""How saturated a network is and what its heads attend to, in words: a table and how to read it."""

from __future__ import annotations

import numpy as np

from saturation.report.saturation_figures import COSINES, LAYER, ROLES, roles
from saturation.report.series import HEAD_KINDS, RunTable, on_steps


def saturation_table(run: RunTable) -> list[str]:
    """Return the lines of a table: layers by limit, heads by kind; empty without either."""
    layers = [row for metric, name in COSINES.items() for row in _layers_rows(run, metric, name)]
    heads = [_heads_row(run, kind, pattern) for kind, pattern in HEAD_KINDS.items()]
    titles = "mean over layers of the cosine to", "argmax-like heads (n < 1.5) of"
    found = []
    for title, rows in zip(titles, (layers, heads), strict=True):
        if any(rows):
            found += [_line(title, "first", "last"), *filter(None, rows)]
    return found


def _line(name: str, first: str, last: str) -> str:
    return f"{name:<36}{first:>14}{last:>14}"


def _layers_rows(run: RunTable, metric: str, name: str) -> list[str]:
    """Return the mean over layers, and the layer that is farthest from the limit at the end."""
    found = run.matching(metric, LAYER)
    if not found:
        return []
    values = on_steps(list(found.values()))[1]
    means = np.nanmean(values, axis=0)
    rows = [_line(name, f"{means[0]:.3f}", f"{means[-1]:.3f}")]
    if len(found) > 1 and np.isfinite(values[:, -1]).any():
        row = int(np.nanargmin(values[:, -1]))
        first, last = values[row, [0, -1]]
        rows.append(_line(f"  worst: {list(found)[row]}", f"{first:.3f}", f"{last:.3f}"))
    return rows


def _heads_row(run: RunTable, kind: str, pattern: str) -> str:
    found = roles(run, pattern)
    if found is None:
        return ""
    _, by_role, count = found
    argmax_like = by_role[ROLES[0]]
    first, last = (f"{round(share * count)} of {count}" for share in argmax_like[[0, -1]])
    return _line(kind, first, last)


GUIDE = (
    "In saturation.png each row or curve is the residual stream after one layer, beside what it "
    "would be in a limit: every attention at temperature 0 (only the best keys count), or all "
    "parameters grown without bound. 1 is a layer that is there already.",
    "In heads.png n is the number of keys that tie for the highest score, averaged over queries: 1 "
    "for a head that attends to one place, near all keys for one that averages.",
    "In homogeneity.png all parameters are multiplied by c. A curve that falls says from which c "
    "on the limit describes the layer; below, a level line at 3 (5 where the feed-forward is "
    "gated) says that the layer grows as that power of c.",
)
