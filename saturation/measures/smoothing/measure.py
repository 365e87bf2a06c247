"""Do tokens become alike with depth, and do the layer's own attention and heads forecast it?

Dovonon, Bronstein, Kusner 2025 (arXiv 2401.04301); MEASURES §10 and §11. Each layer's state by the
whole panel of `similarity`; beside it what its self-attention, frozen, would make of its input in
the layers that are left and in the end (`operator`), what each head alone would (`forecast`), and
what that self-attention and the layers left did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.measures.base import ActivationMeasure, Found, ModelShapes, Rule, Statistics
from saturation.measures.means import divide
from saturation.measures.spectrum.measure import CLEAR

if TYPE_CHECKING:
    from jax import Array

    from saturation.measures.smoothing.operator import Operator
    from saturation.models.base import ModelConfig
    from saturation.models.outputs import AttentionOutputs, StageOutputs, State

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


def affordable_sequences(config: ModelConfig, lengths: Sequence[int]) -> int:
    """Return of how many sequences the layers' operators are iterated by default.

    As many as take `ITERATING` products and sums: a second of a CPU, little beside the rest of the
    pass. None of a T5-small or anything larger, one of whose sequences takes 30 times that.

    Args:
      config: of the model.
      lengths: of the sequences of each of its stacks.
    """
    from saturation.measures.smoothing.operator import ITERATIONS

    length_of = dict(zip((stack.name for stack in config.stacks), lengths, strict=True))
    once = 0
    for attention in config.attentions:
        if attention.kind == "self":
            length = length_of[attention.stack]
            joined = attention.num_heads * attention.head_dim
            once += length * joined * (4 * config.emb_dim + 2 * length)
    return int(ITERATING / (ITERATIONS * once))


# What `observe` leaves of each sequence for `on_host` and `finish`; no statistics.
MATRICES = ("block", "products", "rms", "valid", "causal", "null_space")
OF_SEQUENCES = ("ahead", "before", "after", "counted", "left")
HFC_BEHIND = "hfc_behind"


def observe(outputs: StageOutputs) -> Found:
    """Return the sums of the stage's states, and what its attention's forecasts are made of."""
    found = {state.scope: _of_state(state) for state in outputs.states}
    attention = outputs.attention
    if attention is not None and attention.attention.kind == "self":
        value, out = head_kernels(attention)
        found[attention.attention.layer] = found.get(attention.attention.layer, {}) | _of_layer(
            attention, value, out
        )
        found[attention.heads] = _of_heads(attention, value, out)
    return found


def _of_state(state: State) -> dict[str, Array]:
    from saturation.measures.smoothing.similarity import hfc_lfc_stationary, similarity

    tokens = state.valid.sum(axis=-1)
    panel = similarity(state.model, state.valid)
    sums = _sums(panel, tokens > 1) | _counts({"sequences": tokens > 1, "skipped": tokens == 1})
    if state.kind == "layer":
        sums[HFC_BEHIND] = panel["hfc_lfc"]
        if state.causal:  # what only causal self-attention's states have
            first = {"hfc_lfc_stationary": hfc_lfc_stationary(state.model, state.valid)}
            sums |= _sums(first, tokens > 1) | _counts({"stationary": tokens > 1})
    return sums


def head_kernels(attention: AttentionOutputs) -> tuple[Array, Array]:
    """Return each head's diag(g) W_V and W_O (`kernels.split_heads`), in the widest float."""
    from saturation.models.kernels import attention_arrays, attention_kernels, split_heads
    from saturation.models.linalg import orthonormal_columns

    path, config = attention.attention.path, attention.asked.config
    if not attention.attention.stack:
        return _kernels_of_one_stack(attention)
    names = attention_arrays(ModelShapes(config.parameter_shapes(), config.attentions))[path]
    arrays = {role: attention.parameter(name) for role, name in names.items()}
    value, out = attention_kernels(arrays, orthonormal_columns)
    return split_heads(value, out, arrays["scale"], attention.attention.num_heads)


def _kernels_of_one_stack(attention: AttentionOutputs) -> tuple[Array, Array]:
    """Return the same of a model of one stack, whose norm, if any, may take the mean off too."""
    import jax.numpy as jnp

    from saturation.models.kernels import shared_heads, split_heads

    of = attention.attention
    value, out = (attention.parameter(f"{of.path}/{name}/kernel") for name in ("value", "out"))
    value = shared_heads(value, of.num_heads, of.num_key_value_heads)
    scale = jnp.ones(len(value), value.dtype) if of.norm is None else attention.parameter(of.norm)
    left, right = split_heads(value, out, scale, of.num_heads)
    if of.norm_kind == "layer":
        left = left - left.mean(axis=1, keepdims=True)
    return left, right


def _frozen(attention: AttentionOutputs, value: Array, out: Array) -> tuple[Operator, Array, Array]:
    """Return the layer's own operator L, X₀, and L(X₀)."""
    import jax.numpy as jnp

    from saturation.measures.smoothing.operator import behind_norm, freeze

    of, state, valid = attention.attention, attention.state, attention.valid
    weights = attention.weights.at_temperature_one
    operator, start = freeze(weights, value, out, state, valid, of.epsilon, of.norm_kind)
    if of.branch_norm:
        scale = attention.parameter(f"{of.layer}/post_attention_layer_norm/scale")
        operator = behind_norm(operator, start, scale.astype(start.dtype), of.epsilon)
    # Biases add the same to every token: they move the fixed point and are no part of L.
    if any(name.endswith("/bias") for name in attention.stage.parameters):
        return operator, start, operator(start)
    return operator, start, jnp.where(valid[..., None], state + attention.output, 0)


def _of_layer(attention: AttentionOutputs, value: Array, out: Array) -> dict[str, Array]:
    """Return the sums of a layer's own operator, and of each sequence what it forecasts."""
    import jax.numpy as jnp

    from saturation.measures.smoothing.operator import change_ahead, iterate_some, widened
    from saturation.measures.smoothing.similarity import hfc_lfc

    state, valid = attention.state, attention.valid
    counted = valid.sum(axis=-1) > 1
    iterated = attention.asked.iterated
    asked = counted & (jnp.zeros(len(valid), bool) if iterated is None else iterated)
    operator, start, after = _frozen(attention, value, out)
    wide = start.astype(value.dtype)
    joint = _sums(iterate_some(widened(operator), wide, asked), asked)
    ahead = change_ahead(operator, start, after, attention.left)
    changes = (ahead, hfc_lfc(state, valid), hfc_lfc(state + attention.output, valid))
    left = jnp.broadcast_to(jnp.asarray(attention.left), counted.shape)
    of_sequences = dict(zip(OF_SEQUENCES, (*changes, counted, left), strict=True))
    return joint | _counts({"joint_sequences": asked}) | of_sequences


def _of_heads(attention: AttentionOutputs, value: Array, out: Array) -> dict[str, Array]:
    """Return the matrices whose eigenvalues say what each head alone would do."""
    import jax.numpy as jnp

    from saturation.measures.smoothing.forecast import attention_block

    causal, valid = attention.attention.causal, attention.valid
    weights = attention.weights.at_temperature_one
    null_space = value.shape[-1] < value.shape[-2]
    found = (
        attention_block(weights, valid, causal),
        out @ value,
        _mean_divisor(attention, value, out),
        valid,
        jnp.asarray(causal),
        jnp.asarray(null_space),
    )
    return dict(zip(MATRICES, found, strict=True))


def _mean_divisor(attention: AttentionOutputs, value: Array, out: Array) -> Array:
    """Return by what a norm divides a sequence's values, or what is made of them, on average."""
    import jax.numpy as jnp

    from saturation.measures.smoothing.operator import freeze
    from saturation.measures.smoothing.similarity import token_rms

    of, state, valid = attention.attention, attention.state, attention.valid
    if of.branch_norm:
        weights = attention.weights.at_temperature_one
        operator, start = freeze(weights, value, out, state, valid, of.epsilon, None)
        return token_rms(operator(start) - start, valid)
    if of.norm_kind is None:
        return jnp.ones(len(state), jnp.result_type(float))
    centred = state - state.mean(axis=-1, keepdims=True) if of.norm_kind == "layer" else state
    return token_rms(centred, valid)


def on_host(found: Found) -> Found:
    """Return the sums of what each head alone would do, from its matrices' eigenvalues."""
    from saturation.measures.smoothing.forecast import forecast_sums

    result = {scope: sums for scope, sums in found.items() if MATRICES[0] not in sums}
    for scope, matrices in found.items():
        if MATRICES[0] in matrices:
            layer = scope.rpartition("/")[0].rpartition("/")[0]
            given = {name: np.asarray(matrices[name]) for name in MATRICES}
            mean, result[scope] = forecast_sums(**given)
            result[layer] = result[layer] | mean
    return result


def finish(found: Found) -> Found:
    """Return the sums of a layer's forecast beside what came, which takes the stack's end."""
    ends = {
        _stack_of(scope): found[scope][HFC_BEHIND]
        for scope, sums in found.items()
        if OF_SEQUENCES[0] in sums and np.all(sums["left"] == 1)
    }
    result = {}
    for scope, sums in found.items():
        kept = {k: v for k, v in sums.items() if k not in (*OF_SEQUENCES, HFC_BEHIND)}
        if OF_SEQUENCES[0] in sums:
            of_sequences = {name: np.asarray(sums[name]) for name in OF_SEQUENCES}
            kept |= _changes(**of_sequences, end=np.asarray(ends[_stack_of(scope)]))
        result[scope] = kept
    return result


def _stack_of(scope: str) -> str:
    return scope.rpartition("layers_")[0]


def _changes(
    ahead: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    counted: np.ndarray,
    left: np.ndarray,
    end: np.ndarray,
) -> dict[str, Any]:
    """Return the sums of a layer's forecast beside what came: HFC/LFC before, after and in the end.

    Args:
      ahead: the forecast change of ln(HFC/LFC) a layer.
      before: HFC/LFC of the layer's input, (batch,).
      after: with what its self-attention added.
      counted: which sequences have two tokens or more.
      left: how many layers are left in the stack, this one among them.
      end: after the last layer of the stack.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        measured = np.log(after / before)
        onward = np.log(end / before) / left
        # Tokens all equal, or with no mean, have no such ratio; NaN of broken weights is kept.
        infinite = [np.isinf(np.log(ratio)) for ratio in (before, after, end)]
        compared = counted & ~np.isinf(ahead) & ~np.stack(infinite).any(axis=0)
        decided = compared & ~(np.abs(ahead) < CLEAR)

    def agrees(change: np.ndarray) -> np.ndarray:
        same = (np.sign(change) == np.sign(ahead)).astype(np.float64)
        return np.where(np.isnan(change), np.nan, same)

    changes = {"forecast_change": ahead, "measured_change": measured, "onward_change": onward}
    signs = {"forecast_agrees": agrees(measured), "onward_agrees": agrees(onward)}
    counts = {"compared": compared, "decided": decided}
    sums = _sums(changes, compared, np) | _sums(signs, decided, np)
    return sums | {name: np.float64(each.sum()) for name, each in counts.items()}


def _sums(values: Mapping[str, Any], counted: Any, numpy: Any = None) -> dict[str, Any]:
    """Return sums over the sequences that count, the first axis, of values and their squares."""
    if numpy is None:
        import jax.numpy as numpy

    found = {}
    for name, each in values.items():
        kept = numpy.where(counted, each, 0)
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
    on_host=on_host,
    finish=finish,
    metrics=metrics,
    version=2,
)
