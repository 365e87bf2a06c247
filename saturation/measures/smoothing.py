"""Do tokens become alike with depth, and does the forecast of [D] say so (MEASURES §10 and §11)?

Dovonon, Bronstein, Kusner 2025 (arXiv 2401.04301). Each layer's state by the whole panel of
`similarity`; beside it what the eigenvalues of its self-attention and of its heads forecast, and by
how much that attention did set tokens apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.measures.base import ActivationMeasure, Rule, Statistics
from saturation.measures.means import divide

if TYPE_CHECKING:
    from jax import Array

    from saturation.measures.forwards import Forwards

# What `similarity` returns of a state, and `forecast` of a head.
PANEL = (
    "token_cosine",
    "token_cosine_abs",
    "token_cosine_centred",
    "effective_rank",
    "stable_rank",
    "hfc_lfc",
    "rank_one_distance",
    "token_rms",
)
FORECAST = (
    "attention_min",
    "attention_second",
    "growth_shared",
    "growth_apart",
    "forecast_change",
    "forecast_rate",
    "sharpening",
    "dominating_h_real",
    "dominating_h_imaginary",
    "dominating_a_real",
    "dominating_a_imaginary",
)
FACT = ("measured_change", "forecast_agrees")
MEANS = (*PANEL, *FORECAST, *FACT)
COUNTS = ("sequences", "skipped", "forecasts", "compared", "decided")
CLEAR = 1e-3  # a forecast_rate below this says nothing; rounding alone makes 1e-6
STATISTICS: dict[str, Rule] = dict.fromkeys(
    (*COUNTS, *(f"{name}_{kind}" for name in MEANS for kind in ("sum", "squares"))), "sum"
)


def observe(forwards: Forwards) -> dict[str, dict[str, Any]]:
    """Return the sums of every state, and of every head of self-attention."""
    return _stack(forwards, "encoder") | _stack(forwards, "decoder")


def _stack(forwards: Forwards, stack: str) -> dict[str, dict[str, Any]]:
    """Return the sums of one stack: two loops, so that one layer's program is compiled for all."""
    import jax
    import jax.numpy as jnp

    from saturation.measures.similarity import similarity

    *layers, final = forwards.stacks[stack]
    scopes = (f"{stack}/embedding", *layers, final)
    states = jnp.stack([forwards.soft[scope] for scope in scopes])
    valid = forwards.valid(f"{stack}/")
    tokens = valid.sum(axis=-1)
    counts = _counts({"sequences": tokens > 1, "skipped": tokens == 1})
    panel = jax.lax.map(lambda state: _sums(similarity(state, valid), tokens > 1) | counts, states)

    name = "attention" if stack == "encoder" else "self_attention"
    attentions = [_layer(forwards, f"{layer}/{name}") for layer in layers]
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *attentions)
    of_layers, of_heads = jax.lax.map(
        lambda one: _attention(**one, valid=valid, causal=stack == "decoder"),
        stacked | {"state": states[: len(layers)]},
    )
    inner = {name: sums[1:-1] for name, sums in panel.items()}
    found = {
        scopes[0]: {name: sums[0] for name, sums in panel.items()},
        f"{stack}/layers_*": inner | of_layers,
        scopes[-1]: {name: sums[-1] for name, sums in panel.items()},
        f"{stack}/layers_*/{name}/head_*": of_heads,
    }
    return {scope: _filled(sums) for scope, sums in found.items()}


def _filled(sums: dict[str, Array]) -> dict[str, Array]:
    """Return every statistic: 0 where the scope has none."""
    import jax.numpy as jnp

    zero = jnp.zeros_like(next(iter(sums.values())))
    return {name: sums.get(name, zero) for name in STATISTICS}


def _layer(forwards: Forwards, path: str) -> dict[str, Array]:
    """Return what is needed of one attention: its weights and output, and its heads' factors."""
    import jax.numpy as jnp

    from saturation.linalg import orthonormal_columns
    from saturation.measures.spectrum import attention_arrays, attention_kernels, split_heads

    def parameter(name: str) -> Array:
        leaf = forwards.params
        for key in name.split("/"):
            leaf = leaf[key]
        return jnp.asarray(leaf, jnp.result_type(float))

    names = attention_arrays(forwards.config.parameter_shapes())[path]
    arrays = {role: parameter(name) for role, name in names.items()}
    value, out = attention_kernels(arrays, orthonormal_columns)
    left, right = split_heads(value, out, arrays["scale"], forwards.config.num_heads)
    weights, output = (forwards.soft[f"{path}/{tap}"] for tap in ("weights", "output"))
    return {"small": right @ left, "weights": weights, "output": output}


def _attention(
    small: Array, weights: Array, output: Array, state: Array, valid: Array, causal: bool
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the sums of a layer, averaged over its heads, and those of its heads, (heads,) each.

    Args:
      small: each head's W_O diag(g) W_V, (heads, head_dim, head_dim).
      weights: of the attention, (batch, heads, query, key).
      output: what the attention adds to the stream, (batch, query, embed).
      state: the stream before it.
      valid: which positions hold a token, (batch, query).
      causal: whether queries attend to earlier keys alone.
    """
    import jax.numpy as jnp

    from saturation.linalg import eigenvalues
    from saturation.measures.forecast import attention_eigenvalues, forecast
    from saturation.measures.similarity import hfc_lfc, token_rms

    counted = valid.sum(axis=-1) > 1
    values, tokens = attention_eigenvalues(weights, valid, causal)
    said = forecast(eigenvalues(small), values, tokens, token_rms(state, valid))
    counts = _counts({"forecasts": counted})
    of_heads = _sums(said, counted[:, None])
    of_heads |= {"forecasts": jnp.full(len(small), counts["forecasts"])}
    mean = {name: each.mean(axis=-1) for name, each in said.items()}

    before, after = hfc_lfc(state, valid), hfc_lfc(state + output, valid)
    change = jnp.log(after / before)
    # Tokens all equal, or with no mean, have no such ratio; NaN of broken weights is kept.
    compared = counted & ~jnp.isinf(jnp.log(before)) & ~jnp.isinf(jnp.log(after))
    decided = compared & ~(jnp.abs(mean["forecast_change"]) < CLEAR)
    agrees = (jnp.sign(change) == jnp.sign(mean["forecast_change"])).astype(change.dtype)
    agrees = jnp.where(jnp.isnan(change), jnp.nan, agrees)
    counts |= _counts({"compared": compared, "decided": decided})
    fact = _sums({"measured_change": change}, compared)
    agreement = _sums({"forecast_agrees": agrees}, decided)
    return _sums(mean, counted) | fact | agreement | counts, of_heads


def _sums(values: dict[str, Array], counted: Array) -> dict[str, Array]:
    """Return sums over the sequences that count, the first axis, of values and their squares."""
    import jax.numpy as jnp

    found = {}
    for name, each in values.items():
        kept = jnp.where(counted, each, 0)
        found |= {f"{name}_sum": kept.sum(axis=0), f"{name}_squares": (kept * kept).sum(axis=0)}
    return found


def _counts(which: dict[str, Array]) -> dict[str, Array]:
    import jax.numpy as jnp

    return {name: each.sum().astype(jnp.result_type(float)) for name, each in which.items()}


def metrics(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return means over sequences, each with its standard error `…_stderr`.

    Of a state (a layer, the embedding, after the last norm) what `similarity.similarity` says of a
    sequence. Of a head of self-attention what `forecast.forecast` says, and of a layer the mean of
    that over its heads, beside measured_change = ln(HFC/LFC) after its self-attention − before it,
    and forecast_agrees = the share of sequences where that has the forecast's sign, among those
    whose forecast is 1e-3 or more.
    layers_to_dominate = 1/forecast_rate: after how many layers the dominating pair has outgrown
    those of the other kind by a factor e. sequences = how many have two tokens or more, skipped =
    those of one, compared and decided = those that measured_change and forecast_agrees are of.
    """
    counts = {name: statistics[name] for name in COUNTS}
    values = {"sequences": np.maximum(counts["sequences"], counts["forecasts"])}
    if np.any(counts["sequences"] + counts["skipped"] > 0):
        values |= {"skipped": counts["skipped"]} | _means(PANEL, statistics, counts["sequences"])
    if np.any(counts["forecasts"] > 0):
        values |= _means(FORECAST, statistics, counts["forecasts"])
        rate = divide(statistics["forecast_rate_sum"], counts["forecasts"])
        values["layers_to_dominate"] = divide(np.ones_like(rate), rate)
    if np.any(counts["compared"] > 0):
        values |= {name: counts[name] for name in ("compared", "decided")}
        values |= _means(("measured_change",), statistics, counts["compared"])
        values |= _means(("forecast_agrees",), statistics, counts["decided"])
    return values


def _means(
    names: tuple[str, ...], statistics: Statistics, count: np.ndarray
) -> dict[str, np.ndarray]:
    """Return mean and standard error, √(Σ(x − x̄)²/(N(N − 1))), of values one a sequence."""
    found = {}
    for name in names:
        mean = divide(statistics[f"{name}_sum"], count)
        spread = np.maximum(divide(statistics[f"{name}_squares"], count) - mean**2, 0.0)
        found |= {name: mean, f"{name}_stderr": np.sqrt(divide(spread, count - 1))}
    return found


SMOOTHING = ActivationMeasure(
    name="smoothing",
    definition="how alike the tokens of a layer are (cosines, ranks, HFC/LFC, distance to rank "
    "one), and whether its attention's and heads' eigenvalues forecast it",
    source="Dovonon et al. 2025 (arXiv 2401.04301); the comparison layer by layer is ours",
    statistics=STATISTICS,
    observe=observe,
    metrics=metrics,
)
