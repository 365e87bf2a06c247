"""Where leading terms cancel, an element is not 0 but smaller: its own order and coefficient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saturation.errors import LimitError
from saturation.limit import saturate


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


Y = np.array([1.5, -2.0, 0.3])
CANCELS: dict[str, tuple[Callable, np.ndarray, list, list]] = {
    "hard tanh": (jax.nn.hard_tanh, Y, [0, 0, 0], [1, -1, 1]),
    "a number and back": (lambda y: (y + 1) - y, Y, [0, 0, 0], [1, 1, 1]),
    "slope of silu": (jax.vmap(jax.grad(jax.nn.silu)), Y[:1], [0], [1]),
    "huber": (
        lambda y: jnp.where(jnp.abs(y) < 1, 0.5 * y * y, jnp.abs(y) - 0.5),
        Y,
        [1, 1, 1],
        [1.5, 2, 0.3],
    ),
    "cumprod": (jnp.cumprod, np.array([2.0, 3.0, 5.0]), [1, 2, 3], [2, 6, 30]),
    "cumprod of six": (
        jnp.cumprod,
        np.array([2.0, 3.0, 5.0, 7.0, 1.0, 2.0]),
        [2, 2, 3, 4, 5, 6],  # of four terms the first two elements are below all
        [0, 0, 30, 210, 210, 420],
    ),
    "a sum that cancels in one element": (
        lambda y: y[0] * jnp.array([1.0, 1.0, 2.0]) - y[1] * jnp.array([1.0, 0.5, 1.0]) + y[2],
        np.array([1.0, 1.0, 3.0]),
        [1, 1, 1],
        [3, 3.5, 4],
    ),
    "a product that cancels": (
        lambda y: (y * y)[:2] - (y[1] * y)[:2] + y[2],
        np.array([1.0, 2.0, 3.0]),
        [2, 1],
        [-1, 3],
    ),
    "no parameters": (lambda y: jnp.zeros(3) + 2, Y, [0, 0, 0], [2, 2, 2]),
}


@pytest.mark.parametrize("name", CANCELS)
def test_each_element_has_its_order_and_coefficient(name: str) -> None:
    function, theta, order, coefficient = CANCELS[name]
    found = jax.jit(saturate(function))(theta)
    assert bool(found.valid.all())
    assert found.order.dtype == jnp.int32
    np.testing.assert_array_equal(found.order, order)
    np.testing.assert_allclose(found.coefficient, coefficient, rtol=1e-12)
    leading = np.asarray(found.order) == found.degree
    np.testing.assert_allclose(found.value, np.where(leading, coefficient, 0), atol=1e-12)


def test_a_sum_that_rounds_is_of_the_order_below() -> None:
    """0.1 + 0.2 − 0.3 leaves 5.6e-17 by rounding."""
    found = jax.jit(saturate(lambda t: t[0] + t[1] - t[2] + 7))(np.array([0.1, 0.2, 0.3]))
    assert (int(found.order), float(found.coefficient)) == (0, 7.0)


def test_what_vanishes_in_all_kept_terms_is_below_them() -> None:
    found = jax.jit(saturate(jax.nn.relu))(np.array([1.0, -1.0]))
    np.testing.assert_array_equal(found.order, [1, 1 - 4])
    np.testing.assert_array_equal(found.coefficient, [1, 0])


def test_a_vector_is_led_by_its_fastest_elements() -> None:
    found = jax.jit(saturate(lambda t: jnp.stack([t + 1 - t, t * t - t * t + t])))(
        np.array([2.0, 3.0])
    )
    order, vector = found.leading()
    np.testing.assert_array_equal(order, [0, 1])
    np.testing.assert_allclose(vector, [[1, 1], [2, 3]], rtol=1e-12)


def test_what_is_no_parameter_is_named() -> None:
    with pytest.raises(LimitError, match=r"hold `\['f'\]`, the function `relu`.*partition"):
        saturate(lambda p: p["w"])({"w": jnp.ones(2), "f": jax.nn.relu})
    variables = {"params": {"w": jnp.ones(2)}, "batch_stats": {"mean": jnp.ones(2)}}
    with pytest.raises(LimitError, match=r"collection `batch_stats`"):
        saturate(lambda p: p["params"]["w"])(variables)
    counted = saturate(lambda p: p["w"] * p["n"])({"w": jnp.ones(2), "n": jnp.int32(3)})
    np.testing.assert_array_equal(counted.value, [3, 3])


def test_a_whole_nnx_state_is_split_first() -> None:
    from flax import nnx

    model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    with pytest.raises(LimitError, match=r"nnx\.BatchStat, which is not to grow.*nnx\.split"):
        saturate(lambda s, x: nnx.merge(graphdef, s)(x))(state, np.ones((3, 2)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def function(params, x):
        return nnx.merge(graphdef, params, rest)(x, use_running_average=True)

    found = jax.jit(saturate(function))(params, np.ones((3, 2)))
    assert found.degree == 1
