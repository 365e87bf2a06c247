"""The forward passes that measures of activations share, each traced when first asked for.

`limit` and the models need JAX, so this file does; the measures import neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from saturation.attention import attention_scores, tempered_softmax
from saturation.errors import MeasureError
from saturation.limit import Limit, saturate, scale_parameters
from saturation.limit.ties import judged, ties_reliable
from saturation.models import T5, T5Config, valid_decoder_tokens, valid_encoder_tokens
from saturation.models.base import LIMITS
from saturation.models.t5 import Taps

Parameters = dict[str, Any]


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


class ModelOutputs:
    """What one T5 computes on one batch of tokens: as it is, and in each limit.

    A row whose encoder tokens are all padding is no sequence: nothing of it is valid, so that a
    batch can be filled up to a shape. The precision of matrix products is the caller's
    `jax.default_matmul_precision`.

    Args:
      config: of the model.
      params: its nested parameters; forward passes compute in their dtype.
      encoder_input_tokens: (batch, encoder length), 0 is padding.
      decoder_input_tokens: (batch, decoder length), shifted right or as they are.
      scale: the finite c of f(x; cθ).
      terms: terms of the series that computes the parameter limit.
      limits: what `saturation` compares the network with; the others are not computed for it.
      key_kinds: (vocab,), whether an id is common or distinct (`measures.cooccurrence`).
      iterated: of which sequences `smoothing` iterates each layer's own operator; None is of none.
    """

    def __init__(
        self,
        config: T5Config,
        params: Parameters,
        encoder_input_tokens: Int[ArrayLike, "batch encoder_length"],
        decoder_input_tokens: Int[ArrayLike, "batch decoder_length"],
        scale: float | Array = 1000.0,
        terms: int = 4,
        limits: Sequence[str] = LIMITS,
        key_kinds: Int[ArrayLike, " vocab"] | None = None,
        iterated: Bool[ArrayLike, " batch"] | None = None,
    ) -> None:
        self.config = config
        self.params = params
        self.encoder_input_tokens = jnp.asarray(encoder_input_tokens)
        self.decoder_input_tokens = jnp.asarray(decoder_input_tokens)
        self.scale = scale
        self.terms = terms
        self.limits = tuple(limits)
        self.key_kinds = key_kinds
        none = jnp.zeros(len(self.encoder_input_tokens), bool)
        self.iterated = none if iterated is None else jnp.asarray(iterated)

    @property
    def layers(self) -> tuple[str, ...]:
        """The scopes of a residual stream: after each block, and after the norm that ends a stack.

        [M]'s last layer is the one after that norm, since Hugging Face's hidden states end with it.
        """
        return tuple(scope for scopes in self.stacks.values() for scope in scopes)

    @property
    def stacks(self) -> dict[str, tuple[str, ...]]:
        """Those of `layers` that are the encoder's, and the decoder's."""
        config = self.config
        counts = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
        return {
            stack: (*(f"{stack}/layers_{i}" for i in range(count)), f"{stack}/final")
            for stack, count in counts.items()
        }

    @cached_property
    def encoder_valid(self) -> Bool[Array, "batch encoder_length"]:
        """Which encoder positions hold a token."""
        return valid_encoder_tokens(self.encoder_input_tokens)

    @cached_property
    def decoder_valid(self) -> Bool[Array, "batch decoder_length"]:
        """Which decoder positions hold a token, of the rows that are sequences."""
        is_sequence = self.encoder_valid.any(axis=-1, keepdims=True)
        return valid_decoder_tokens(self.decoder_input_tokens) & is_sequence

    def valid(self, scope: str) -> Bool[Array, "batch length"]:
        """Which positions of the stack that a scope belongs to hold a token."""
        return self.encoder_valid if scope.startswith("encoder/") else self.decoder_valid

    @cached_property
    def at_temperature_one(self) -> Taps:
        """The model's taps, with the weights and scores of every attention."""
        return self.taps(self.params, attention_weights=True)

    @cached_property
    def attention_limit(self) -> Taps:
        """The taps with every attention at τ = 0 (MEASURES §6)."""
        return self.taps(self.params, temperature=0.0)

    @cached_property
    def parameter_limit(self) -> dict[str, Limit]:
        """The exact limit c → ∞ of f(x; cθ)/c^k, by layer (MEASURES §6), and `PATH/weights`."""

        def states(params: Parameters) -> Taps:
            taps = self.taps(params, attention_weights=True)
            weights = [f"{path}/weights" for path in self.config.attention_names()]
            return {name: taps[name] for name in (*self.layers, *weights)}

        # Traced even in eager mode, where an element without a limit would raise: it is counted.
        return jax.jit(saturate(states, self.terms))(self.wide_params)

    @property
    def wide_params(self) -> Parameters:
        """The parameters in the widest float there is: float64 where x64 is on.

        What scales them needs it: scores reach c^4, and what breaks their ties is c^3 smaller.
        """
        return jax.tree.map(lambda p: jnp.asarray(p, jnp.result_type(float)), self.params)

    @cached_property
    def wide(self) -> Taps:
        """The taps of the model as it is, computed in the widest float there is."""
        return self.taps(self.wide_params, attention_weights=True)

    @cached_property
    def ties_reliable(self) -> bool:
        """Whether equal scores can be told from nearly equal ones: in float64 alone."""
        return ties_reliable(jnp.result_type(float))

    def attended_keys(self, path: str) -> AttendedKeys:
        """Return the keys that each query of an attention of the model as it is attends at τ = 0.

        Scores are those of `wide`. Where that is no float64, they are compared to the bit.
        """
        scores = self.wide[f"{path}/scores"]
        largest = jnp.max(scores, axis=-1, keepdims=True)
        allowed = scores > -jnp.inf
        if not self.ties_reliable:
            undecided = jnp.zeros(scores.shape[:-1], jnp.int32)
            return AttendedKeys(allowed & (scores == largest), undecided)
        bound = self._score_bounds(path)
        of_largest = jnp.take_along_axis(bound, jnp.argmax(scores, -1, keepdims=True), axis=-1)
        below = jnp.where(allowed, largest - scores, jnp.inf)
        zero, undecided = judged(below, jnp.maximum(bound, of_largest), self._longest_sum())
        return AttendedKeys(allowed & zero, jnp.sum(allowed & undecided, axis=-1))

    def _score_bounds(self, path: str) -> Float[Array, "batch heads query key"]:
        """B = Σ|q||k| + |bias| of every score."""
        query, key = (jnp.abs(self.wide[f"{path}/{name}"]) for name in ("query", "key"))
        bias = self.wide.get(f"{path}/bias")
        return attention_scores(query, key, None if bias is None else jnp.abs(bias))

    def _longest_sum(self) -> int:
        """The longest contraction that a score can have met."""
        config = self.config
        lengths = self.encoder_input_tokens.shape[-1], self.decoder_input_tokens.shape[-1]
        joined = config.num_heads * config.head_dim
        return max(config.emb_dim, joined, config.mlp_dim, *lengths)

    @cached_property
    def scaled(self) -> Taps:
        """The taps of f(x; cθ): states grow as c^3 and more."""
        return self.taps(scale_parameters(self.wide_params, self.scale))

    @cached_property
    def scaled_in_range(self) -> dict[str, Bool[Array, "batch 1"]]:
        """Whether all squares of a sequence's scaled states are finite up to each layer.

        Beyond, the next norm would divide by infinity and go on with zeros.
        """
        in_range = jnp.ones((len(self.encoder_input_tokens), 1), bool)
        found = {}
        for scope in self.layers:
            squares = jnp.square(self.scaled[scope]).sum(axis=-1)
            finite = jnp.isfinite(squares) | ~self.valid(scope)
            in_range = in_range & finite.all(axis=-1, keepdims=True)
            found[scope] = in_range
        return found

    @cached_property
    def attentions(self) -> dict[str, AttentionWeights]:
        """Every attention of the model as it is, by its path."""
        return {path: self._attention(path) for path in self.config.attention_names()}

    def taps(
        self, params: Parameters, temperature: ArrayLike = 1.0, *, attention_weights: bool = False
    ) -> Taps:
        """Return the taps of the model with these parameters, on this batch."""
        _, taps = T5(self.config).apply(
            {"params": params},
            self.encoder_input_tokens,
            self.decoder_input_tokens,
            temperature=temperature,
            attention_weights=attention_weights,
        )
        return cast(Taps, taps)

    def kinds_of_keys(self, path: str) -> Int[Array, "batch key"]:
        """The kind of every key's token of one attention, of this batch.

        Raises:
          MeasureError: the kinds were not given.
        """
        if self.key_kinds is None:
            raise MeasureError(
                "ModelOutputs was given no key_kinds; make them of a corpus with "
                "saturation.measures.scan.cooccurrence.key_kinds."
            )
        keys = self.decoder_input_tokens if _is_causal(path) else self.encoder_input_tokens
        return jnp.asarray(self.key_kinds, jnp.int32)[keys]

    def _attention(self, path: str) -> AttentionWeights:
        scores = self.at_temperature_one[f"{path}/scores"]
        query = jnp.arange(scores.shape[-2])
        key = jnp.arange(scores.shape[-1])
        mask = (key <= query[:, None])[None] if _is_causal(path) else self.encoder_valid[:, None, :]
        mask = jnp.broadcast_to(mask, (len(mask), len(query), len(key)))
        allowed, wide = mask.sum(axis=-1), jnp.result_type(float)
        return AttentionWeights(
            at_temperature_one=self.at_temperature_one[f"{path}/weights"],
            saturated=tempered_softmax(scores, 0.0),
            queries=self.valid(path),
            allowed=allowed,
            uniform=mask.astype(wide) / jnp.maximum(allowed, 1).astype(wide)[..., None],
            distance=None if path.endswith("/encoder_decoder_attention") else key - query[:, None],
        )


def _is_causal(path: str) -> bool:
    return path.endswith("/self_attention")
