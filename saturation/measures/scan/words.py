"""What is said of scan and snap: its terms, a table of the kinds, how to read its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from saturation.measures.words import Term, Words
from saturation.plots.panels import Table
from saturation.plots.series import HEAD_KINDS, RunTable

TERMS = (
    Term(
        "attention_entropy",
        "mean of −Σ w ln w at τ = 1, in nats",
        "How soft a head is as it runs; compare with uniform_entropy.",
        "ours",
    ),
    Term(
        "uniform_entropy",
        "mean of ln(allowed keys)",
        "The entropy of a head that attends to all allowed keys alike.",
        "ours",
    ),
    Term(
        "mass_distinct",
        "mean of Σ w over distinct keys",
        "Attention on tokens that tell what follows from what else might.",
        "ours",
    ),
    Term(
        "mass_common",
        "mean of Σ w over common keys",
        "Attention on tokens that say nothing of what follows.",
        "ours",
    ),
    Term(
        "mass_unclassified",
        "mean of Σ w over the other keys",
        "Attention on tokens that the corpus has in one sequence at most.",
        "ours",
    ),
    Term(
        "uniform_distinct",
        "mean share of allowed keys that are distinct",
        "mass_distinct of a head that attends to all allowed keys alike.",
        "ours",
    ),
    Term(
        "uniform_common",
        "mean share of allowed keys that are common",
        "mass_common of a head that attends to all allowed keys alike.",
        "ours",
    ),
    Term(
        "distinct_excess",
        "mass_distinct − uniform_distinct",
        "Above 0 where a head prefers distinct tokens; a rise is scanning.",
        "ours, after Tian et al. 2023",
    ),
    Term(
        "distance_to_last",
        "½ Σ|p_t − p_last|, p the mean attention by kind and distance of the key",
        "The share of a head's attention that lies elsewhere than at the last checkpoint.",
        "ours",
    ),
    Term(
        "speed",
        "‖p_t′ − p_t‖₂/ln(t′/t), p as in distance_to_last",
        "How fast a head's attention moves per unit of ln t between neighbouring checkpoints.",
        "ours",
    ),
    Term(
        "snapped",
        "1 from snap_step on if snap_ratio ≥ 3 and snap_p_value ≤ 0.05, else 0",
        "Whether a head has moved early and come to rest; NaN below 15 intervals. A head that is "
        "not called may stand still all the same: a late stop, or noise, hides it.",
        "ours, after Tian et al. 2023",
    ),
    Term(
        "snap_ratio",
        "largest rms speed over a third of the intervals, before the last third, over the last's",
        "How much slower the head moves at the end than at its fastest; of the whole run.",
        "ours",
    ),
    Term(
        "snap_p_value",
        "(1 + orders of the speeds with as large a snap_ratio)/200, of 199 random orders",
        "How easily the same speeds in another order show as large a fall; of the whole run.",
        "ours",
    ),
    Term(
        "snap_step",
        "√(t t′) of the two checkpoints between which speed is largest",
        "When a head that has snapped moved fastest; of the whole run.",
        "ours",
    ),
)


def snap_steps(run: RunTable, pattern: str) -> dict[str, float | None]:
    """Return {head: the step at which it snaps}, None for one that is not called.

    Of heads where there are checkpoints enough to call any: where `snapped` is a number.
    """
    found = run.matching("snap_step", pattern)
    return {
        scope: float(found[scope].values[0]) if scope in found else None
        for scope in run.matching("snapped", pattern)
    }


def tables(run: RunTable) -> Sequence[Table]:
    """Return entropy, attention on distinct keys and how many heads snapped, by kind."""
    rows = [_row(run, kind, pattern) for kind, pattern in HEAD_KINDS.items()]
    columns = ("mean of heads", "entropy (uniform)", "on distinct keys (uniform)", "snapped")
    return [Table(columns, [row for row in rows if row])] if any(rows) else []


def guide(run: RunTable) -> Sequence[str]:
    """Return how to read scan.png and snap.png."""
    if not run.matching("mass_distinct", ".*"):
        return ()
    return (
        "In scan.png each line is a head, a colour a layer. A head scans if its attention on "
        "distinct keys rises above the dashed line, which is what attention to all keys alike "
        "gives: distinct tokens tell what follows from what else might, common ones do not.",
        "A head has snapped, at the dot, if it moved at least three times as fast for a third of "
        "the run as it does at the end, by steps of ln t, and its speeds in random order seldom "
        "show that. snap.png counts such heads; × are those that are not called, which is no proof "
        "that they move: a late stop, or noise, hides a stop. Where the learning rate decays to 0 "
        "every head stops. It takes 16 checkpoints after step 0 to call any.",
    )


def _row(run: RunTable, kind: str, pattern: str) -> tuple[str, ...]:
    entropy = _first_and_last(run, "attention_entropy", pattern)
    distinct = _first_and_last(run, "mass_distinct", pattern)
    if entropy is None or distinct is None:
        return ()
    uniform = [
        np.mean([series.values[-1] for series in run.matching(metric, pattern).values()])
        for metric in ("uniform_entropy", "uniform_distinct")
    ]
    nats = f"{entropy[0]:.2f} to {entropy[1]:.2f} nats ({uniform[0]:.2f})"
    share = f"{distinct[0]:.1%} to {distinct[1]:.1%} ({uniform[1]:.1%})"
    return kind, nats, share, _snapped(snap_steps(run, pattern))


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


WORDS = Words(
    terms=TERMS,
    figures={
        "scan": "attention on common and distinct keys (measure scan: metrics such as "
        "mass_distinct)",
        "snap": "heads at 16 checkpoints after step 0 (measure scan: metric snapped)",
    },
    tables=tables,
    guide=guide,
)
