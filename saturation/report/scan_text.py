"""Whether heads scan and snap, in words: the steps at which they stop, and a table of the kinds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saturation.report.series import HEAD_KINDS, RunTable, Series


def snap_steps(heads: Mapping[str, Series]) -> dict[str, int | None]:
    """Return {head: the step at which it snaps}, None for one that changes up to the last one.

    Args:
        heads: {head: its `snapped` at each step}.
    """
    found: dict[str, int | None] = {}
    for scope, series in heads.items():
        first = int(np.argmax(series.values > 0))
        stops = series.values[first] > 0 and first < len(series) - 1
        found[scope] = int(series.steps[first]) if stops else None
    return found


def scan_table(run: RunTable) -> list[str]:
    """Return the lines of a table, a kind of attention a line; empty where nothing was measured."""
    rows = [_row(run, kind, pattern) for kind, pattern in HEAD_KINDS.items()]
    if not any(rows):
        return []
    head = _line("mean of heads", "entropy (uniform)", "on distinct keys (uniform)", "stopped")
    return [head, *filter(None, rows)]


def _line(kind: str, entropy: str, distinct: str, stopped: str) -> str:
    return f"{kind:<23}{entropy:<26}{distinct:<28}{stopped}"


def _row(run: RunTable, kind: str, pattern: str) -> str:
    stops = snap_steps(run.matching("snapped", pattern))
    entropy = _first_and_last(run, "attention_entropy", pattern)
    distinct = _first_and_last(run, "mass_distinct", pattern)
    if not stops or entropy is None or distinct is None:
        return ""
    uniform = [
        np.mean([series.values[-1] for series in run.matching(metric, pattern).values()])
        for metric in ("uniform_entropy", "uniform_distinct")
    ]
    nats = f"{entropy[0]:.2f} to {entropy[1]:.2f} nats ({uniform[0]:.2f})"
    share = f"{distinct[0]:.1%} to {distinct[1]:.1%} ({uniform[1]:.1%})"
    known = [step for step in stops.values() if step is not None]
    when = f", median step {np.median(known):,.0f}" if known else ""
    return _line(kind, nats, share, f"{len(known)} of {len(stops)}{when}")


def _first_and_last(run: RunTable, metric: str, pattern: str) -> tuple[float, float] | None:
    found = run.matching(metric, pattern).values()
    if not found:
        return None
    ends = np.mean([(series.values[0], series.values[-1]) for series in found], axis=0)
    return float(ends[0]), float(ends[1])


GUIDE = (
    "In scan.png each line is a head, a colour a layer. A head scans if its attention on distinct "
    "keys rises above the dashed line, which is what attention to all keys alike gives: distinct "
    "tokens tell what follows from what else might, common ones do not.",
    "It snaps, or stops, at the dot: from that checkpoint on neither where it looks nor its "
    "entropy changes by more than a tenth of what they did in all. snap.png counts such heads; × "
    "are those that went on changing up to the last checkpoint.",
)
