"""What may be handed to `saturate` as parameters: arrays, and nothing that is no parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saturation.errors import LimitError
from saturation.limit.carried import is_expansion

# Collections of Flax modules that hold parameters; others hold statistics, counters and caches.
_STATE = ("batch_stats", "cache", "intermediates", "losses", "metrics", "state", "counters")


def check_parameters(params: Any) -> None:
    """Refuse a whole module or state: what in it is no parameter would be scaled, or fail.

    Raises:
      LimitError: a leaf is a function or another object; the tree holds a Flax collection that is
        no parameters, or an NNX variable that is no `nnx.Param`.
    """
    if isinstance(params, Mapping) and "params" in params:
        others = [name for name in params if name in _STATE]
        if others:
            raise LimitError(
                f"The parameters hold a collection `{others[0]}`, which is not to grow with them: "
                'hand over variables["params"] and let `fn` take the rest from elsewhere.'
            )
    is_leaf = lambda value: _is_variable(value) or is_expansion(value)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_leaf):
        if is_expansion(leaf):
            continue
        name = jax.tree_util.keystr(path) or "params"
        if _is_variable(leaf):
            if not _is_parameter(leaf):
                raise LimitError(
                    f"The parameters hold `{name}`, an nnx.{_kind(leaf)}, which is not to grow "
                    "with them: graphdef, params, rest = nnx.split(model, nnx.Param, ...), hand "
                    "over `params` and let `fn` merge them with the rest."
                )
        elif not _is_array(leaf) or (_of_equinox(params) and not _has_dtype(leaf)):
            raise LimitError(
                f"The parameters hold `{name}`, {_said(leaf)}: only arrays can be scaled. Split "
                "the module: params, static = equinox.partition(model, equinox.is_inexact_array), "
                "hand over `params` and let `fn` combine them with `static`; for Flax hand over "
                "the parameters alone."
            )


def _is_array(leaf: Any) -> bool:
    return _has_dtype(leaf) or isinstance(leaf, bool | int | float | complex)


def _has_dtype(leaf: Any) -> bool:
    """Whether it is an array, a traced one or a NumPy scalar; keys of random numbers are."""
    if not hasattr(leaf, "dtype"):
        return False
    dtype = leaf.dtype
    return jnp.issubdtype(dtype, jax.dtypes.extended) or np.dtype(dtype).kind != "O"


def _said(leaf: Any) -> str:
    if callable(leaf):
        return f"the function `{getattr(leaf, '__name__', type(leaf).__name__)}`"
    return f"{leaf!r}, of type {type(leaf).__name__}"


def _bases(value: Any, package: str) -> list[str]:
    """The names of a value's classes that come from a package, which need not be installed."""
    return [c.__name__ for c in type(value).__mro__ if c.__module__.split(".")[0] == package]


def _of_equinox(value: Any) -> bool:
    return "Module" in _bases(value, "equinox")


def _is_variable(value: Any) -> bool:
    return any(name in ("Variable", "VariableState") for name in _bases(value, "flax"))


def _kind(variable: Any) -> str:
    kind = getattr(variable, "type", type(variable))  # a VariableState says what it is the state of
    return getattr(kind, "__name__", str(kind))


def _is_parameter(variable: Any) -> bool:
    kind = getattr(variable, "type", type(variable))
    return any(c.__name__ == "Param" for c in getattr(kind, "__mro__", ()))
