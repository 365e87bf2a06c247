"""What is said of heads: their terms, how many have which role, how to read their figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from saturation.measures.words import SHORT, Term, Words
from saturation.plots.panels import Table
from saturation.plots.series import HEAD_KINDS, RunTable, on_steps

ARGMAX_LIKE = 1.5  # positions: nearer to one key than to two
MEAN_LIKE = 0.5  # of the allowed keys: nearer to all of them than to none
ROLES = (f"argmax-like: n < {ARGMAX_LIKE}", "mean-like: n > half of allowed keys")

TERMS = (
    Term(
        "positions_mean",
        "mean over queries of n, the keys attended at τ = 0",
        "1 for an argmax-like (local) head, all keys for a mean-like (global) one.",
        SHORT,
    ),
    Term(
        "positions_mean_limit",
        "mean of n in the exact parameter limit",
        "The same where all parameters grow without bound; Merrill et al. count at c = 1000.",
        SHORT,
    ),
    Term(
        "undecided",
        "mean number of keys of a query neither told from the largest score nor equal to it",
        "Above 0, n may be too small; 0 where scores are compared to the bit.",
        "ours",
    ),
    Term(
        "ties_reliable",
        "1 where scores were computed in float64, else 0",
        "0: equal tokens may have unequal scores, and n may be too small.",
        "ours",
    ),
    Term("positions_std", "standard deviation of n", "Whether a head does both.", SHORT),
    Term("split_probability", "P(n > 1)", "How often keys share the maximum.", SHORT),
    Term(
        "positions_fraction",
        "mean of n/allowed keys",
        "Positions attended, comparable between lengths.",
        "ours",
    ),
    Term(
        "distance_mean",
        "mean of key − query over attended keys",
        "Where a head of self-attention looks: behind (negative) or ahead.",
        "ours",
    ),
    Term(
        "distance_abs",
        "mean of |key − query| over attended keys",
        "How far a head of self-attention looks.",
        "ours",
    ),
    Term(
        "entropy",
        "mean of −Σ w ln w at τ = 1, in nats",
        "How soft a head is as it runs.",
        "ours",
    ),
)


def shares(
    positions: Float[np.ndarray, "heads steps"], fraction: Float[np.ndarray, "heads steps"]
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Return the shares of heads that are argmax-like and mean-like at each step.

    Argmax-like: fewer than 1.5 positions on average. Mean-like: more than half of those allowed,
    and not argmax-like, as a head of very short sequences may be.
    """
    measured = np.maximum(np.isfinite(positions).sum(axis=0), 1)
    argmax_like = positions < ARGMAX_LIKE
    mean_like = (fraction > MEAN_LIKE) & ~argmax_like
    return argmax_like.sum(axis=0) / measured, mean_like.sum(axis=0) / measured


def roles(
    run: RunTable, pattern: str = r".*/head_\d+"
) -> tuple[np.ndarray, dict[str, Float[np.ndarray, " steps"]], int] | None:
    """Return the steps, {role: its share of the heads}, and how many heads there are.

    None where that was not measured of the heads of this pattern.
    """
    positions = run.matching("positions_mean", pattern)
    fractions = run.matching("positions_fraction", pattern)
    heads = [scope for scope in positions if scope in fractions]
    if not heads:
        return None
    steps, n = on_steps([positions[scope] for scope in heads])
    _, fraction = on_steps([fractions[scope] for scope in heads])
    return steps, dict(zip(ROLES, shares(n, fraction), strict=True)), len(heads)


def tables(run: RunTable) -> Sequence[Table]:
    """Return how many heads of each kind are argmax-like at the first and the last checkpoint."""
    rows = []
    for kind, pattern in HEAD_KINDS.items():
        found = roles(run, pattern)
        if found is not None:
            _, by_role, count = found
            ends = by_role[ROLES[0]][[0, -1]]
            rows.append((kind, *(f"{round(share * count)} of {count}" for share in ends)))
    return [Table(("argmax-like heads (n < 1.5) of", "first", "last"), rows)] if rows else []


def guide(run: RunTable) -> Sequence[str]:
    """Return how to read heads.png."""
    if not run.matching("positions_mean", r".*/head_\d+"):
        return ()
    return (
        "In heads.png n is the number of keys that tie for the highest score, averaged over "
        "queries: 1 for a head that attends to one place, near all keys for one that averages.",
    )


WORDS = Words(
    terms=TERMS,
    figures={
        "heads": "positions attended by heads (metrics positions_mean, positions_fraction, entropy)"
    },
    tables=tables,
    guide=guide,
)
