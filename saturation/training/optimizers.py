"""Optimizers and learning-rate schedules by name, put together from optax's parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from saturation.errors import ConfigError

if TYPE_CHECKING:
    from saturation.training.config import OptimizerConfig

Count = ArrayLike
Rate = Float[Array, ""]


def inverse_sqrt(count: Count, warmup_steps: int, steps: int) -> Rate:
    """T5's schedule 1 / √max(t, warm-up): constant through the warm-up, then falling.

    T5 takes a warm-up of 10,000 (Raffel et al., JMLR 2020, §3.1.2). With Adafactor the rate is
    relative to the root mean square of each array. The length of the run does not matter.
    """
    del steps
    return 1 / jnp.sqrt(jnp.maximum(_number(count), max(warmup_steps, 1)))


def constant(count: Count, warmup_steps: int, steps: int) -> Rate:
    """1, after a linear rise in the first `warmup_steps` updates."""
    del steps
    return jnp.minimum(1.0, (_number(count) + 1) / max(warmup_steps, 1))


def linear(count: Count, warmup_steps: int, steps: int) -> Rate:
    """1 after a linear rise, then a straight fall that reaches 0 after the last update."""
    fall = (steps - _number(count)) / max(steps - warmup_steps, 1)
    return jnp.minimum(constant(count, warmup_steps, steps), jnp.maximum(fall, 0.0))


def _number(count: Count) -> Rate:
    return jnp.asarray(count).astype(jnp.float32)


def adafactor(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adafactor as T5 is trained: no momentum, update clipping at 1, second-moment decay t^−0.8.

    Steps are multiplied by the root mean square of the array they change, as in T5X and
    Mesh-TensorFlow. Source: Shazeer & Stern, ICML 2018, Algorithm 6.
    """
    return optax.adafactor(
        rate,
        min_dim_size_to_factor=config.min_dim_size_to_factor,
        decay_rate=0.8,
        multiply_by_parameter_scale=config.multiply_by_parameter_scale,
        clipping_threshold=1.0,
        momentum=config.momentum or None,
        weight_decay_rate=config.weight_decay or None,
    )


def sgd(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Gradient descent; the weight decay is that of an L2 penalty."""
    penalty = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(penalty, optax.sgd(rate, momentum=config.momentum or None))


def adam(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015); the weight decay is that of an L2 penalty."""
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optax.adam(rate))


def adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam with decoupled weight decay, multiplied by the rate (Loshchilov & Hutter 2019)."""
    return optax.adamw(rate, weight_decay=config.weight_decay)


Schedule = Callable[[Count, int, int], Rate]
Optimizer = Callable[["OptimizerConfig", optax.Schedule], optax.GradientTransformation]

SCHEDULES: Mapping[str, Schedule] = {f.__name__: f for f in (inverse_sqrt, linear, constant)}
OPTIMIZERS: Mapping[str, Optimizer] = {f.__name__: f for f in (adafactor, sgd, adam, adamw)}


def build_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of update t, counted from 0: `learning_rate` times the named schedule.

    Args:
        config: names the schedule and its warm-up.
        steps: updates in the whole run.

    Raises:
        ConfigError: when the name is none of `SCHEDULES`.
    """
    shape = _lookup(SCHEDULES, config.schedule, "optimizer.schedule")

    def schedule(count: Count) -> Rate:
        return config.learning_rate * shape(count, config.warmup_steps, steps)

    return schedule


def build_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The named optimizer on its schedule.

    Raises:
        ConfigError: when the name is none of `OPTIMIZERS`, or the schedule's none of `SCHEDULES`.
    """
    make = _lookup(OPTIMIZERS, config.name, "optimizer.name")
    return make(config, build_schedule(config, steps))


Entry = TypeVar("Entry")


def _lookup(table: Mapping[str, Entry], name: str, key: str) -> Entry:
    if name not in table:
        raise ConfigError(f"{key}: {name!r} is unknown; there are {', '.join(sorted(table))}.")
    return table[name]
