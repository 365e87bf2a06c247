"""How far a network is saturated (MEASURES §7): cosines of its layers to those of its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saturation.measures.base import ActivationMeasure, Found, Rule, Statistics
from saturation.measures.means import cosine, mean_and_error, sum_names, sums_over_sequences
from saturation.models.base import Needs

if TYPE_CHECKING:
    from jax import Array

    from saturation.models.outputs import Asked, AttentionWeights, StageOutputs, State

COSINES = {  # by what a network is compared with; total variation goes with the attention limit
    "attention": "cosine_attention_limit",
    "parameter": "cosine_parameter_limit",
    "scaled": "cosine_scaled",
}
EXCLUDED = {
    "cosine_parameter_limit": "excluded_parameter_limit",
    "cosine_scaled": "excluded_scaled",
}
MEANS = (*COSINES.values(), "total_variation")
COUNTS = ("tokens", *EXCLUDED.values())
STATISTICS: dict[str, Rule] = dict.fromkeys(
    (*COUNTS, *(each for name in MEANS for each in sum_names(name))), "sum"
)


def needs(limits: Sequence[str], scale: float) -> Needs:
    """Return the forward passes for these limits."""
    return Needs(
        attention="attention" in limits,
        parameter="parameter" in limits,
        scales=frozenset({scale} if "scaled" in limits else ()),
    )


def observe(outputs: StageOutputs) -> Found:
    """Return the sums of every layer and every head."""
    found = {
        state.scope: _layer_sums(outputs.asked, state)
        for state in outputs.states
        if state.kind != "embedding"
    }
    if outputs.attention is not None and "attention" in outputs.asked.limits:
        found[outputs.attention.heads] = _head_sums(outputs.attention.weights)
    return found


def _layer_sums(asked: Asked, state: State) -> dict[str, Array]:
    """Return {statistic: scalar} of one residual stream."""
    import jax.numpy as jnp

    sums = {"tokens": state.valid.sum().astype(jnp.result_type(float))}
    for limit in asked.limits:
        name = COSINES[limit]
        compared, counted = _compared(asked, limit, state)
        sums |= sums_over_sequences(name, cosine(state.model, compared), counted)
        if name in EXCLUDED:
            sums[EXCLUDED[name]] = (state.valid & ~counted).sum()
    return sums


def _compared(asked: Asked, limit: str, state: State) -> tuple[Array, Array]:
    """Return the states that a layer's are compared with, and which tokens have one."""
    if limit == "attention":
        return state.at_temperature_zero, state.valid
    if limit == "parameter":
        # Of a row whose leading terms cancel, what is left.
        return state.limit.leading, state.valid & state.limit.exists
    return state.scaled(asked.scale), state.valid & state.in_range[asked.scale]


def _head_sums(attention: AttentionWeights) -> dict[str, Array]:
    """Return {statistic: (heads,)}; the total variation is ½ Σ_k |w_1 - w_0| of each query."""
    import jax.numpy as jnp

    difference = jnp.abs(attention.at_temperature_one - attention.saturated).sum(axis=-1) / 2
    by_head = jnp.swapaxes(difference, 0, 1)  # (heads, batch, query)
    tokens = jnp.full(len(by_head), attention.queries.sum()).astype(jnp.result_type(float))
    return {"tokens": tokens} | sums_over_sequences("total_variation", by_head, attention.queries)


def metrics(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return the mean cosines of a layer, or the mean total variation of a head, with their errors.

    cosine_attention_limit, cosine_parameter_limit, cosine_scaled: mean over tokens of cos(h, h′),
    h the residual stream after the layer and h′ the same with every attention at τ = 0, in the
    limit of all parameters growing together, and with all of them times c. total_variation: mean
    over queries of ½ Σ|w_1 - w_0|. Each has its standard error over sequences, `…_stderr`. tokens
    is their number; excluded_parameter_limit and excluded_scaled are how many of them a mean
    leaves out, since the limit does not exist there or f(x; cθ) leaves the range of its dtype.
    What was not asked for (`Asked.limits`) is absent.
    """
    values = {"tokens": statistics["tokens"]}
    for name in MEANS:
        values |= mean_and_error(name, statistics)
    for name, excluded in EXCLUDED.items():
        # Neither counted nor left out: a head, or a limit that was not asked for.
        if name in values or np.any(statistics[excluded] > 0):
            values[excluded] = statistics[excluded]
    return values


SATURATION = ActivationMeasure(
    name="saturation",
    definition="cosine of each layer to its attention limit, its parameter limit and f(x; cθ), and "
    "total variation of each head's weights to those at τ = 0",
    source="Merrill et al. 2021 (arXiv 2010.09697), §4; attention limit and total variation ours",
    version=2,  # ties are decided by the rule of `limit.ties`, rows have orders of their own
    statistics=STATISTICS,
    observe=observe,
    needs=needs,
    metrics=metrics,
)
