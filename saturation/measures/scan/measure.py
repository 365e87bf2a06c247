"""Whether heads scan and snap (MEASURES §12): how sharp they are, what they see, when they stop.

Tian et al. 2023 (Scan and Snap, arXiv 2305.16380) show of one layer that attention moves from
tokens that many classes share to tokens that tell classes apart, and then stops. Here the same is
asked of real heads; the definitions are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saturation.measures.base import STEP, ActivationMeasure, Found, Rule, Statistics
from saturation.measures.means import divide, mean_and_error, sum_names, sums_over_sequences
from saturation.measures.scan.cooccurrence import COMMON, DISTINCT, KINDS
from saturation.measures.scan.snap import snap

if TYPE_CHECKING:
    from jax import Array

    from saturation.models.outputs import AttentionWeights, StageOutputs

NEAREST = (1, 2, 4, 8, 16, 32, 64)  # distances up to these share a cell, larger ones the last
DISTANCES = 2 * len(NEAREST) + 3  # behind, at the query itself, ahead
CELLS = tuple(f"{kind}_at_{distance}" for kind in KINDS for distance in range(DISTANCES))
UNIFORM = ("uniform_entropy", "uniform_common", "uniform_distinct")
EXCESS = "distinct_excess"
STATISTICS: dict[str, Rule] = dict.fromkeys(
    ("tokens", "entropy", *UNIFORM, *CELLS, *sum_names(EXCESS)), "sum"
)


def observe(outputs: StageOutputs) -> Found:
    """Return the sums of the heads of the stage's attention, {statistic: (heads,)}."""
    attention = outputs.attention
    if attention is None:
        return {}
    return {attention.heads: head_sums(attention.weights, attention.kinds_of_keys())}


def head_sums(attention: AttentionWeights, kinds: Array) -> dict[str, Array]:
    """Return {statistic: (heads,)} of one attention, in the widest float there is.

    Args:
      attention: its weights.
      kinds: int, (batch, key): the place in `KINDS` of each key's token.
    """
    import jax.numpy as jnp
    from jax.scipy.special import entr

    wide = jnp.result_type(float)
    # Of the queries that hold no token nothing counts, whatever stands there.
    weights = jnp.where(attention.queries[:, None, :, None], attention.at_temperature_one, 0)
    heads = weights.shape[1]
    # Products are elementwise and not of matrices, so that --fast takes no digit from a sum.
    of_kind = [kinds == kind for kind in range(len(KINDS))]
    on_kind = [jnp.where(is_kind[:, None, None], weights, 0) for is_kind in of_kind]
    share = [
        (attention.uniform * is_kind[:, None].astype(wide)).sum(axis=-1) for is_kind in of_kind
    ]
    on_distinct = jnp.moveaxis(on_kind[DISTINCT].sum(axis=-1).astype(wide), 1, 0)
    uniform = {
        "uniform_entropy": jnp.log(jnp.maximum(attention.allowed, 1).astype(wide)),
        "uniform_common": share[COMMON],
        "uniform_distinct": share[DISTINCT],
    }
    of_queries = {
        "tokens": attention.queries.sum(),
        **{n: jnp.where(attention.queries, x, 0).sum() for n, x in uniform.items()},
    }
    by_kind = jnp.stack([on.sum(axis=0).astype(wide) for on in on_kind], axis=1)
    return {
        **{name: jnp.full(heads, total).astype(wide) for name, total in of_queries.items()},
        "entropy": entr(weights).sum(axis=-1).astype(wide).sum(axis=(0, 2)),
        **dict(zip(CELLS, by_distance(by_kind).reshape(heads, -1).T, strict=True)),
        **sums_over_sequences(EXCESS, on_distinct - share[DISTINCT], attention.queries),
    }


def by_distance(weights: Array) -> Array:
    """Return the sums of (…, query, key) over each cell of distances, (…, DISTANCES).

    Turned over, padded by as many columns as there are rows, and read in rows one shorter, each row
    is shifted by one against the next, so that a diagonal of the array is a column.
    """
    import jax.numpy as jnp

    *heads, queries, keys = weights.shape
    padded = jnp.pad(jnp.flip(weights, -2), [(0, 0)] * (len(heads) + 1) + [(0, queries)])
    length = queries + keys - 1
    rows = padded.reshape(*heads, -1)[..., : queries * length]
    diagonals = rows.reshape(*heads, queries, length).sum(axis=-2)
    cells = distance_cells(np.arange(length) - (queries - 1))
    is_cell = jnp.asarray(cells == np.arange(DISTANCES)[:, None])
    return jnp.where(is_cell, diagonals[..., None, :], 0).sum(axis=-1)


def distance_cells(distance: np.ndarray) -> np.ndarray:
    """Return the cell of each distance key - query, from 0 for the furthest behind on.

    A cell is a distance of 0, ±1, ±2, ±3 to 4, … ±33 to 64, or beyond. Positions of
    cross-attention are those in their own sequences.
    """
    nearness = np.searchsorted(NEAREST, np.abs(distance), side="left") + 1
    return np.sign(distance) * nearness + DISTANCES // 2


def metrics(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return how sharp a head is, what it attends to, and whether it has come to rest.

    Means over queries: attention_entropy = -Σ w ln w (nats), uniform_entropy = that of equal
    weights on all allowed keys; mass_common, mass_distinct and mass_unclassified the weight on
    keys of each kind (`measures.cooccurrence`), uniform_common and uniform_distinct the share of
    allowed keys that are of the kind; distinct_excess = mass_distinct - uniform_distinct, with its
    standard error over sequences.

    distance_to_last = ½ Σ|p_t - p_last| with p the head's mean attention by kind and distance of
    the key: the share of its attention that lies elsewhere than at the last checkpoint.

    speed is ‖p_t' - p_t‖/ln(t'/t) from one checkpoint after step 0 to the next; a head has snapped
    where its speed has fallen at the end, as `snap.snap` decides: snap_ratio, snap_p_value and
    snap_step say how much, how surely and when (they are of the whole run, the same at every step),
    and snapped is 1 from snap_step on, 0 before, and 0 throughout where the head is not called.
    With fewer than 15 intervals they are NaN. tokens is the number of queries.
    """
    tokens = statistics["tokens"]
    profile = np.stack([divide(statistics[cell], tokens) for cell in CELLS])
    of_kind = profile.reshape(len(KINDS), DISTANCES, -1).sum(axis=1)
    uniform = {name: divide(statistics[name], tokens) for name in UNIFORM}
    return {
        "attention_entropy": divide(statistics["entropy"], tokens),
        "uniform_entropy": uniform["uniform_entropy"],
        **{f"mass_{kind}": mass for kind, mass in zip(KINDS, of_kind, strict=True)},
        "uniform_common": uniform["uniform_common"],
        "uniform_distinct": uniform["uniform_distinct"],
        **mean_and_error(EXCESS, statistics),
        "distance_to_last": np.abs(profile - _last(profile)).sum(axis=0) / 2,
        **_snap_metrics(statistics[STEP], profile),
        "tokens": tokens,
    }


def _snap_metrics(steps: np.ndarray, profile: np.ndarray) -> dict[str, np.ndarray]:
    found = snap(steps, profile)
    known = np.isfinite(profile).all(axis=0)
    whole = {"ratio": found.ratio, "p_value": found.p_value, "step": found.step}
    snapped = np.full(len(steps), np.nan)
    if np.isfinite(found.ratio):
        snapped[known] = found.called and steps[known] >= found.step
    return {
        "speed": found.speed,
        "snapped": snapped,
        **{f"snap_{name}": np.where(known, value, np.nan) for name, value in whole.items()},
    }


def _last(values: np.ndarray) -> np.ndarray:
    """Return the values of the last step, (…, 1), at which all are known."""
    known = np.flatnonzero(np.isfinite(values).all(axis=tuple(range(values.ndim - 1))))
    return values[..., known[-1:]] if len(known) else np.full((*values.shape[:-1], 1), np.nan)


SCAN = ActivationMeasure(
    name="scan",
    definition="entropy of each head's weights, their mass on common and on distinct keys by a "
    "corpus's co-occurrence counts, and whether and when the head comes to rest",
    source="ours, after Tian et al. 2023 (arXiv 2305.16380)",
    statistics=STATISTICS,
    observe=observe,
    metrics=metrics,
    needs_corpus=True,
    version=2,
)
