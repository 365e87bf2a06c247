"""The names a model gives the axes of its parameters, by which they are laid out over devices."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from saturation.models.config import T5Config
from saturation.models.t5 import T5


def parameter_axes(config: T5Config) -> dict[str, tuple[str | None, ...]]:
    """Return {name of a parameter: logical names of its axes}, such as `("embed", "joined_kv")`.

    Nothing is computed: the model's initialisation is traced on shapes alone.
    """
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    variables = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)
    specs: dict[str, Any] = flatten_dict(nn.get_partition_spec(variables)["params"], sep="/")
    return {name: tuple(spec) for name, spec in specs.items()}
