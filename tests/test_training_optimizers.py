from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saturation.errors import ConfigError
from saturation.training.config import OptimizerConfig
from saturation.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    build_optimizer,
    build_schedule,
)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's Adam itself raises a float to an integer count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _rates(schedule, steps, **settings):
    config = OptimizerConfig(schedule=schedule, learning_rate=2.0, **settings)
    return [float(build_schedule(config, 100)(step)) for step in steps]


def test_inverse_square_root_is_t5s():
    rates = _rates("inverse_sqrt", (0, 10, 16, 64, 99), warmup_steps=16)
    np.testing.assert_allclose(rates, [0.5, 0.5, 0.5, 0.25, 2 / np.sqrt(99)], rtol=1e-6)


def test_linear_rises_falls_and_ends_at_nothing():
    rates = _rates("linear", (0, 4, 9, 55, 100), warmup_steps=10)
    np.testing.assert_allclose(rates, [0.2, 1.0, 2.0, 1.0, 0.0], atol=1e-6)


def test_constant_rises_and_stays():
    np.testing.assert_allclose(_rates("constant", (0, 1, 50), warmup_steps=2), [1, 2, 2])
    np.testing.assert_allclose(_rates("constant", (0, 99), warmup_steps=0), [2, 2])


def _after_one_update(params, gradient, **settings):
    optimizer = build_optimizer(OptimizerConfig(**settings), steps=10)
    changes, _ = optimizer.update(gradient, optimizer.init(params), params)
    return jax.tree.map(lambda p, c: np.asarray(p + c), params, changes)


CONSTANT = {"schedule": "constant", "warmup_steps": 0}


def test_adafactors_first_step_is_a_fraction_of_the_arrays_size():
    # At t = 1 the second moment is the squared gradient itself, so each entry moves by
    # rate · rms(θ) · sign(g), and the clipping of updates at rms 1 leaves it alone.
    params = jnp.array([[3.0, -1.0], [2.0, 4.0]])
    gradient = jnp.array([[0.1, -5.0], [2.0, -1e-3]])
    moved = _after_one_update(params, gradient, name="adafactor", learning_rate=0.01, **CONSTANT)
    rms = np.sqrt(np.mean(np.square(params)))
    np.testing.assert_allclose(moved, params - 0.01 * rms * np.sign(gradient), rtol=1e-5)


def test_adafactor_factors_large_arrays_only():
    config = OptimizerConfig(min_dim_size_to_factor=4)
    state = build_optimizer(config, 10).init({"large": jnp.ones((4, 6)), "small": jnp.ones((3, 6))})
    sizes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert (4, 6) not in sizes
    assert {(4,), (6,), (3, 6)} <= sizes


def test_sgd_and_its_penalty():
    moved = _after_one_update(
        jnp.array([2.0]),
        jnp.array([0.5]),
        name="sgd",
        learning_rate=0.1,
        weight_decay=0.3,
        **CONSTANT,
    )
    np.testing.assert_allclose(moved, [2.0 - 0.1 * (0.5 + 0.3 * 2.0)], rtol=1e-6)


def test_adamw_decays_apart_from_the_gradient_and_adam_with_it():
    settings = {"learning_rate": 0.1, "weight_decay": 0.3, **CONSTANT}
    params, gradient = jnp.array([2.0]), jnp.array([0.5])
    decoupled = _after_one_update(params, gradient, name="adamw", **settings)
    np.testing.assert_allclose(decoupled, [2.0 - 0.1 * (1 + 0.3 * 2.0)], rtol=1e-5)
    coupled = _after_one_update(params, gradient, name="adam", **settings)
    np.testing.assert_allclose(coupled, [2.0 - 0.1], rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name):
    optimizer = build_optimizer(OptimizerConfig(name=name, learning_rate=0.05, **CONSTANT), 100)
    params = jnp.array([1.0, -2.0])
    state = optimizer.init(params)
    for _ in range(100):
        changes, state = optimizer.update(2 * params, state, params)
        params = params + changes
    assert float(jnp.sum(params**2)) < 0.1


def test_unknown_names_list_the_known():
    with pytest.raises(
        ConfigError, match=r"optimizer\.name: 'lion' is unknown; there are adafactor"
    ):
        build_optimizer(OptimizerConfig(name="lion"), 10)
    with pytest.raises(ConfigError, match=r"optimizer\.schedule: 'cosine' is unknown; .*linear"):
        build_optimizer(OptimizerConfig(schedule="cosine"), 10)
    assert set(SCHEDULES) == {"inverse_sqrt", "linear", "constant"}
