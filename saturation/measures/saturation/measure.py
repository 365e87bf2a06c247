"""How far a network is saturated (MEASURES §7): cosines of its layers to those of its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.measures.base import ActivationMeasure, Rule, Statistics, stack_scopes
from saturation.measures.means import cosine, mean_and_error, sum_names, sums_over_sequences

if TYPE_CHECKING:
    from jax import Array

    from saturation.models.forwards import AttentionWeights, ModelOutputs

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


def observe(forwards: ModelOutputs) -> dict[str, dict[str, Any]]:
    """Return the sums of every layer and every head; those that a scope has none of are 0."""
    found = {}
    for stack, scopes in forwards.stacks.items():
        found |= stack_scopes(stack, _layer_sums(forwards, scopes))
    for path, attention in forwards.attentions.items() if "attention" in forwards.limits else ():
        found[f"{path}/head_*"] = _head_sums(attention)
    return found


def _layer_sums(forwards: ModelOutputs, scopes: Sequence[str]) -> dict[str, Array]:
    """Return {statistic: (scopes,)} of the residual streams of one stack."""
    import jax.numpy as jnp

    valid = forwards.valid(scopes[0])
    sums = {"tokens": jnp.full(len(scopes), valid.sum())}
    for limit in forwards.limits:
        name = COSINES[limit]
        compared = [_compared(forwards, limit, scope) for scope in scopes]
        pairs = zip(scopes, compared, strict=True)
        cosines = jnp.stack(
            [cosine(forwards.at_temperature_one[scope], state) for scope, (state, _) in pairs]
        )
        counted = jnp.stack([tokens for _, tokens in compared])  # (scopes, batch, length)
        sums |= sums_over_sequences(name, cosines, counted)
        if name in EXCLUDED:
            sums[EXCLUDED[name]] = (valid & ~counted).sum(axis=(1, 2))
    return _filled(sums)


def _compared(forwards: ModelOutputs, limit: str, scope: str) -> tuple[Array, Array]:
    """Return the states that a layer's are compared with, and which tokens have one."""
    valid = forwards.valid(scope)
    if limit == "attention":
        return forwards.attention_limit[scope], valid
    if limit == "parameter":
        found = forwards.parameter_limit[scope]
        _, leading = found.leading()  # of a row whose leading terms cancel, what is left
        return leading, valid & found.valid.all(axis=-1)
    return forwards.scaled[scope], valid & forwards.scaled_in_range[scope]


def _head_sums(attention: AttentionWeights) -> dict[str, Array]:
    """Return {statistic: (heads,)}; the total variation is ½ Σ_k |w_1 - w_0| of each query."""
    import jax.numpy as jnp

    difference = jnp.abs(attention.at_temperature_one - attention.saturated).sum(axis=-1) / 2
    by_head = jnp.swapaxes(difference, 0, 1)  # (heads, batch, query)
    tokens = jnp.full(len(by_head), attention.queries.sum())
    sums = sums_over_sequences("total_variation", by_head, attention.queries)
    return _filled({"tokens": tokens, **sums})


def _filled(sums: dict[str, Array]) -> dict[str, Array]:
    import jax.numpy as jnp

    wide = jnp.result_type(float)
    zero = jnp.zeros(sums["tokens"].shape, wide)
    return {name: sums[name].astype(wide) if name in sums else zero for name in STATISTICS}


def metrics(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return the mean cosines of a layer, or the mean total variation of a head, with their errors.

    cosine_attention_limit, cosine_parameter_limit, cosine_scaled: mean over tokens of cos(h, h′),
    h the residual stream after the layer and h′ the same with every attention at τ = 0, in the
    limit of all parameters growing together, and with all of them times c. total_variation: mean
    over queries of ½ Σ|w_1 - w_0|. Each has its standard error over sequences, `…_stderr`. tokens
    is their number; excluded_parameter_limit and excluded_scaled are how many of them a mean
    leaves out, since the limit does not exist there or f(x; cθ) leaves the range of its dtype.
    What was not asked for (`ModelOutputs.limits`) is absent.
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
    metrics=metrics,
)
