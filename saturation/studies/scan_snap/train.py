"""Trainings of the layer: all seeds and learning rates of a sweep in one compiled program.

On several devices each trains its share of the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from saturation.errors import ArgumentError
from saturation.runtime.sharding import spread_runs
from saturation.studies.scan_snap.data import Language, draw, population
from saturation.studies.scan_snap.model import Parameters, attended, loss

OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True)
class Training:
    """How the layer is trained; the defaults are those of the paper's Figure 6.

    Attributes:
        iterations: updates.
        batch: sequences in each.
        length: T − 1, tokens before the last one.
        optimizer: sgd (with `momentum`) or adam.
        momentum: of sgd: v ← momentum·v + gradient.
        random: Y and Z start from U(±1/√M); otherwise from 0.
    """

    iterations: int = 100
    batch: int = 128
    length: int = 127
    optimizer: str = "sgd"
    momentum: float = 0.9
    random: bool = True

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ArgumentError(
                f"Optimizer {self.optimizer!r} is unknown; there are {', '.join(OPTIMIZERS)}."
            )

    def direction(self) -> optax.GradientTransformation:
        """The optimizer at a learning rate of −1."""
        return optax.trace(self.momentum) if self.optimizer == "sgd" else optax.scale_by_adam()


def context_distribution(
    language: Language, z: Float[Array, "vocab vocab"]
) -> Float[Array, "classes support"]:
    """c_{l|n} ∝ P(l|n) e^{z_ml}: what class n's last token attends to, in sequences without end."""
    return attended(z, population(language))


def distinct_entropy(
    language: Language, c: Float[np.ndarray, "*runs classes support"]
) -> Float[np.ndarray, "*runs"]:
    """Entropy in nats of c renormalised on each class's distinct tokens, averaged over classes."""
    own = np.asarray(c, np.float64)[..., language.common :]
    own = own / own.sum(axis=-1, keepdims=True)
    terms = -own * np.log(np.where(own > 0, own, 1.0))
    return terms.sum(axis=-1).mean(axis=-1)


def train(
    language: Language,
    rates: Sequence[tuple[float, float]],
    seeds: int | Sequence[int],
    training: Training | None = None,
    seed: int = 0,
    every_iteration: bool = False,
) -> Float[np.ndarray, "seeds rates *iterations classes support"]:
    """Train the layer once for each seed and pair of learning rates.

    The trainings of one seed start alike and see the same sequences, so that they differ by their
    learning rates alone.

    Args:
        language: what is learnt.
        rates: pairs (η_Y, η_Z).
        seeds: trainings of each pair, or a seed for each of them.
        training: how; as in Figure 6 by default.
        seed: from which all follow, where `seeds` is a number.
        every_iteration: return c before every update and after the last, not only the latter.

    Returns:
        `context_distribution` of each, float32.
    """
    if isinstance(seeds, int):
        keys = jax.random.split(jax.random.key(seed), seeds)
    else:
        keys = jnp.stack([jax.random.key(each) for each in seeds])
    keys = spread_runs(keys)
    pairs = jnp.asarray(rates, jnp.float32)
    sweep = _sweep(language, training or Training(), every_iteration)
    return np.asarray(sweep(keys, pairs[:, 0], pairs[:, 1]))


def _sweep(language: Language, training: Training, every_iteration: bool) -> Any:
    one = partial(_train_one, language, training, every_iteration)
    over_rates = jax.vmap(one, in_axes=(None, 0, 0))
    return jax.jit(jax.vmap(over_rates, in_axes=(0, None, None)))


def _train_one(
    language: Language,
    training: Training,
    every_iteration: bool,
    key: Array,
    rate_y: Float[Array, ""],
    rate_z: Float[Array, ""],
) -> Float[Array, "*iterations classes support"]:
    start, data = jax.random.split(key)
    parameters = _initial(language, training, start)
    optimizer = training.direction()

    def update(carry: Any, key: Array) -> Any:
        parameters, state = carry
        seen = context_distribution(language, parameters.z) if every_iteration else None
        sequences = draw(key, language, training.batch, training.length)
        gradient = jax.grad(loss)(parameters, sequences)
        direction: Any  # optax's types know no NamedTuple
        # optax's Adam raises a float to an integer power, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            direction, state = optimizer.update(gradient, state)
        moved = Parameters(
            y=parameters.y - rate_y * direction.y, z=parameters.z - rate_z * direction.z
        )
        return (moved, state), seen

    keys = jax.random.split(data, training.iterations)
    (parameters, _), seen = jax.lax.scan(update, (parameters, optimizer.init(parameters)), keys)
    final = context_distribution(language, parameters.z)
    return final if seen is None else jnp.concatenate([seen, final[None]])


def _initial(language: Language, training: Training, key: Array) -> Parameters:
    shape = (language.size, language.size)
    if not training.random:
        return Parameters(jnp.zeros(shape), jnp.zeros(shape))
    bound = language.size**-0.5
    y_key, z_key = jax.random.split(key)
    return Parameters(
        jax.random.uniform(y_key, shape, minval=-bound, maxval=bound),
        jax.random.uniform(z_key, shape, minval=-bound, maxval=bound),
    )
