"""What one stage of a model computes on one batch of tokens: what measures of activations see.

A measure is given the outputs of one stage at a time, in every forward pass that it asked for, and
traced once for all stages that compute the same. `limit` and the models need JAX, so this does; the
measures import neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saturation.attention import attention_scores, tempered_softmax
from saturation.errors import MeasureError
from saturation.limit.ties import judged, ties_reliable
from saturation.models.base import (
    LIMITS,
    Arrays,
    Attention,
    ModelConfig,
    Needs,
    Stack,
    Stage,
    Streams,
)
from saturation.models.variants import LimitRows, StageTaps, Variants, advance, start


@dataclass(frozen=True)
class Asked:
    """What the forward passes of one batch are taken of.

    Attributes:
      config: of the model.
      tokens: {stack: ids (batch, length)}.
      valid: {stack: which positions hold a token}; nothing of a row that is no sequence, so that a
        batch can be filled up to a shape.
      limits: what `saturation` compares the network with.
      scale: the finite c of f(x; cθ).
      terms: of the series that computes the parameter limit.
      key_kinds: (vocab,), whether an id is common or distinct (`measures.scan.cooccurrence`).
      iterated: of which sequences `smoothing` iterates each layer's own operator; None: of none.
    """

    config: ModelConfig
    tokens: Arrays
    valid: Mapping[str, Any]
    limits: Sequence[str] = LIMITS
    scale: float = 1000.0
    terms: int = 4
    key_kinds: Any = None
    iterated: Any = None


@dataclass(frozen=True)
class AttentionWeights:
    """One attention's weights at τ = 1 and, from the same scores, at τ = 0.

    Attributes:
      at_temperature_one: the model's weights.
      saturated: equal weight on every key whose score is the maximum to the bit, 0 elsewhere.
      queries: which queries hold a token.
      allowed: the number of keys each query may attend to.
      uniform: equal weight on each of those, 0 elsewhere.
      distance: key position - query position; None where keys are of another sequence.
    """

    at_temperature_one: Float[Array, "batch heads query key"]
    saturated: Float[Array, "batch heads query key"]
    queries: Bool[Array, "batch query"]
    allowed: Int[Array, "#batch query"]
    uniform: Float[Array, "#batch query key"]
    distance: Int[Array, "query key"] | None


class AttendedKeys(NamedTuple):
    """Which keys of one attention share the largest score, by the rule of ties (MEASURES §6).

    Attributes:
      attended: whether the key does.
      undecided: how many keys of each query are too near the largest score to be told from it, and
        too far to be it. They are counted as not attended.
    """

    attended: Bool[Array, "batch heads query key"]
    undecided: Int[Array, "batch heads query"]


@dataclass(frozen=True)
class State:
    """A residual stream that a stage completes, in every pass.

    Attributes:
      scope: that it is filed under.
      kind: "embedding", "layer", or "final" behind the stack's last norm.
      causal: whether its stack's self-attention is.
      valid: which positions hold a token, (batch, length).
      path: where it is among the streams.
      variants: the streams behind the stage.
      in_range: by c, whether all squares of a sequence's scaled states are finite up to here,
        (batch, 1). Beyond, the next norm would divide by infinity and go on with zeros.
      of_limit: see `limit`; None where it was not asked for.
    """

    scope: str
    kind: str
    causal: bool
    valid: Bool[Array, "batch length"]
    path: tuple[str, ...]
    variants: Variants
    in_range: Mapping[float, Bool[Array, "batch 1"]]
    of_limit: LimitRows | None = None

    @property
    def limit(self) -> LimitRows:
        """The exact limit c → ∞ of f(x; cθ)/c^k (MEASURES §6), of each token."""
        assert self.of_limit is not None
        return self.of_limit

    @property
    def model(self) -> Float[Array, "batch length embed"]:
        """Of the model as it is."""
        return self._in(self.variants.model)

    @property
    def at_temperature_zero(self) -> Float[Array, "batch length embed"]:
        """With every attention at τ = 0 (MEASURES §6)."""
        return self._in(self.variants.attention)

    def scaled(self, c: float) -> Float[Array, "batch length embed"]:
        """Of f(x; cθ)."""
        return self._in(self.variants.scaled[c].streams)

    def slope(self, c: float) -> Float[Array, "batch length embed"]:
        """Its derivative in ln c."""
        return self._in(self.variants.scaled[c].slopes)

    def _in(self, streams: Any) -> Any:
        for key in self.path:
            streams = streams[key]
        return streams


@dataclass(frozen=True)
class AttentionOutputs:
    """What the attention of a stage did, in every pass.

    Attributes:
      attention: what it is.
      asked: what it is taken of.
      state: the stream in front of the stage, of the model as it is.
      taps: what the stage shows of its inside.
      stage: that it is in.
      parameters: of the stage, by their local names.
      left: how many layers are left in the stack, this one among them; int32.
    """

    attention: Attention
    asked: Asked
    state: Float[Array, "batch query embed"]
    taps: StageTaps
    stage: Stage
    parameters: Arrays
    left: Int[Array, ""] | int

    @property
    def heads(self) -> str:
        """The scopes of its heads."""
        return f"{self.attention.path}/head_*"

    @property
    def valid(self) -> Bool[Array, "batch query"]:
        """Which queries hold a token."""
        return self.asked.valid[self.attention.stack]

    @property
    def output(self) -> Float[Array, "batch query embed"]:
        """What it adds to the stream."""
        return self.taps.model["output"]

    @cached_property
    def weights(self) -> AttentionWeights:
        """Its weights, in the model as it is."""
        scores = self.taps.model["scores"]
        mask = scores[:, 0] != -jnp.inf  # of NaN, from broken parameters, not either
        allowed, wide = mask.sum(axis=-1), jnp.result_type(float)
        positions = jnp.arange(scores.shape[-2]), jnp.arange(scores.shape[-1])
        return AttentionWeights(
            at_temperature_one=self.taps.model["weights"],
            saturated=tempered_softmax(scores, 0.0),
            queries=self.valid,
            allowed=allowed,
            uniform=mask.astype(wide) / jnp.maximum(allowed, 1).astype(wide)[..., None],
            distance=None
            if self.attention.kind == "cross"
            else positions[1] - positions[0][:, None],
        )

    @property
    def limit_weights(self) -> LimitRows:
        """Its weights in the parameter limit, the rows of each query."""
        assert self.taps.limits is not None
        assert self.taps.limits.weights is not None
        return self.taps.limits.weights

    @property
    def ties_reliable(self) -> bool:
        """Whether equal scores can be told from nearly equal ones: in float64 alone."""
        return ties_reliable(jnp.result_type(float))

    @cached_property
    def attended_keys(self) -> AttendedKeys:
        """The keys that each query of the model as it is attends at τ = 0.

        Scores are those of the widest float. Where that is no float64, they are compared to the
        bit.
        """
        assert self.taps.wide is not None
        scores = self.taps.wide["scores"]
        largest = jnp.max(scores, axis=-1, keepdims=True)
        allowed = scores > -jnp.inf
        if not self.ties_reliable:
            undecided = jnp.zeros(scores.shape[:-1], jnp.int32)
            return AttendedKeys(allowed & (scores == largest), undecided)
        bound = self._score_bounds()
        of_largest = jnp.take_along_axis(bound, jnp.argmax(scores, -1, keepdims=True), axis=-1)
        below = jnp.where(allowed, largest - scores, jnp.inf)
        zero, undecided = judged(below, jnp.maximum(bound, of_largest), self._longest_sum())
        return AttendedKeys(allowed & zero, jnp.sum(allowed & undecided, axis=-1))

    def kinds_of_keys(self) -> Int[Array, "batch key"]:
        """The kind of every key's token, of this batch.

        Raises:
          MeasureError: the kinds were not given.
        """
        if self.asked.key_kinds is None:
            raise MeasureError(
                "The stage was given no key_kinds; make them of a corpus with "
                "saturation.measures.scan.cooccurrence.key_kinds."
            )
        keys = jnp.asarray(self.asked.tokens[self.attention.keys_stack])
        return jnp.asarray(self.asked.key_kinds, jnp.int32)[keys]

    def parameter(self, name: str) -> Array:
        """Return a parameter of the stage by its name in the checkpoint, in the widest float."""
        local = {there: ours for ours, there in self.stage.parameters.items()}
        return jnp.asarray(self.parameters[local[name]], jnp.result_type(float))

    def _score_bounds(self) -> Float[Array, "batch heads query key"]:
        """B = Σ|q||k| + |bias| of every score."""
        assert self.taps.wide is not None
        query, key = (jnp.abs(self.taps.wide[name]) for name in ("query", "key"))
        bias = self.taps.wide.get("bias")
        return attention_scores(query, key, None if bias is None else jnp.abs(bias))

    def _longest_sum(self) -> int:
        """The longest contraction that a score can have met."""
        lengths = (ids.shape[-1] for ids in self.asked.tokens.values())
        return max(self.asked.config.longest_sum, *lengths)


@dataclass(frozen=True)
class StageOutputs:
    """What one stage computes on one batch of tokens, in every pass that is asked for.

    Attributes:
      asked: what it is taken of.
      states: the residual streams that it completes.
      attention: what its attention did; None where it has none.
      logits: of the output head, (batch, length, vocab); None of any other stage.
    """

    asked: Asked
    states: tuple[State, ...]
    attention: AttentionOutputs | None
    logits: Float[Array, "batch length vocab"] | None = None


def stage_outputs(
    asked: Asked,
    stage: Stage,
    parameters: Arrays,
    before: Streams,
    after: Variants,
    taps: StageTaps,
    in_range: Mapping[float, Array],
    left: Int[Array, ""] | int,
) -> tuple[StageOutputs, dict[float, Array]]:
    """Return the outputs of a stage, and which sequences are in range behind it.

    Args:
      asked: what they are taken of.
      stage: of the model.
      parameters: of the stage, by their local names.
      before: the streams of the model as it is, in front of the stage.
      after: the streams of all passes behind it.
      taps: what the stage shows of its inside.
      in_range: by c, whether all squares of a sequence's scaled states are finite so far.
      left: how many layers are left in the stack, this one among them.
    """
    found, in_range = [], dict(in_range)
    for number, (scope, path) in enumerate(stage.scopes.items()):
        stack, kind = _stack_and_kind(asked.config, scope)
        causal = any(a.causal for a in asked.config.attentions if a.stack == stack.name)
        state = State(
            scope,
            kind,
            causal,
            asked.valid[stack.name],
            path,
            after,
            in_range,
            None if taps.limits is None else taps.limits.states[number],
        )
        if kind != "embedding":
            in_range = {c: each & _finite(state, c) for c, each in in_range.items()}
        found.append(replace(state, in_range=in_range))
    attention = None
    if stage.attention is not None:
        attention = AttentionOutputs(
            stage.attention, asked, before["x"], taps, stage, parameters, left
        )
    logits = taps.model.get("logits")
    return StageOutputs(asked, tuple(found), attention, logits), in_range


def nothing_in_range(needs: Needs, batch: int) -> dict[float, Bool[Array, "batch 1"]]:
    """Return by c that every sequence is in range: nothing has been computed yet."""
    return {c: jnp.ones((batch, 1), bool) for c in sorted(needs.scales)}


def needed_stages(config: ModelConfig, needs: Needs) -> tuple[Stage, ...]:
    """Return the stages; the output head only where a measure looks at its logits."""
    return tuple(stage for stage in config.stages() if needs.logits or not stage.head)


def layers_left(config: ModelConfig, stage: Stage) -> int:
    """Return how many layers are left in the stack of a stage's attention; 0 where it has none."""
    if stage.attention is None:
        return 0
    [stack] = [each for each in config.stacks if each.name == stage.attention.stack]
    return len(stack.layers) - stack.layers.index(stage.attention.layer)


def outputs_of_stages(
    asked: Asked, parameters: Arrays, needs: Needs
) -> Iterator[tuple[Stage, StageOutputs]]:
    """Yield each stage of a model with its outputs: all of it, in memory, compiled by the caller.

    Args:
      asked: what they are taken of.
      parameters: {name in the checkpoint: array}.
      needs: the forward passes.
    """
    variants = start(needs)
    in_range = nothing_in_range(needs, len(next(iter(asked.tokens.values()))))
    for stage in needed_stages(asked.config, needs):
        ours = {local: parameters[name] for local, name in stage.parameters.items()}
        before = variants.model
        given = Variants(before) if stage.head else variants  # of the model as it is alone
        variants, taps = advance(stage, given, ours, asked.tokens, asked.terms)
        left = layers_left(asked.config, stage)
        outputs, in_range = stage_outputs(
            asked, stage, ours, before, variants, taps, in_range, left
        )
        yield stage, outputs


def _stack_and_kind(config: ModelConfig, scope: str) -> tuple[Stack, str]:
    for stack in config.stacks:
        if scope in (stack.embedding, *stack.scopes):
            kinds = {stack.embedding: "embedding", stack.final: "final"}
            return stack, kinds.get(scope, "layer")
    raise MeasureError(f"No stack of the model has a state {scope}.")


def _finite(state: State, c: float) -> Bool[Array, "batch 1"]:
    squares = jnp.square(state.scaled(c)).sum(axis=-1)
    return (jnp.isfinite(squares) | ~state.valid).all(axis=-1, keepdims=True)
