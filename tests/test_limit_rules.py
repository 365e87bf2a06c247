"""Rules that move values about, and the quotient of two zeros."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saturation.errors import LimitError
from saturation.limit import saturate

W = jnp.array([1.0, 2.0, 3.0], jnp.float32)

MOVES = {
    "tile": (lambda w: jnp.tile(w, 2), 1, [1, 2, 3, 1, 2, 3]),
    "repeat": (lambda w: jnp.repeat(w, 2), 1, [1, 1, 2, 2, 3, 3]),
    "roll": (lambda w: jnp.roll(w, 1), 1, [3, 1, 2]),
    "unstack": (lambda w: jnp.unstack(w)[1] * w, 2, [2, 4, 6]),
    "split": (lambda w: jnp.split(w, [1])[1], 1, [2, 3]),
    "stack of unlike degrees": (lambda w: jnp.stack([w, w * w]), 2, [[0, 0, 0], [1, 4, 9]]),
}


@pytest.mark.parametrize("name", MOVES)
def test_moving_values_moves_their_terms(name: str) -> None:
    function, degree, value = MOVES[name]
    found = saturate(function)(W)
    assert found.degree == degree
    np.testing.assert_array_equal(np.asarray(found.value), value)


QUOTIENTS: dict[str, Callable] = {
    "zero": lambda w: jnp.zeros(3, jnp.float32) / (w - w[1]),
    "direction": lambda w: (w - w[1]) / (w - w[1]),
}


@pytest.mark.parametrize("name", QUOTIENTS)
def test_zero_over_zero_has_no_limit(name: str) -> None:
    function = QUOTIENTS[name]
    np.testing.assert_array_equal(np.asarray(jax.jit(saturate(function))(W).valid), [1, 0, 1])
    with pytest.raises(LimitError, match="1 of 3 elements of the output have no limit"):
        saturate(function)(W)
