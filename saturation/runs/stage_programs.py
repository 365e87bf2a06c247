"""The compiled programs of a model's stages: one for each kind of stage, whatever the depth."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from saturation.models.base import Stage
from saturation.runtime.progress import Progress
from saturation.runtime.sharding import over_data, replicated


class StagePrograms:
    """Calls functions of stages, each compiled once for all stages of equal key.

    What functions return is laid out like the batch where its first axis is the batch's, and else
    lies whole on every device, so that all layers meet the same layout.

    Args:
      mesh: of devices.
      rows: sequences of a batch.
    """

    compiler_options: dict[str, Any] | None = None  # XLA's; tests compile quickly by them

    def __init__(self, mesh: Mesh, rows: int) -> None:
        self._mesh, self._rows = mesh, rows
        self._jitted: dict[Hashable, Any] = {}
        self._compiled: set[Hashable] = set()
        self.progress = Progress("", "B", quiet=True)

    @property
    def count(self) -> int:
        """How many programs were compiled."""
        return len(self._compiled)

    def __call__(self, stage: Stage, function: Callable[..., Any], *args: Any) -> Any:
        """Return function(stage, *args), compiled for the first stage of this key."""
        return self.call((stage.key, _identity(function)), partial(function, stage), *args)

    def call(
        self, key: Hashable, function: Callable[..., Any], *args: Any, whole: bool = False
    ) -> Any:
        """Return function(*args), compiled once under this key.

        Args:
          key: functions of equal key compute the same.
          function: of arrays, and trees of them.
          *args: its arguments.
          whole: let all results lie whole on every device, so that each process can read them.
        """
        if key not in self._jitted:
            self._jitted[key] = jax.jit(
                self._laid_out(function, whole), compiler_options=self.compiler_options
            )
        leaves, structure = jax.tree.flatten(args)
        shown = tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
        signature = key, structure, shown
        if signature in self._compiled:
            return self._jitted[key](*args)
        self._compiled.add(signature)
        with self.progress.compiling():  # apart, so that it is in no rate
            return self._jitted[key](*args)

    def _laid_out(self, function: Callable[..., Any], whole: bool) -> Callable[..., Any]:
        split, everywhere = over_data(self._mesh), replicated(self._mesh)

        def laid_out(*args: Any) -> Any:
            def constrained(leaf: Any) -> jax.Array:
                leaf = jnp.asarray(leaf)  # a measure may return what it knows as NumPy's
                of_batch = leaf.ndim > 0 and leaf.shape[0] == self._rows and not whole
                return jax.lax.with_sharding_constraint(leaf, split if of_batch else everywhere)

            return jax.tree.map(constrained, function(*args))

        return laid_out


def _identity(function: Callable[..., Any]) -> Hashable:
    """What tells functions apart; partial ones are the same where all they hold is."""
    if isinstance(function, partial):
        return function.func, function.args
    return function
