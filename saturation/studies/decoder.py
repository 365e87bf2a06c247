"""A small pre-norm decoder over tokens that are vectors, and its training, for studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Batch = tuple[Any, ...]


class Decoder(nn.Module):
    """Causal attention over tokens with learned positions.

    Attributes:
      outputs: numbers predicted at each token.
      width, layers, heads, mlp: sizes.
    """

    outputs: int
    width: int = 32
    layers: int = 2
    heads: int = 2
    mlp: int = 128

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch length features"]
    ) -> Float[Array, "batch length outputs"]:
        """Return what is predicted at each token from it and those before it."""
        length = tokens.shape[1]
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        small = nn.initializers.normal(0.02)
        x = nn.Dense(self.width)(tokens) + self.param("positions", small, (length, self.width))
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
            hidden = nn.relu(nn.Dense(self.mlp)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
        return nn.Dense(self.outputs)(nn.LayerNorm()(x))


def train(
    model: Decoder,
    loss: Callable[..., Any],
    batches: Iterator[Batch],
    steps: int,
    optimizer: optax.GradientTransformation,
    seed: int,
) -> Any:
    """Return the parameters after `steps` batches.

    Args:
      model: what is trained.
      loss: (outputs, *batch) -> scalar; the first array of a batch is the tokens.
      batches: of arrays of one shape.
      steps: how many.
      optimizer: any of optax.
      seed: of the initial parameters.
    """
    first = next(batches)
    params = model.init(jax.random.PRNGKey(seed), jnp.asarray(first[0]))
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any]:
        slope = jax.grad(lambda p: loss(model.apply(p, batch[0]), *batch))(params)
        update, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, update), state

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam promotes
        params, state = step(params, state, first)
        for _ in range(steps - 1):
            params, state = step(params, state, next(batches))
    return params
