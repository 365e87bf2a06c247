"""Do tokens become alike with depth, and do the layer's own attention and heads forecast it?

Dovonon, Bronstein, Kusner 2025 (arXiv 2401.04301); MEASURES §10 and §11. Each layer's state by the
whole panel of `similarity`; beside it what its self-attention, frozen, would make of its input in
the layers that are left and in the end (`operator`), what each head alone would (`forecast`), and
what that self-attention and the layers left did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.measures.base import ActivationMeasure, Rule, Statistics
from saturation.measures.means import divide
from saturation.measures.spectrum.measure import CLEAR

if TYPE_CHECKING:
    from jax import Array

    from saturation.models import T5Config
    from saturation.models.forwards import ModelOutputs

# What `similarity` returns of a state, `forecast` of a head and `operator.iterate` of a layer.
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
STATIONARY = ("hfc_lfc_stationary",)
OF_HEADS = (
    "attention_min",
    "attention_second",
    "growth_shared",
    "growth_apart",
    "apart_over_shared",
    "dominance_rate",
    "smooths",
    "sharpens",
    "neither",
    "dominating_h_real",
    "dominating_h_imaginary",
    "dominating_a_real",
    "dominating_a_imaginary",
)
JOINT = ("joint_growth", "joint_token_cosine", "joint_hfc_lfc", "joint_converged")
CHANGES = ("forecast_change", "measured_change", "onward_change")
AGREEMENT = ("forecast_agrees", "onward_agrees")
MEANS = {  # {the count that means are of: which means}
    "sequences": PANEL,
    "stationary": STATIONARY,
    "forecasts": OF_HEADS,
    "joint_sequences": JOINT,
    "compared": CHANGES,
    "decided": AGREEMENT,
}
STATISTICS: dict[str, Rule] = dict.fromkeys(
    (
        "skipped",
        *MEANS,
        *(
            f"{name}_{kind}"
            for names in MEANS.values()
            for name in names
            for kind in ("sum", "squares")
        ),
    ),
    "sum",
)


# Floating-point operations that iterating may take at a checkpoint where nobody said how much.
ITERATING = 2e10


def affordable_sequences(config: T5Config, encoder_length: int, decoder_length: int) -> int:
    """Return of how many sequences the layers' operators are iterated by default.

    As many as take `ITERATING` products and sums: a second of a CPU, little beside the rest of the
    pass. None of a T5-small or anything larger, one of whose sequences takes 30 times that.
    """
    from saturation.measures.smoothing.operator import ITERATIONS

    def once(length: int) -> float:
        return length * config.num_heads * config.head_dim * (4 * config.emb_dim + 2 * length)

    both = config.num_encoder_layers * once(encoder_length)
    both += config.num_decoder_layers * once(decoder_length)
    return int(ITERATING / (ITERATIONS * both))


def observe(forwards: ModelOutputs) -> dict[str, dict[str, Any]]:
    """Return the sums of every state, and of every head of self-attention."""
    return _stack(forwards, "encoder") | _stack(forwards, "decoder")


def _stack(forwards: ModelOutputs, stack: str) -> dict[str, dict[str, Any]]:
    """Return the sums of one stack: two loops, so that one layer's program is compiled for all."""
    import jax
    import jax.numpy as jnp

    from saturation.measures.smoothing.similarity import similarity

    *layers, final = forwards.stacks[stack]
    scopes = (f"{stack}/embedding", *layers, final)
    states = jnp.stack([forwards.at_temperature_one[scope] for scope in scopes])
    valid = forwards.valid(f"{stack}/")
    tokens = valid.sum(axis=-1)
    counts = _counts({"sequences": tokens > 1, "skipped": tokens == 1})
    panel = jax.lax.map(lambda state: _sums(similarity(state, valid), tokens > 1) | counts, states)

    causal = stack == "decoder"
    name = "self_attention" if causal else "attention"
    attentions = [layer_arrays(forwards, f"{layer}/{name}") for layer in layers]
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *attentions)
    epsilon, asked = forwards.config.layer_norm_epsilon, forwards.iterated
    of_layers, of_heads = jax.lax.map(
        lambda one: _attention(
            **one, end=states[-2], valid=valid, asked=asked, causal=causal, epsilon=epsilon
        ),
        stacked | {"state": states[:-2], "left": jnp.arange(len(layers), 0, -1)},
    )
    inner = {name: sums[1:-1] for name, sums in panel.items()}
    if causal:
        inner |= jax.lax.map(lambda state: _of_first_token(state, valid), states[1:-1])
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


def layer_arrays(forwards: ModelOutputs, path: str) -> dict[str, Array]:
    """Return what is needed of one attention: its weights and output, and its heads' factors."""
    import jax.numpy as jnp

    from saturation.models.kernels import attention_arrays, attention_kernels, split_heads
    from saturation.models.linalg import orthonormal_columns

    def parameter(name: str) -> Array:
        leaf = forwards.params
        for key in name.split("/"):
            leaf = leaf[key]
        return jnp.asarray(leaf, jnp.result_type(float))

    names = attention_arrays(forwards.config.parameter_shapes())[path]
    arrays = {role: parameter(name) for role, name in names.items()}
    value, out = attention_kernels(arrays, orthonormal_columns)
    value, out = split_heads(value, out, arrays["scale"], forwards.config.num_heads)
    weights, output = (
        forwards.at_temperature_one[f"{path}/{tap}"] for tap in ("weights", "output")
    )
    return {"value": value, "out": out, "weights": weights, "output": output}


def _of_first_token(state: Array, valid: Array) -> dict[str, Array]:
    """Return the sums of what only causal self-attention's states have."""
    from saturation.measures.smoothing.similarity import hfc_lfc_stationary

    counted = valid.sum(axis=-1) > 1
    found = {"hfc_lfc_stationary": hfc_lfc_stationary(state, valid)}
    return _sums(found, counted) | _counts({"stationary": counted})


def _attention(
    value: Array,
    out: Array,
    weights: Array,
    output: Array,
    state: Array,
    left: Array,
    end: Array,
    valid: Array,
    asked: Array,
    causal: bool,
    epsilon: float,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the sums of a layer, those of its heads averaged, and those of its heads, (heads,).

    Args:
      value, out: each head's diag(g) W_V and W_O, as `spectrum.split_heads` returns them.
      weights: of the attention, (batch, heads, query, key).
      output: what the attention adds to the stream, (batch, query, embed).
      state: the stream before it.
      left: how many layers are left in the stack, this one among them.
      end: the stream after the last of them.
      valid: which positions hold a token, (batch, query).
      asked: of which sequences the layer's own operator is iterated, (batch,).
      causal: whether queries attend to earlier keys alone.
      epsilon: of the norm.
    """
    import jax.numpy as jnp

    from saturation.measures.smoothing.operator import change_ahead, freeze, iterate_some, widened
    from saturation.measures.smoothing.similarity import hfc_lfc

    counted, asked = valid.sum(axis=-1) > 1, asked & (valid.sum(axis=-1) > 1)
    mean, of_heads = _heads(value, out, weights, state, valid, causal)

    operator, start = freeze(weights, value, out, state, valid, epsilon)
    wide = start.astype(value.dtype)
    joint = _sums(iterate_some(widened(operator), wide, asked), asked)
    states = (state, state + output, end)
    after = jnp.where(valid[..., None], states[1], 0)
    ahead = change_ahead(operator, start, after, left)
    changes = _changes(ahead, *(hfc_lfc(x, valid) for x in states),
                       left=left, counted=counted)  # fmt: skip
    return mean | joint | changes | _counts({"joint_sequences": asked}), of_heads


def _heads(
    value: Array, out: Array, weights: Array, state: Array, valid: Array, causal: bool
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the sums of what each head alone would do, averaged over heads, and one by one."""
    import jax.numpy as jnp

    from saturation.measures.smoothing.forecast import attention_eigenvalues, forecast
    from saturation.measures.smoothing.similarity import token_rms
    from saturation.models.linalg import eigenvalues

    counted = valid.sum(axis=-1) > 1
    values, tokens = attention_eigenvalues(weights, valid, causal)
    null_space = value.shape[-1] < value.shape[-2]
    said = forecast(eigenvalues(out @ value), values, tokens, token_rms(state, valid), null_space)
    counts = _counts({"forecasts": counted})
    each = _sums(said, counted[:, None])
    each |= {"forecasts": jnp.full(len(value), counts["forecasts"])}
    mean = {name: of_head.mean(axis=-1) for name, of_head in said.items()}
    return _sums(mean, counted) | counts, each


def _changes(
    ahead: Array, before: Array, after: Array, end: Array, left: Array, counted: Array
) -> dict[str, Array]:
    """Return the sums of a layer's forecast beside what came: HFC/LFC before, after and in the end.

    Args:
      ahead: the forecast change of ln(HFC/LFC) a layer.
      before: HFC/LFC of the layer's input, (batch,).
      after: with what its self-attention added.
      end: after the last layer of the stack.
      left: how many layers that is away.
      counted: which sequences have two tokens or more.
    """
    import jax.numpy as jnp

    measured = jnp.log(after / before)
    onward = jnp.log(end / before) / left.astype(before.dtype)
    # Tokens all equal, or with no mean, have no such ratio; NaN of broken weights is kept.
    infinite = [jnp.isinf(jnp.log(ratio)) for ratio in (before, after, end)]
    compared = counted & ~jnp.isinf(ahead) & ~jnp.stack(infinite).any(axis=0)
    decided = compared & ~(jnp.abs(ahead) < CLEAR)

    def agrees(change: Array) -> Array:
        same = (jnp.sign(change) == jnp.sign(ahead)).astype(change.dtype)
        return jnp.where(jnp.isnan(change), jnp.nan, same)

    changes: dict[str, Array] = {
        "forecast_change": ahead,
        "measured_change": measured,
        "onward_change": onward,
    }
    signs: dict[str, Array] = {
        "forecast_agrees": agrees(measured),
        "onward_agrees": agrees(onward),
    }
    counts = _counts({"compared": compared, "decided": decided})
    return _sums(changes, compared) | _sums(signs, decided) | counts


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
    sequence, and after a layer of causal self-attention hfc_lfc_stationary. Of a head of
    self-attention what `forecast.forecast` says of it alone, and of a layer the mean of that over
    its heads. layers_to_dominate = 1/dominance_rate: after how many layers the dominating pair has
    outgrown those of the other kind by a factor e, ∞ where the rate is 0.
    Of a layer, forecast_change = by how much its self-attention, frozen, moves ln(HFC/LFC) a layer
    in the m layers left, this one among them (`operator.change_ahead`); measured_change = by how
    much it did, once; onward_change = by how much the whole stack did, a layer, from here to after
    its last layer. forecast_agrees and onward_agrees = the share of sequences where those two have
    the forecast's sign, among those whose forecast is 1e-3 or more. For m = 1 the forecast is
    measured_change itself. joint_… = where its iterates end (`operator.iterate`), a mean over the
    joint_sequences.
    sequences = how many have two tokens or more, skipped = those of one, compared and decided =
    those that the changes and their agreement are of.
    """
    counts = {name: statistics[name] for name in ("skipped", *MEANS)}
    values = {"sequences": np.maximum(counts["sequences"], counts["forecasts"])}
    if np.any(counts["sequences"] + counts["skipped"] > 0):
        values |= {"skipped": counts["skipped"]} | _means(PANEL, statistics, counts["sequences"])
    for count in ("stationary", "forecasts", "joint_sequences"):
        if np.any(counts[count] > 0):
            values |= _means(MEANS[count], statistics, counts[count])
    if np.any(counts["joint_sequences"] > 0):
        values["joint_sequences"] = counts["joint_sequences"]
    if "dominance_rate" in values:
        rate = values["dominance_rate"]
        values["layers_to_dominate"] = np.where(rate == 0, np.inf, divide(np.ones_like(rate), rate))
    if np.any(counts["compared"] > 0):
        for count in ("compared", "decided"):
            values |= {count: counts[count]} | _means(MEANS[count], statistics, counts[count])
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
    "one), and whether its self-attention, frozen, forecasts it",
    source="Dovonon et al. 2025 (arXiv 2401.04301); the comparison layer by layer is ours",
    statistics=STATISTICS,
    observe=observe,
    metrics=metrics,
    version=2,
)
