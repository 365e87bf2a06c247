"""T5 in its three published forms: v1.0, v1.1 (gated, untied) and UMT5 (a bias in every layer).

Raffel et al. 2020 (arXiv 1910.10683). Each block adds to the residual stream what it makes of the
normalised stream, and the stream is normalised once more at the end of each stack:

    x += attention(norm(x));  [x += cross_attention(norm(x), encoded);]  x += feed_forward(norm(x))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from saturation.attention import at_least_float32
from saturation.models.base import ATTENTION_TAPS, Arrays, Streams, Taps
from saturation.models.config import ATTENTIONS, NORM_BEFORE, SELF_ATTENTIONS, T5Config
from saturation.models.inputs import Temperatures, checked_tokens, temperatures_by_path
from saturation.models.layers import (
    Embedding,
    FeedForward,
    Kernel,
    MultiHeadAttention,
    RelativePositionBias,
    RMSNorm,
)


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
        self.encoder = ResidualStack(config, "encoder")
        self.decoder = ResidualStack(config, "decoder")

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
        tokens = {"encoder": checked_tokens("encoder_input_tokens", encoder_input_tokens)}
        streams, taps = self._through("encoder", {}, tokens, temperature)
        return streams["encoded"], taps if attention_weights else _without_inner(taps)

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
        tokens = {
            "encoder": checked_tokens("encoder_input_tokens", encoder_input_tokens),
            "decoder": checked_tokens("decoder_input_tokens", decoder_input_tokens),
        }
        streams, taps = self._through("decoder", {"encoded": encoded}, tokens, temperature)
        _, head = self.run_stage(Place("decoder", None, "head"), streams, tokens)
        return head["logits"], taps if attention_weights else _without_inner(taps)

    def run_stage(
        self, place: Place, streams: Streams, tokens: Arrays, temperature: ArrayLike = 1.0
    ) -> tuple[Streams, Taps]:
        """Return the streams behind one stage of the model, and its taps (`models.base.Stage`).

        Args:
          place: which.
          streams: those it reads: `x`, (batch, length, embed), the stack's `bias` where it has one,
            and in the decoder `encoded`, the encoder's output.
          tokens: {"encoder": ids, "decoder": ids}, each (batch, length).
          temperature: of its attention.
        """
        stack: ResidualStack = getattr(self, place.stack)
        if place.part == "embedding":
            return stack.start(self.token_embedder(tokens[place.stack])), {}
        if place.part == "final":
            return stack.end(streams), {}
        if place.part == "head":
            return {}, {"logits": stack.logits(streams["x"], self.token_embedder.attend)}
        layer: Layer = getattr(stack, f"layers_{place.layer}")
        if place.part == "mlp":
            return layer.feed_forward(streams), {}
        return layer.attend(place.part, streams, tokens, temperature)

    def _through(
        self, stack: str, streams: Streams, tokens: Arrays, temperature: ArrayLike | Temperatures
    ) -> tuple[Streams, Taps]:
        """Return the streams behind a stack's last norm, and every tap by its path."""
        temperatures = temperatures_by_path(self.config.attention_names(), temperature)
        taps: Taps = {}
        for place in places(self.config, stack):
            found, inner = self.run_stage(place, streams, tokens, temperatures.get(place.path, 1.0))
            streams = streams | found
            taps |= {f"{place.path}/{name}": tap for name, tap in inner.items()}
            if place.scope is not None:
                taps[place.scope] = streams[place.state]
        return streams, taps


class ResidualStack(nn.Module):
    """The layers of one stack, its relative bias, final norm and, of the decoder, output head.

    Attributes:
      config: sizes and form.
      stack: "encoder" or "decoder".
    """

    config: T5Config
    stack: str

    def setup(self) -> None:
        """Name the parts as T5X does."""
        config = self.config
        if not config.per_layer_relative_bias:
            self.relpos_bias = RelativePositionBias(config, self.stack == "encoder")
        for number in range(_num_layers(config, self.stack)):
            setattr(self, f"layers_{number}", Layer(config, self.stack))
        setattr(self, f"{self.stack}_norm", RMSNorm(config.layer_norm_epsilon))
        if self.stack == "decoder" and not config.logits_via_embedding:
            self.logits_dense = Kernel(config.vocab_size, ("embed", "vocab"))

    def start(self, x: Float[Array, "batch length embed"]) -> Streams:
        """Return the streams behind the embedding: `x`, and the `bias` that the layers share."""
        if self.config.per_layer_relative_bias:
            return {"x": x}
        length = x.shape[-2]
        return {"x": x, "bias": self.relpos_bias(length, length)}

    def end(self, streams: Streams) -> Streams:
        """Return the normalised stream: `x` of the decoder, `encoded` of the encoder.

        Behind the encoder those streams that wait under `decoder` are the next ones.
        """
        x = getattr(self, f"{self.stack}_norm")(streams["x"])
        return {"x": x} if self.stack == "decoder" else {"encoded": x, **streams.get("decoder", {})}

    def logits(
        self, x: Float[Array, "batch length embed"], attend: Callable[[Array], Array]
    ) -> Float[Array, "batch length vocab"]:
        """Return the logits; `attend` is the tied head."""
        config = self.config
        wide = x.astype(at_least_float32(x.dtype))
        logits = attend(wide) if config.logits_via_embedding else self.logits_dense(wide)
        if config.scales_logits:
            logits = logits / jnp.sqrt(config.emb_dim).astype(logits.dtype)
        return logits


class Layer(nn.Module):
    """One block of either stack: its attentions, in the order of `ATTENTIONS`, and feed-forward.

    Attributes:
      config: sizes and form.
      stack: "encoder" or "decoder".
    """

    config: T5Config
    stack: str

    def setup(self) -> None:
        """Name the parts as T5X does."""
        config = self.config
        if config.per_layer_relative_bias:
            self.relpos_bias = RelativePositionBias(config, self.stack == "encoder")
        for name in ATTENTIONS[self.stack]:
            setattr(self, NORM_BEFORE[name], RMSNorm(config.layer_norm_epsilon))
            spectrum = config.attention_spectrum if name in SELF_ATTENTIONS else None
            setattr(self, name, MultiHeadAttention(config, spectrum))
        self.pre_mlp_layer_norm = RMSNorm(config.layer_norm_epsilon)
        self.mlp = FeedForward(config)

    def attend(
        self, name: str, streams: Streams, tokens: Arrays, temperature: ArrayLike
    ) -> tuple[Streams, Taps]:
        """Return the stream with what one attention adds to it, and the attention's taps."""
        x = streams["x"]
        y = getattr(self, NORM_BEFORE[name])(x)
        keys_from, bias = (y, streams.get("bias")) if name in SELF_ATTENTIONS else (
            streams["encoded"], None)  # fmt: skip
        if name in SELF_ATTENTIONS and self.config.per_layer_relative_bias:
            bias = self.relpos_bias(x.shape[-2], x.shape[-2])
        mask = _allowed(name, x.shape[-2], tokens)
        y, taps = getattr(self, name)(y, keys_from, mask, bias, temperature)
        return {**streams, "x": x + y}, taps

    def feed_forward(self, streams: Streams) -> Streams:
        """Return the stream with what the feed-forward block adds to it."""
        x = streams["x"]
        return {**streams, "x": x + self.mlp(self.pre_mlp_layer_norm(x))}


def _allowed(name: str, length: int, tokens: Arrays) -> Bool[Array, "#batch 1 #query key"]:
    """Which keys each query may attend to: earlier ones, or all of the encoder's tokens."""
    if name == "self_attention":
        return jnp.tril(jnp.ones((length, length), bool))[None, None]
    return valid_encoder_tokens(tokens["encoder"])[:, None, None, :]


class Place(NamedTuple):
    """Where in the model a stage is.

    Attributes:
      stack: "encoder" or "decoder".
      layer: the number of the layer; None outside of the layers.
      part: "embedding", the name of an attention, "mlp", "final" or "head".
    """

    stack: str
    layer: int | None
    part: str

    @property
    def path(self) -> str:
        """Such as `encoder/layers_0/attention`, or `encoder/final`."""
        inner = () if self.layer is None else (f"layers_{self.layer}",)
        return "/".join((self.stack, *inner, self.part))

    @property
    def scope(self) -> str | None:
        """The scope of the state that the stage completes, if it does one."""
        if self.part in ("embedding", "mlp", "final"):
            return self.path.removesuffix("/mlp")
        return None

    @property
    def state(self) -> str:
        """Which stream that state is."""
        return "encoded" if (self.stack, self.part) == ("encoder", "final") else "x"


def places(config: T5Config, stack: str) -> Iterator[Place]:
    """Yield the places of a stack, in the order of the forward pass, without the head."""
    yield Place(stack, None, "embedding")
    for number in range(_num_layers(config, stack)):
        for part in (*ATTENTIONS[stack], "mlp"):
            yield Place(stack, number, part)
    yield Place(stack, None, "final")


def _num_layers(config: T5Config, stack: str) -> int:
    return config.num_encoder_layers if stack == "encoder" else config.num_decoder_layers


def _without_inner(taps: Taps) -> Taps:
    """The taps without those of attentions' inside."""
    return {k: tap for k, tap in taps.items() if k.rpartition("/")[2] not in ATTENTION_TAPS}


def _refuse_positional(method: str, names: str, unexpected: tuple[Any, ...]) -> None:
    if unexpected:
        call = f"T5(config).{method}({names}, temperature=…)".replace(".__call__", "")
        raise TypeError(
            f"The temperature is given by keyword: {call}. Found {len(unexpected)} more positional "
            "argument(s); T5X's modules take targets there, which are no temperatures."
        )
