"""T5 in its three published forms: v1.0, v1.1 (gated, untied) and UMT5 (a bias in every layer).

Raffel et al. 2020 (arXiv 1910.10683). Each block adds to the residual stream what it makes of the
normalised stream, and the stream is normalised once more at the end of each stack:

    x += attention(norm(x));  [x += cross_attention(norm(x), encoded);]  x += feed_forward(norm(x))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from saturation.attention import at_least_float32
from saturation.errors import ArgumentError
from saturation.models.config import T5Config
from saturation.models.layers import (
    Embedding,
    FeedForward,
    Kernel,
    MultiHeadAttention,
    RelativePositionBias,
    RMSNorm,
)

Taps = dict[str, Array]
Temperatures = Mapping[str, ArrayLike]


def valid_encoder_tokens(
    tokens: Int[Array | np.ndarray, "batch length"],
) -> Bool[Array, "batch length"]:
    """Which encoder positions hold a token: 0 is padding."""
    return jnp.asarray(tokens) > 0


def valid_decoder_tokens(
    tokens: Int[Array | np.ndarray, "batch length"],
) -> Bool[Array, "batch length"]:
    """Which decoder inputs count: the first, though it holds 0 to start with, and those not 0."""
    return (jnp.asarray(tokens) > 0) | (jnp.arange(tokens.shape[-1]) == 0)


class T5(nn.Module):
    """The encoder-decoder: tokens to logits, with every intermediate a measure may want.

    `T5(config).apply({"params": p}, encoder_input_tokens, decoder_input_tokens)` takes plain arrays
    under T5X's unscanned names. `init` gives them boxed with their logical axes:
    `flax.linen.unbox` takes the arrays out.

    Attributes:
      config: sizes and form.
      dtype: what to compute in; None is the embedding's own dtype.
    """

    config: T5Config
    dtype: np.dtype | None = None

    def setup(self) -> None:
        """Name the parts as T5X does."""
        config = self.config
        self.token_embedder = Embedding(config.vocab_size, config.emb_dim, self.dtype)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def __call__(
        self,
        encoder_input_tokens: Int[Array | np.ndarray, "batch encoder_length"],
        decoder_input_tokens: Int[Array | np.ndarray, "batch decoder_length"],
        *unexpected: Any,
        temperature: ArrayLike | Temperatures = 1.0,
        attention_weights: bool = False,
    ) -> tuple[Float[Array, "batch decoder_length vocab"], Taps]:
        """Return the logits and the taps.

        Args:
          encoder_input_tokens: ids; 0 is padding, which nobody attends to.
          decoder_input_tokens: ids, already shifted right, so that the first is usually 0.
          temperature: of every attention, a number or an array that broadcasts to (batch, heads,
            query, key); or a mapping from the path of an attention (`config.attention_names()`) to
            its own, and 1 for those it does not name.
          attention_weights: whether the taps have the attentions' weights, scores and outputs,
            and the queries, keys and biases that scores are made of.

        Returns:
          Logits in at least float32, and taps: `encoder/embedding`, `encoder/layers_0` (the
          residual stream after the block) …, `encoder/final` (after the last norm), the same of
          the decoder, all (batch, length, embed); and `encoder/layers_0/attention/weights`,
          `decoder/layers_0/self_attention/weights`,
          `decoder/layers_0/encoder_decoder_attention/weights`, (batch, heads, query, key), with
          `…/scores` beside each: before the temperature, -inf where a key is masked, and
          `…/output`: what the attention adds to the stream, (batch, length, embed).
          Under jit, what nobody reads of these costs nothing.

        Raises:
          ArgumentError: tokens that are not integers of shape (batch, length), or a temperature
            that cannot be used.
          TypeError: a third positional argument: T5X's modules take targets there.
        """
        _refuse_positional("__call__", "encoder_input_tokens, decoder_input_tokens", unexpected)
        asked: Any = {"temperature": temperature, "attention_weights": attention_weights}
        encoded, taps = self.encode(encoder_input_tokens, **asked)
        logits, decoder_taps = self.decode(
            encoded, encoder_input_tokens, decoder_input_tokens, **asked
        )
        return logits, taps | decoder_taps

    def encode(
        self,
        encoder_input_tokens: Int[Array | np.ndarray, "batch length"],
        *unexpected: Any,
        temperature: ArrayLike | Temperatures = 1.0,
        attention_weights: bool = False,
    ) -> tuple[Float[Array, "batch length embed"], Taps]:
        """Return the encoder's output and taps; arguments as for the whole model."""
        _refuse_positional("encode", "encoder_input_tokens", unexpected)
        tokens = _checked_tokens("encoder_input_tokens", encoder_input_tokens)
        mask = valid_encoder_tokens(tokens)[:, None, None, :]
        temperatures = self._temperatures(temperature)
        encoded, taps = self.encoder(self.token_embedder(tokens), mask, temperatures)
        return encoded, _named("encoder", taps, attention_weights)

    def decode(
        self,
        encoded: Float[Array, "batch encoder_length embed"],
        encoder_input_tokens: Int[Array | np.ndarray, "batch encoder_length"],
        decoder_input_tokens: Int[Array | np.ndarray, "batch decoder_length"],
        *unexpected: Any,
        temperature: ArrayLike | Temperatures = 1.0,
        attention_weights: bool = False,
    ) -> tuple[Float[Array, "batch decoder_length vocab"], Taps]:
        """Return the logits and the decoder's taps, given the encoder's output and its tokens."""
        names = "encoded, encoder_input_tokens, decoder_input_tokens"
        _refuse_positional("decode", names, unexpected)
        tokens = _checked_tokens("decoder_input_tokens", decoder_input_tokens)
        sources = _checked_tokens("encoder_input_tokens", encoder_input_tokens)
        logits, taps = self.decoder(
            self.token_embedder(tokens),
            encoded,
            valid_encoder_tokens(sources)[:, None, None, :],
            self._temperatures(temperature),
            attend=self.token_embedder.attend,
        )
        return logits, _named("decoder", taps, attention_weights)

    def _temperatures(self, temperature: ArrayLike | Temperatures) -> Temperatures:
        """The temperature of every attention by its path."""
        names = self.config.attention_names()
        if not isinstance(temperature, Mapping):
            return dict.fromkeys(names, temperature)
        unknown = sorted(set(temperature) - set(names))
        if unknown:
            raise ArgumentError(
                f"No attention is called {unknown[0]!r}; the model's are {', '.join(names)}."
            )
        return {name: temperature.get(name, 1.0) for name in names}


class Encoder(nn.Module):
    """The encoder's layers and final norm."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        mask: Bool[Array, "batch 1 1 length"],
        temperatures: Temperatures,
    ) -> tuple[Float[Array, "batch length embed"], Taps]:
        """Return the normalised stream and the stack's taps."""
        config, taps = self.config, {"embedding": x}
        bias = None if config.per_layer_relative_bias else _relative_bias(config, x, True)
        for i in range(config.num_encoder_layers):
            layer = EncoderLayer(config, name=f"layers_{i}")
            x, inner = layer(x, mask, bias, temperatures)
            taps |= {f"layers_{i}": x} | _under(f"layers_{i}", inner)
        taps["final"] = RMSNorm(config.layer_norm_epsilon, name="encoder_norm")(x)
        return taps["final"], taps


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        mask: Bool[Array, "batch 1 1 length"],
        bias: Float[Array, "1 heads length length"] | None,
        temperatures: Temperatures,
    ) -> tuple[Float[Array, "batch length embed"], Taps]:
        """Return the stream after the block and the taps; without a bias, the layer has one."""
        config, path = self.config, f"encoder/{self.name}"
        norm = partial(RMSNorm, config.layer_norm_epsilon)
        if bias is None:
            bias = _relative_bias(config, x, True)

        y = norm(name="pre_attention_layer_norm")(x)
        y, taps = MultiHeadAttention(config, config.attention_spectrum, name="attention")(
            y, y, mask, bias, temperatures[f"{path}/attention"]
        )
        x = x + y

        y = norm(name="pre_mlp_layer_norm")(x)
        x = x + FeedForward(config, name="mlp")(y)
        return x, _under("attention", taps)


class Decoder(nn.Module):
    """The decoder's layers, final norm and output head."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        encoded: Float[Array, "batch key embed"],
        encoder_mask: Bool[Array, "batch 1 1 key"],
        temperatures: Temperatures,
        attend: Callable[[Array], Array],
    ) -> tuple[Float[Array, "batch length vocab"], Taps]:
        """Return the logits and the stack's taps; `attend` is the tied head."""
        config, taps = self.config, {"embedding": x}
        bias = None if config.per_layer_relative_bias else _relative_bias(config, x, False)
        for i in range(config.num_decoder_layers):
            layer = DecoderLayer(config, name=f"layers_{i}")
            x, inner = layer(x, encoded, encoder_mask, bias, temperatures)
            taps |= {f"layers_{i}": x} | _under(f"layers_{i}", inner)
        x = RMSNorm(config.layer_norm_epsilon, name="decoder_norm")(x)
        taps["final"] = x
        wide = x.astype(at_least_float32(x.dtype))
        head = attend
        if not config.logits_via_embedding:
            head = Kernel(config.vocab_size, ("embed", "vocab"), name="logits_dense")
        logits = head(wide)
        if config.scales_logits:
            logits = logits / jnp.sqrt(config.emb_dim).astype(logits.dtype)
        return logits, taps


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder's output, and feed-forward."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        encoded: Float[Array, "batch key embed"],
        encoder_mask: Bool[Array, "batch 1 1 key"],
        bias: Float[Array, "1 heads length length"] | None,
        temperatures: Temperatures,
    ) -> tuple[Float[Array, "batch length embed"], Taps]:
        """Return the stream after the block and the taps; without a bias, the layer has one."""
        config, path = self.config, f"decoder/{self.name}"
        norm = partial(RMSNorm, config.layer_norm_epsilon)
        if bias is None:
            bias = _relative_bias(config, x, False)
        length = x.shape[-2]
        causal = jnp.tril(jnp.ones((length, length), bool))[None, None]  # (1, 1, query, key)

        y = norm(name="pre_self_attention_layer_norm")(x)
        attention = MultiHeadAttention(config, config.attention_spectrum, name="self_attention")
        y, self_taps = attention(y, y, causal, bias, temperatures[f"{path}/self_attention"])
        x = x + y

        y = norm(name="pre_cross_attention_layer_norm")(x)
        y, cross_taps = MultiHeadAttention(config, name="encoder_decoder_attention")(
            y, encoded, encoder_mask, None, temperatures[f"{path}/encoder_decoder_attention"]
        )
        x = x + y

        y = norm(name="pre_mlp_layer_norm")(x)
        x = x + FeedForward(config, name="mlp")(y)
        taps = _under("self_attention", self_taps)
        return x, taps | _under("encoder_decoder_attention", cross_taps)


def _relative_bias(
    config: T5Config, x: Float[Array, "batch length embed"], bidirectional: bool
) -> Float[Array, "1 heads length length"]:
    """The bias of the stack, or of the layer, that calls this."""
    length = x.shape[-2]
    return RelativePositionBias(config, bidirectional, name="relpos_bias")(length, length)


def _under(path: str, taps: Taps) -> Taps:
    return {f"{path}/{name}": tap for name, tap in taps.items()}


def _named(stack: str, taps: Taps, attention_weights: bool) -> Taps:
    if not attention_weights:
        inner = ("/weights", "/scores", "/output", "/query", "/key", "/bias")
        taps = {k: tap for k, tap in taps.items() if not k.endswith(inner)}
    return _under(stack, taps)


def _refuse_positional(method: str, names: str, unexpected: tuple[Any, ...]) -> None:
    if unexpected:
        call = f"T5(config).{method}({names}, temperature=…)".replace(".__call__", "")
        raise TypeError(
            f"The temperature is given by keyword: {call}. Found {len(unexpected)} more positional "
            "argument(s); T5X's modules take targets there, which are no temperatures."
        )


def _checked_tokens(name: str, tokens: ArrayLike) -> Int[Array, "batch length"]:
    array = jnp.asarray(tokens)
    if array.ndim != 2 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ArgumentError(
            f"{name} must be integers of shape (batch, length), but they are {array.dtype} of "
            f"shape {array.shape}."
        )
    return array
