"""The layer on the true distribution: gradients without sampling noise, what theory is about.

Sequences are without end, so that the attention of class n is c_n itself, and every class counts
the same. The flow's time is in units of learning rate: Ẏ = −η_Y ∂loss/∂Y, Ż = −η_Z ∂loss/∂Z, from
0; gradient descent takes steps of 1 in it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saturation.studies.scan_snap.data import Language, population
from saturation.studies.scan_snap.model import (
    Parameters,
    Sequences,
    attended,
    exact_products,
    log_probabilities,
    logits,
    loss,
)


class Flow(NamedTuple):
    """A path of the layer, seen at evenly spaced times, the start among them.

    Attributes:
        times: float64, (times,).
        z: scores of the tokens that class 0 draws from, (times, support).
        residual: 1 − p(next token), averaged over the classes, (times,).
        pull: how much of f lies in Y(e − α), what reaches class 0's attention through Y (Lemma 1):
            Σ Y(e − α)·f/Σ f² over its distinct tokens, (times,).
    """

    times: Float[np.ndarray, " times"]
    z: Float[np.ndarray, "times support"]
    residual: Float[np.ndarray, " times"]
    pull: Float[np.ndarray, " times"]


def flow(language: Language, rate_y: float, rate_z: float, end: float, steps: int) -> Flow:
    """Integrate the gradient flow from Y = Z = 0 by the midpoint rule.

    Args:
        language: the true distribution.
        rate_y: η_Y.
        rate_z: η_Z.
        end: time to integrate to.
        steps: of equal length; the error falls with their number squared.
    """
    return _path(language, (rate_y, rate_z), end, steps, midpoint=True)


def descent(language: Language, rate_y: float, rate_z: float, iterations: int) -> Flow:
    """Take steps of gradient descent from Y = Z = 0, without momentum.

    Args:
        language: the true distribution.
        rate_y: η_Y.
        rate_z: η_Z.
        iterations: number of steps.
    """
    return _path(language, (rate_y, rate_z), iterations, iterations, midpoint=False)


def _path(
    language: Language, rates: tuple[float, float], end: float, steps: int, midpoint: bool
) -> Flow:
    shape = (language.size, language.size)
    start = Parameters(jnp.zeros(shape), jnp.zeros(shape))
    step = jnp.asarray(end / steps, jnp.float32)
    seen = _integrate(language, steps, midpoint, start, jnp.asarray(rates, jnp.float32), step)
    return Flow(np.linspace(0, end, steps + 1), *(np.asarray(x, np.float64) for x in seen))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _integrate(
    language: Language,
    steps: int,
    midpoint: bool,
    start: Parameters,
    rates: Float[Array, " 2"],
    step: Float[Array, ""],
) -> tuple[Float[Array, "times support"], Float[Array, " times"], Float[Array, " times"]]:
    everything = population(language)
    gradient = jax.grad(loss)

    def moved(at: Parameters, along: Parameters, length: Array) -> Parameters:
        slope = gradient(along, everything)
        return Parameters(
            y=at.y - length * rates[0] * slope.y, z=at.z - length * rates[1] * slope.z
        )

    def seen(at: Parameters) -> Any:
        right = jnp.exp(log_probabilities(at, everything))
        z = at.z[everything.last[0], everything.tokens[0]]
        return z, 1 - jnp.mean(right), _pull(language, at, everything)

    def advance(at: Parameters, _: None) -> Any:
        along = moved(at, at, step / 2) if midpoint else at
        return moved(at, along, step), seen(at)

    final, history = jax.lax.scan(advance, start, None, length=steps)
    ends = jax.tree.map(lambda array: array[None], seen(final))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), history, ends)


def _pull(language: Language, at: Parameters, everything: Sequences) -> Float[Array, ""]:
    """The coefficient of f in Y(e − α) of class 0, seen on the tokens that no other class has."""
    first = jax.tree.map(lambda array: array[:1], everything)
    error = jax.nn.one_hot(first.following[0], language.size) - jax.nn.softmax(logits(at, first)[0])
    with exact_products():
        reaching = (at.y @ error)[first.tokens[0, language.common :]]
    f = attended(at.z, first)[0]
    own = (f / jnp.linalg.norm(f))[language.common :]
    return jnp.sum(reaching * own) / jnp.sum(own**2)
