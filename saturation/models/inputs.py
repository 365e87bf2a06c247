"""What every model is called with: its tokens, and the temperatures of its attentions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int

from saturation.errors import ArgumentError

Temperatures = Mapping[str, ArrayLike]  # {path of an attention: its own}


def checked_tokens(name: str, tokens: ArrayLike) -> Int[Array, "batch length"]:
    """Return tokens as an array; `name` is what the caller calls them.

    Raises:
      ArgumentError: they are not integers of shape (batch, length).
    """
    array = jnp.asarray(tokens)
    if array.ndim != 2 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ArgumentError(
            f"{name} must be integers of shape (batch, length), but they are {array.dtype} of "
            f"shape {array.shape}."
        )
    return array


def temperatures_by_path(
    names: Sequence[str], temperature: ArrayLike | Temperatures
) -> Temperatures:
    """Return the temperature of every attention by its path, in the order of `names`.

    Raises:
      ArgumentError: one is given for an attention that there is not.
    """
    if not isinstance(temperature, Mapping):
        return dict.fromkeys(names, temperature)
    unknown = sorted(set(temperature) - set(names))
    if unknown:
        raise ArgumentError(
            f"No attention is called {unknown[0]!r}; the model's are {', '.join(names)}."
        )
    return {name: temperature.get(name, 1.0) for name in names}
