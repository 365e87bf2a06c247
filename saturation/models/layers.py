"""T5's layers with T5X's parameter names, shapes, logical axes and initialisers.

Every layer computes in the dtype of its input and casts its parameters to it; norms and softmax
compute in at least float32. Initialisers are those of T5X's minimal example (t5x/examples/t5/
layers.py), where the 1/√head_dim of attention is folded into the query kernel's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, reduce
from operator import mul

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from saturation.attention import (
    at_least_float32,
    attend,
    attention_scores,
    tempered_softmax,
)
from saturation.models.config import T5Config, input_projections
from saturation.models.spectral import SpectralKernels

Initializer = Callable[..., Array]

ATTENTION_KERNEL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
DENSE_KERNEL = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
RELATIVE_BIAS = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
TOKEN_EMBEDDING = nn.initializers.normal(stddev=1.0)

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=True),
    "silu": nn.silu,
    "linear": lambda x: x,
}


def _parameter(
    module: nn.Module,
    name: str,
    init: Initializer,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
) -> Array:
    """Declare a float32 array with its logical axes; `apply` may give it in any dtype."""
    boxed = nn.with_logical_partitioning(init, axes)
    return jnp.asarray(module.param(name, boxed, shape, jnp.float32))


class Kernel(nn.Module):
    """A linear map without bias: x @ kernel.

    Attributes:
      features: the output dimension.
      axes: logical names of the kernel's two axes.
      kernel_init: its initialiser.
    """

    features: int
    axes: tuple[str, str]
    kernel_init: Initializer = DENSE_KERNEL

    @nn.compact
    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Return x @ kernel, in the dtype of x."""
        shape = (x.shape[-1], self.features)
        kernel = _parameter(self, "kernel", self.kernel_init, shape, self.axes)
        return x @ kernel.astype(x.dtype)


class RMSNorm(nn.Module):
    """T5's layer norm: y = scale · x / √(mean(x²) + ε), with no mean taken off and no bias.

    Zhang and Sennrich 2019 (arXiv 1910.07467). The root mean square is taken in at least float32.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        """Return the normalised x, in the dtype of x."""
        scale = _parameter(self, "scale", nn.initializers.ones, (x.shape[-1],), ("embed",))
        wide = x.astype(at_least_float32(x.dtype))
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normalised = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        return normalised.astype(x.dtype) * scale.astype(x.dtype)


class Embedding(nn.Module):
    """Token ids to vectors, and in a tied model vectors to logits.

    Attributes:
      num_embeddings: rows.
      features: width.
      dtype: what vectors are computed in; None is the parameters' own.
    """

    num_embeddings: int
    features: int
    dtype: np.dtype | None = None

    def setup(self) -> None:
        """Declare the one array."""
        shape = (self.num_embeddings, self.features)
        self.embedding = _parameter(self, "embedding", TOKEN_EMBEDDING, shape, ("vocab", "embed"))

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch embed"]:
        """Look tokens up; an id outside the vocabulary gives NaN rather than another's vector."""
        dtype = self.dtype if self.dtype is not None else self.embedding.dtype
        return jnp.take(self.embedding, tokens, axis=0, mode="fill").astype(dtype)

    def attend(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch vocab"]:
        """Return x · embeddingᵀ, the logits of a tied head but for its scale."""
        return x @ self.embedding.astype(x.dtype).T


class RelativePositionBias(nn.Module):
    """A learned number for each head and bucket of distances, added to the scores."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, query: int, key: int) -> Float[Array, "1 heads query key"]:
        """Return the bias between `query` query and `key` key positions."""
        config = self.config
        num_buckets = config.relative_attention_num_buckets
        shape, axes = (config.num_heads, num_buckets), ("heads", "relpos_buckets")
        bias = _parameter(self, "rel_embedding", RELATIVE_BIAS, shape, axes)
        buckets = relative_position_buckets(
            np.arange(key)[None, :] - np.arange(query)[:, None],
            bidirectional=self.bidirectional,
            num_buckets=num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        return jnp.take(bias, jnp.asarray(buckets), axis=1, mode="clip")[None]


def relative_position_buckets(
    relative_position: Int[np.ndarray, "*shape"],
    *,
    bidirectional: bool,
    num_buckets: int = 32,
    max_distance: int = 128,
) -> Int[np.ndarray, "*shape"]:
    """The bucket of each relative position, key minus query (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, the other half ranges that grow by a constant
    factor up to `max_distance`, from where all distances share the last one. Keys after the query
    have buckets of their own when `bidirectional`, and bucket 0 otherwise.

    Args:
      relative_position: integers, key position - query position.
      bidirectional: whether keys after the query are told apart.
      num_buckets: the number of buckets, both directions together.
      max_distance: the distance that ends the last range.

    Returns:
      int32 of the same shape, in [0, num_buckets).
    """
    distance = np.maximum(-relative_position, 0)
    offset = np.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        distance = np.abs(relative_position)
        offset = np.where(relative_position > 0, num_buckets, 0)
    table = _distance_buckets(num_buckets, max_distance)
    return (offset + table[np.minimum(distance, max_distance)]).astype(np.int32)


@lru_cache
def _distance_buckets(num_buckets: int, max_distance: int) -> Int[np.ndarray, " distance"]:
    """Bucket of each distance 0 … max_distance.

    The j-th range starts at exact·(max_distance/exact)^(j/ranges). It is found in integers, since
    a rounded logarithm can put a distance that starts a range into the one before.
    """
    exact = num_buckets // 2
    ranges = num_buckets - exact
    table = np.arange(max_distance + 1)
    for distance in range(exact, max_distance + 1):
        reached = (
            j
            for j in reversed(range(ranges))
            if distance**ranges >= exact ** (ranges - j) * max_distance**j
        )
        table[distance] = exact + next(reached)
    return table


class MultiHeadAttention(nn.Module):
    """Queries from one sequence, keys and values from another (or the same), and out again.

    Kernels are joined over heads, (embed, heads·head_dim), heads major.

    Attributes:
      config: sizes.
      spectrum: what eigenvalues the heads are given; None is a value and an output kernel of T5's.
    """

    config: T5Config
    spectrum: str | None = None

    @nn.compact
    def __call__(
        self,
        queries_from: Float[Array, "batch query embed"],
        keys_from: Float[Array, "batch key embed"],
        mask: Bool[Array, "#batch 1 #query key"],
        bias: Float[Array, "1 heads query key"] | None,
        temperature: ArrayLike,
    ) -> tuple[Float[Array, "batch query embed"], dict[str, Array]]:
        """Return the attended output, and the attention's taps.

        `scores` are those before the temperature, -inf where the mask allows no key, so that
        `tempered_softmax(scores, τ)` gives the `weights` of any temperature. Both are (batch,
        heads, query, key). `query` and `key`, (batch, length, heads, head_dim), and `bias`, where
        there is one, are what the scores are made of. `output` is what is returned first.
        """
        config = self.config

        def heads(name: str, x: Array, kernel_init: Initializer = ATTENTION_KERNEL) -> Array:
            joined = config.num_heads * config.head_dim
            y = Kernel(joined, ("embed", "joined_kv"), kernel_init, name=name)(x)
            return y.reshape(*x.shape[:-1], config.num_heads, config.head_dim)

        query = heads("query", queries_from, _query_kernel(config.head_dim))
        key = heads("key", keys_from)
        scores = attention_scores(query, key, bias)
        weights = tempered_softmax(scores, temperature, where=mask)
        if self.spectrum is None:
            value = heads("value", keys_from)
            out = Kernel(config.emb_dim, ("joined_kv", "embed"), ATTENTION_KERNEL, name="out")
        else:
            kernels = SpectralKernels(config, self.spectrum, name=self.spectrum)
            value_kernel, out_kernel = kernels(keys_from.dtype)
            value = (keys_from @ value_kernel).reshape(*keys_from.shape[:-1], *query.shape[-2:])
            out = lambda x: x @ out_kernel
        attended = attend(weights, value)
        joined = attended.reshape(*attended.shape[:-2], -1)  # (batch, query, heads·head_dim)
        output = out(joined)
        scores = jnp.where(mask, scores, -jnp.inf)
        made_of = {"query": query, "key": key} | ({} if bias is None else {"bias": bias})
        return output, {"weights": weights, "scores": scores, "output": output, **made_of}


def _query_kernel(head_dim: int) -> Initializer:
    """T5 never divides scores by √head_dim: the query kernel starts that much smaller."""

    def init(*args) -> Array:
        kernel = ATTENTION_KERNEL(*args)
        return kernel / jnp.sqrt(head_dim).astype(kernel.dtype)

    return init


class FeedForward(nn.Module):
    """wo(Π_i activation_i(wi_i(x))): one input projection in v1.0, a gated pair in v1.1."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        """Return the block's output, in the dtype of x."""
        activations = self.config.mlp_activations
        hidden = [
            _ACTIVATIONS[activation](Kernel(self.config.mlp_dim, ("embed", "mlp"), name=name)(x))
            for name, activation in zip(input_projections(activations), activations, strict=True)
        ]
        return Kernel(self.config.emb_dim, ("mlp", "embed"), name="wo")(reduce(mul, hidden))
