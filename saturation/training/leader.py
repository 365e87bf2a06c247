"""Workers that are pulled toward the best of them, or toward a centre, as optax transformations.

The leading axis of every parameter, and of the losses that `update` is told as `value=`, counts
workers. Chain them last: what comes before them changes each worker by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32


class LeaderState(NamedTuple):
    """What `follow_leader` remembers.

    Attributes:
      updates: how many there were.
      losses: of each worker, summed since the last pull.
    """

    updates: Int32[Array, ""]
    losses: Float[Array, " workers"]


class CentreState(NamedTuple):
    """What `follow_centre` remembers: updates so far, and the centre, a tree without workers."""

    updates: Int32[Array, ""]
    centre: Any


def follow_leader(
    pull: float, every: int = 1, axis_name: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """Return leader gradient descent: x_i ← x_i + u_i + pull (z − x_i) at each `every`-th update.

    z is the worker with the least training loss, averaged since the last pull (of equal ones the
    first). Teng et al., NeurIPS 2019 (arXiv 1905.10395), with one leader; here the pull is computed
    from where the loss was, x_i, beside the update u_i.

    Args:
      pull: the share of the way to the leader; times the learning rate in the paper's equation.
      every: how many updates lie between pulls.
      axis_name: of the mesh, where workers are spread over devices inside `jax.shard_map`: a loss a
        device is gathered, and only the leader's parameters travel.
    """

    def init(params: Any) -> LeaderState:
        workers = len(jax.tree.leaves(params)[0])
        return LeaderState(jnp.zeros((), jnp.int32), jnp.zeros(workers, jnp.float32))

    def update(
        updates: Any, state: Any, params: Any = None, *, value: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        losses = state.losses + jnp.asarray(value, jnp.float32)
        due = (state.updates + 1) % every == 0
        pulled = _when(
            due, lambda: _toward(updates, params, _leader(params, losses, axis_name), pull), updates
        )
        return pulled, LeaderState(
            state.updates + 1, jnp.where(due, jnp.zeros_like(losses), losses)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def follow_centre(pull: float, every: int = 1) -> optax.GradientTransformationExtraArgs:
    """Return elastic averaging: x_i ← x_i + u_i + (pull/p)(c − x_i) and c ← c + pull (mean x − c).

    p is the number of workers. Zhang, Choromanska, LeCun, NeurIPS 2015 (arXiv 1412.6651), with the
    constants of Teng et al.'s code: workers are pulled by b/p, the centre by b.

    Args:
      pull: b.
      every: how many updates lie between pulls.
    """

    def init(params: Any) -> CentreState:
        centre = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), params)
        return CentreState(jnp.zeros((), jnp.int32), centre)

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        due = (state.updates + 1) % every == 0
        workers = len(jax.tree.leaves(params)[0])
        pulled = _when(due, lambda: _toward(updates, params, state.centre, pull / workers), updates)
        moved = lambda: jax.tree.map(
            lambda centre, leaf: centre + pull * (jnp.mean(leaf, axis=0) - centre),
            state.centre,
            params,
        )
        return pulled, CentreState(state.updates + 1, _when(due, moved, state.centre))

    return optax.GradientTransformationExtraArgs(init, update)


def _when(due: Any, change: Callable[[], Any], unchanged: Any) -> Any:
    return jax.lax.cond(due, change, lambda: unchanged)


def _toward(updates: Any, params: Any, target: Any, pull: float) -> Any:
    return jax.tree.map(lambda u, x, z: u + pull * (z - x), updates, params, target)


def _leader(params: Any, losses: Float[Array, " workers"], axis_name: str | None) -> Any:
    """Return the parameters of the worker with the least loss, without the axis of workers."""
    best = jnp.argmin(losses)
    own = jax.tree.map(lambda leaf: leaf[best], params)
    if axis_name is None:
        return own
    first = jnp.argmin(jax.lax.all_gather(losses[best], axis_name))
    leads = jax.lax.axis_index(axis_name) == first
    return jax.tree.map(
        lambda leaf: jax.lax.psum(jnp.where(leads, leaf, jnp.zeros_like(leaf)), axis_name), own
    )
