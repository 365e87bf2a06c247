"""Whether heads scan and snap, in words: the steps at which they stop, and a table of the kinds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saturation.report.series import HEAD_KINDS, RunTable


def snap_steps(run: RunTable, pattern: str) -> dict[str, float | None]:
    """Return {head: the step at which it snaps}, None for one that is not called.

    Of heads where there are checkpoints enough to call any: where `snapped` is a number.
    """
    found = run.matching("snap_step", pattern)
    return {
        scope: float(found[scope].values[0]) if scope in found else None
        for scope in run.matching("snapped", pattern)
    }


def scan_table(run: RunTable) -> list[str]:
    """Return the lines of a table, a kind of attention a line; empty where nothing was measured."""
    rows = [_row(run, kind, pattern) for kind, pattern in HEAD_KINDS.items()]
    if not any(rows):
        return []
    head = _line("mean of heads", "entropy (uniform)", "on distinct keys (uniform)", "snapped")
    return [head, *filter(None, rows)]


def _line(kind: str, entropy: str, distinct: str, stopped: str) -> str:
    return f"{kind:<23}{entropy:<26}{distinct:<28}{stopped}"


def _row(run: RunTable, kind: str, pattern: str) -> str:
    entropy = _first_and_last(run, "attention_entropy", pattern)
    distinct = _first_and_last(run, "mass_distinct", pattern)
    if entropy is None or distinct is None:
        return ""
    uniform = [
        np.mean([series.values[-1] for series in run.matching(metric, pattern).values()])
        for metric in ("uniform_entropy", "uniform_distinct")
    ]
    nats = f"{entropy[0]:.2f} to {entropy[1]:.2f} nats ({uniform[0]:.2f})"
    share = f"{distinct[0]:.1%} to {distinct[1]:.1%} ({uniform[1]:.1%})"
    return _line(kind, nats, share, _snapped(snap_steps(run, pattern)))


def _snapped(steps: Mapping[str, float | None]) -> str:
    if not steps:
        return "too few steps"
    known = [step for step in steps.values() if step is not None]
    when = f", median step {np.median(known):,.0f}" if known else ""
    return f"{len(known)} of {len(steps)}{when}"


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
    "A head has snapped, at the dot, if it moved at least three times as fast for a third of the "
    "run as it does at the end, by steps of ln t, and its speeds in random order seldom show that. "
    "snap.png counts such heads; × are those that are not called, which is no proof that they "
    "move: a late stop, or noise, hides a stop. Where the learning rate decays to 0 every head "
    "stops. It takes 16 checkpoints after step 0 to call any.",
)
