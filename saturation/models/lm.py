"""Language models of one stack, decoders and encoders, as one Flax module.

A block adds to the residual stream x what its attention and its feed-forward make of it. Where the
norms stand is what families differ in most (`LMConfig.norm_placement`):

    before   x += attention(norm(x));    x += mlp(norm(x))      GPT-2, Llama, OLMo, Qwen 2
             x += attention(norm(x)) + mlp(norm'(x))            GPT-NeoX (parallel residual)
    after    x = norm(x + attention(x)); x = norm(x + mlp(x))   BERT, RoBERTa
    branch   x += norm(attention(x));    x += norm(mlp(x))      OLMo 2

Sources: `lm_settings` names the paper of each family, and transformers' code is what parity is to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import mul
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from saturation.attention import at_least_float32, attend, attention_scores, tempered_softmax
from saturation.errors import ArgumentError
from saturation.models.base import Streams, Taps
from saturation.models.inputs import Temperatures, checked_tokens, temperatures_by_path
from saturation.models.layers import Embedding
from saturation.models.lm_config import LMConfig
from saturation.models.rotary import Rotary

PADDING = -1  # stands where a row has no token, since every other id can be one's
KERNEL = nn.initializers.normal(stddev=0.02)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "silu": nn.silu,
}


def valid_tokens(
    config: LMConfig, tokens: Int[Array | np.ndarray, "batch length"]
) -> Bool[Array, "batch length"]:
    """Which positions hold a token: neither `PADDING` nor the id that the model fills up with."""
    return config.valid_tokens({"": jnp.asarray(tokens)})[""]


class LM(nn.Module):
    """The model: tokens to logits, with every intermediate that a measure may want.

    `LM(config).apply({"params": p}, tokens)` takes plain arrays under the canonical names
    (`config.parameter_shapes()`).

    Attributes:
      config: sizes and form.
      dtype: what to compute in; None is the embedding's own dtype.
    """

    config: LMConfig
    dtype: np.dtype | None = None

    def setup(self) -> None:
        """Name the parts."""
        config, embed = self.config, self.config.emb_dim
        self.token_embedder = Embedding(config.vocab_size, embed, self.dtype)
        if config.max_positions:
            self.position_embedder = Embedding(config.max_positions, embed, self.dtype)
        if config.segments:
            self.segment_embedder = Embedding(config.segments, embed, self.dtype)
        if config.embedding_norm:
            self.embedding_layer_norm = Norm(config)
        self.layers = [Block(config, config.score_scale(i)) for i in range(config.num_layers)]
        if config.norm_placement != "after":
            self.final_norm = Norm(config)
        if config.head_transform:
            self.head_transform = Dense(embed, True)
            self.head_layer_norm = Norm(config)
        if config.has_head:
            self.logits_dense = Head(config)

    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "batch length"],
        mask: Bool[Array | np.ndarray, "batch length"] | None = None,
        segments: Int[Array | np.ndarray, "batch length"] | None = None,
        *,
        temperature: ArrayLike | Temperatures = 1.0,
        attention_weights: bool = False,
    ) -> tuple[Float[Array, "batch length vocab"], Taps]:
        """Return the logits and the taps.

        Args:
          tokens: ids. Where `mask` is not given, −1 and `config.pad_token_id` are padding, which
            nobody attends to and which no position is counted for, on whichever side it stands.
          mask: True where there is a token.
          segments: ids of segments; 0 where they are not given.
          temperature: of every attention, a number or an array that broadcasts to (batch, heads,
            query, key); or a mapping from the path of an attention (`config.attention_names()`) to
            its own, and 1 for those that it does not name.
          attention_weights: whether the taps have what is inside the attentions.

        Returns:
          Logits in at least float32, and taps: `embedding`, `layers_0` (the residual stream behind
          the block) …, `final` (behind the last norm, where there is one), all (batch, length,
          embed); and, if asked for, `layers_0/attention/weights`, `…/scores` (−inf where a key is
          masked), both (batch, heads, query, key), `…/query`, `…/key` (batch, length, heads,
          head_dim), whose products the scores are, and `…/output`, what the attention adds to the
          stream.

        Raises:
          ArgumentError: tokens that are not integers of shape (batch, length), more of them than
            there are positions, or a temperature that cannot be used.
        """
        ids = checked_tokens("tokens", tokens)
        valid = valid_tokens(self.config, ids) if mask is None else jnp.asarray(mask)
        temperatures = temperatures_by_path(self.config.attention_names(), temperature)
        streams = self.embed(ids, valid, None if segments is None else jnp.asarray(segments))
        taps: Taps = {"embedding": streams["x"]}
        for i, (block, path) in enumerate(zip(self.layers, temperatures, strict=True)):
            streams, inner = block("attention", streams, valid, temperatures[path])
            streams, _ = block("mlp", streams, valid, 1.0)
            taps[f"layers_{i}"] = streams["x"]
            if attention_weights:
                taps |= {f"{path}/{name}": tap for name, tap in inner.items()}
        streams = self.end(streams)
        if self.config.norm_placement != "after":
            taps["final"] = streams["x"]
        return self.logits(streams), taps

    def embed(
        self,
        ids: Int[Array, "batch length"],
        valid: Bool[Array, "batch length"],
        segments: Int[Array, "batch length"] | None = None,
    ) -> Streams:
        """Return the stream at the embedding."""
        config = self.config
        self._check_length(ids.shape[1])
        x = self.token_embedder(jnp.where(valid, ids, 0))
        if config.segments:
            x = x + self.segment_embedder(jnp.zeros_like(ids) if segments is None else segments)
        if config.max_positions:
            x = x + self.position_embedder(positions(config, valid))
        return {"x": self.embedding_layer_norm(x) if config.embedding_norm else x}

    def end(self, streams: Streams) -> Streams:
        """Return the stream behind the last norm."""
        after = self.config.norm_placement == "after"
        return streams if after else {"x": self.final_norm(streams["x"])}

    def logits(self, streams: Streams) -> Float[Array, "batch length vocab"]:
        """Return the logits in at least float32."""
        config, x = self.config, streams["x"]
        x = x.astype(at_least_float32(x.dtype))
        if config.head_transform:
            x = self.head_layer_norm(ACTIVATIONS[config.activation](self.head_transform(x)))
        if config.logits_via_embedding:
            x = self.token_embedder.attend(x)
        return self.logits_dense(x) if config.has_head else x

    def _check_length(self, length: int) -> None:
        config = self.config
        if config.max_positions and length > (
            most := config.max_positions - config.position_offset
        ):
            raise ArgumentError(
                f"The model has learned positions for {most} tokens, and these rows have {length}."
            )


class Block(nn.Module):
    """A block's two branches, each with its norm; called once for each, by name.

    Attributes:
      config: of the model.
      score_scale: what scores are multiplied by.
    """

    config: LMConfig
    score_scale: float

    @nn.compact
    def __call__(
        self,
        part: str,
        streams: Streams,
        valid: Bool[Array, "batch length"],
        temperature: ArrayLike,
    ) -> tuple[Streams, Taps]:
        """Return the streams behind the branch, and the attention's taps.

        `x` is the residual stream. Where residual branches are parallel, the attention leaves it
        as it is and puts what it would add beside it, as `branch`.
        """
        config, x = self.config, streams["x"]
        first, second = config.norm_names()
        norm = Norm(config, name=first if part == "attention" else second)
        y = norm(x) if config.norm_placement == "before" else x
        taps: Taps = {}
        if part == "attention":
            y, taps = Attention(config, self.score_scale, name="attention")(y, valid, temperature)
        else:
            y = FeedForward(config, name="mlp")(y)
        if config.norm_placement == "branch":
            y = norm(y)
        if taps:
            taps["output"] = y
        if config.parallel_residual and part == "attention":
            return {"x": x, "branch": y}, taps
        x = x + streams["branch"] + y if config.parallel_residual else x + y
        return {"x": norm(x) if config.norm_placement == "after" else x}, taps


class Attention(nn.Module):
    """Self-attention; kernels are joined over heads, (embed, heads·head_dim), heads major."""

    config: LMConfig
    score_scale: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        valid: Bool[Array, "batch length"],
        temperature: ArrayLike,
    ) -> tuple[Float[Array, "batch length embed"], Taps]:
        """Return the attended output, and the taps but for `output`."""
        config = self.config
        groups = config.num_heads // config.num_key_value_heads

        def heads(name: str, count: int, norm: str | None = None) -> Array:
            y = Dense(count * config.head_dim, config.query_key_value_bias, name=name)(x)
            if norm and config.query_key_norm:
                y = Norm(config, name=norm)(y)
            if (bound := config.query_key_value_clip) is not None:
                y = jnp.clip(y, -bound, bound)
            return y.reshape(*x.shape[:-1], count, config.head_dim)

        query = heads("query", config.num_heads, "query_norm")
        key = heads("key", config.num_key_value_heads, "key_norm")
        value = heads("value", config.num_key_value_heads)
        if config.rotary:
            query, key = (turned(config.rotary, y) for y in (query, key))
        query = query * self.score_scale
        key, value = (jnp.repeat(y, groups, axis=2) if groups > 1 else y for y in (key, value))

        mask = attention_mask(config.causal, valid)
        scores = attention_scores(query, key)
        weights = tempered_softmax(scores, temperature, where=mask)
        attended = attend(weights, value)
        joined = attended.reshape(*attended.shape[:-2], -1)  # (batch, query, heads·head_dim)
        output = Dense(config.emb_dim, config.attention_out_bias, name="out")(joined)
        scores = jnp.where(mask, scores, -jnp.inf)
        return output, {"weights": weights, "scores": scores, "query": query, "key": key}


class FeedForward(nn.Module):
    """wo(activation(wi(x))), or wo(activation(wi_0(x)) · wi_1(x)) where it is gated."""

    config: LMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        """Return the block's output, in the dtype of x."""
        config = self.config
        first, *others = (
            Dense(config.mlp_dim, config.mlp_bias, name=name)(x)
            for name in config.input_projections
        )
        hidden = reduce(mul, others, ACTIVATIONS[config.activation](first))
        return Dense(config.emb_dim, config.mlp_bias, name="wo")(hidden)


class Dense(nn.Module):
    """x @ kernel + bias, in the dtype of x."""

    features: int
    has_bias: bool

    @nn.compact
    def __call__(self, x: Float[Array, "*batch into"]) -> Float[Array, "*batch out"]:
        """Return the product, and the bias added where there is one."""
        kernel = self.param("kernel", KERNEL, (x.shape[-1], self.features))
        y = x @ jnp.asarray(kernel).astype(x.dtype)
        if not self.has_bias:
            return y
        bias: Any = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + jnp.asarray(bias).astype(x.dtype)


class Norm(nn.Module):
    """y = scale · (x − mean)/√(mean((x − mean)²) + ε) + bias, or likewise with no mean taken off.

    Ba et al. 2016 (arXiv 1607.06450); Zhang and Sennrich 2019 (arXiv 1910.07467). Scale and bias
    are there where the config says so. Means are taken in at least float32.
    """

    config: LMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Return the normalised x, in the dtype of x."""
        config, shape = self.config, (x.shape[-1],)
        y = x.astype(at_least_float32(x.dtype))
        if config.norm == "layer_norm":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        mean_square = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
        y = (y * jax.lax.rsqrt(mean_square + config.norm_epsilon)).astype(x.dtype)
        if config.norm_scale:
            y = y * jnp.asarray(self.param("scale", nn.initializers.ones, shape)).astype(x.dtype)
        if config.norm_bias:
            y = y + jnp.asarray(self.param("bias", nn.initializers.zeros, shape)).astype(x.dtype)
        return y


class Head(nn.Module):
    """The output head's own arrays: a kernel unless it is the embedding, and perhaps a bias."""

    config: LMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch vocab"]:
        """Return the logits, of x or, where the kernel is the embedding, of its product with it."""
        config = self.config
        if not config.logits_via_embedding:
            shape = (config.emb_dim, config.vocab_size)
            x = x @ jnp.asarray(self.param("kernel", KERNEL, shape)).astype(x.dtype)
        if config.logits_bias:
            bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,))
            x = x + jnp.asarray(bias).astype(x.dtype)
        return x


def positions(config: LMConfig, valid: Bool[Array, "batch length"]) -> Int[Array, "batch length"]:
    """Return the row of the learned positions of each token: how many stand before it, + offset."""
    before = jnp.maximum(jnp.cumsum(valid.astype(jnp.int32), axis=-1) - 1, 0)
    return before + config.position_offset


def attention_mask(
    causal: bool, valid: Bool[Array, "batch length"]
) -> Bool[Array, "batch 1 query key"]:
    """Return which keys each query may attend to: tokens, and where it is causal, earlier ones.

    Padding attends to itself too, so that no query is without a key; nobody reads its row.
    """
    length = valid.shape[-1]
    allowed = valid[:, None, None, :] | jnp.eye(length, dtype=bool)
    return allowed & jnp.tril(jnp.ones((length, length), bool)) if causal else allowed


def turned(
    rotary: Rotary, x: Float[Array, "batch length heads head_dim"]
) -> Float[Array, "batch length heads head_dim"]:
    """Return queries or keys with each pair of dimensions turned by its position's angle."""
    angles, half = rotary.angles(x.shape[1]), rotary.dims // 2
    cos, sin = (
        jnp.asarray(rotary.amplitude * turn(angles)[:, None, :], x.dtype)  # (length, 1, pairs)
        for turn in (np.cos, np.sin)
    )
    first, second, rest = jnp.split(x, [half, rotary.dims], axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
