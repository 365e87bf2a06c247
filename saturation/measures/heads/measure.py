"""What each head attends to (MEASURES §8): exact counts in its saturated attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saturation.measures.base import ActivationMeasure, Found, Rule, Statistics
from saturation.measures.means import divide
from saturation.models.base import Needs

if TYPE_CHECKING:
    from jax import Array

    from saturation.models.outputs import (
        AttendedKeys,
        AttentionOutputs,
        AttentionWeights,
        StageOutputs,
    )

# Each is a sum over the queries that hold a token.
OF_MODEL = (
    "positions",
    "positions_squares",
    "split",
    "fraction",
    "entropy",
    "distance",
    "distance_abs",
    "undecided",
)
OF_LIMIT = ("positions_limit", "limit_queries")
STATISTICS: dict[str, Rule] = {
    **dict.fromkeys(("tokens", "distance_queries", *OF_MODEL, *OF_LIMIT), "sum"),
    "ties_reliable": "min",
}


def needs(limits: Sequence[str], scale: float) -> Needs:
    """Return the forward passes: the model in the widest float, and the limit if asked."""
    return Needs(parameter="parameter" in limits, scales=frozenset({1.0}))


def observe(outputs: StageOutputs) -> Found:
    """Return the sums of the heads of the stage's attention, {statistic: (heads,)}."""
    attention = outputs.attention
    if attention is None:
        return {}
    sums = head_sums(attention.weights, attention.attended_keys)
    if "parameter" in outputs.asked.limits:
        sums |= limit_sums(attention)
    reliable = np.full(attention.attention.num_heads, float(attention.ties_reliable))
    return {attention.heads: sums | {"ties_reliable": reliable}}


def limit_sums(attention: AttentionOutputs) -> dict[str, Array]:
    """Return {statistic: (heads,)} of one attention in the exact parameter limit.

    Queries whose weights have no limit are left out.
    """
    import jax.numpy as jnp

    wide, weights = jnp.result_type(float), attention.limit_weights
    counted = attention.valid[:, None, :] & weights.exists
    # The weights have degree 0, so that a key shares the largest score where its weight is not 0.
    n = (weights.leading > 0).sum(axis=-1).astype(wide)
    sums = jnp.where(counted, n, 0).sum(axis=(0, 2)), counted.sum(axis=(0, 2)).astype(wide)
    return dict(zip(OF_LIMIT, sums, strict=True))


def head_sums(attention: AttentionWeights, keys: AttendedKeys) -> dict[str, Array]:
    """Return {statistic: (heads,)} of one attention as it is, in the widest float there is."""
    import jax.numpy as jnp
    from jax.scipy.special import entr

    wide = jnp.result_type(float)
    attended = keys.attended.astype(wide)
    # 0·weight is NaN where the weight is: broken parameters must not read as heads without keys.
    n = attended.sum(axis=-1) + 0 * attention.at_temperature_one.sum(axis=-1).astype(wide)
    allowed = jnp.maximum(attention.allowed, 1).astype(wide)[:, None, :]
    values = {
        "positions": n,
        "positions_squares": n * n,
        "split": jnp.where(jnp.isnan(n), n, (n > 1).astype(wide)),
        "fraction": n / allowed,
        "entropy": entr(attention.at_temperature_one).sum(axis=-1).astype(wide),
        "undecided": keys.undecided.astype(wide),
    }
    if attention.distance is not None:
        distance = attention.distance.astype(wide)
        share = attended / jnp.maximum(n, 1)[..., None]
        values["distance"] = (share * distance).sum(axis=-1)
        values["distance_abs"] = (share * jnp.abs(distance)).sum(axis=-1)
    queries = attention.queries[:, None, :]
    sums = {name: jnp.where(queries, x, 0).sum(axis=(0, 2)) for name, x in values.items()}
    tokens = jnp.full(n.shape[1], attention.queries.sum()).astype(wide)
    nothing = jnp.zeros_like(tokens)
    distance_queries = nothing if attention.distance is None else tokens
    return {
        "tokens": tokens,
        "distance_queries": distance_queries,
        **{name: sums.get(name, nothing) for name in OF_MODEL},
    }


def metrics(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return what one head does, averaged over the queries that hold a token.

    n is the number of keys a query attends to at τ = 0: those whose score equals the maximum by the
    rule of ties (MEASURES §6), in float64; undecided is how many more a query has, on average, of
    which that cannot be told, and ties_reliable is 0 where there was no float64 and scores were
    compared to the bit. positions_mean_limit is the mean of n in the exact parameter limit, over
    the queries that have one, where `parameter` is among the limits asked for.

    positions_mean and positions_std are n's mean and standard deviation, split_probability =
    P(n > 1), positions_fraction = mean of n over the number of keys allowed, entropy = mean of
    -Σ w ln w at τ = 1 (nats), tokens = the number of queries. distance_mean and distance_abs are
    means of key - query and |key - query| over a query's attended keys, in self-attention only.
    """
    tokens = statistics["tokens"]
    mean = divide(statistics["positions"], tokens)
    values = {
        "positions_mean": mean,
        "positions_std": np.sqrt(
            np.maximum(divide(statistics["positions_squares"], tokens) - mean**2, 0.0)
        ),
        "split_probability": divide(statistics["split"], tokens),
        "positions_fraction": divide(statistics["fraction"], tokens),
        "entropy": divide(statistics["entropy"], tokens),
        "undecided": divide(statistics["undecided"], tokens),
        "ties_reliable": statistics["ties_reliable"],
        "tokens": tokens,
    }
    if np.any(statistics["limit_queries"] > 0):
        values["positions_mean_limit"] = divide(
            statistics["positions_limit"], statistics["limit_queries"]
        )
    if np.any(statistics["distance_queries"] > 0):
        values["distance_mean"] = divide(statistics["distance"], statistics["distance_queries"])
        values["distance_abs"] = divide(statistics["distance_abs"], statistics["distance_queries"])
    return values


HEADS = ActivationMeasure(
    name="heads",
    definition="positions attended by each head at τ = 0 (mean, std, P(n > 1), share of those "
    "allowed), their distance, and the entropy of its weights at τ = 1",
    source="Merrill et al. 2021 (arXiv 2010.09697), §5; fraction, distance and entropy ours",
    statistics=STATISTICS,
    observe=observe,
    needs=needs,
    metrics=metrics,
    version=2,
)
