"""What a rule of `saturate` is given: an equation of a jaxpr, and who applies it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax

from saturation.errors import LimitError
from saturation.limit.series import Constant, PowerSeries, Value
from saturation.limit.tally import Tally


@runtime_checkable
class Interpreter(Protocol):
    """What a rule may ask of the interpreter that applies it."""

    terms: int
    longest: int
    tally: Tally
    reports: bool

    def meet(self, length: int) -> None:
        """Take note of a contraction of this length."""
        ...

    def unmasked(self, *values: Value, doubts: bool = True) -> list[Value]:
        """Return values that meet, with ±∞ for what masks in one that does not grow."""
        ...

    def run(self, closed: Any, inputs: Sequence[Value]) -> list[Value]:
        """Return the outputs of a closed jaxpr."""
        ...


Rule = Callable[[Interpreter, Any, Sequence[Value]], list[Value]]


def bind(eqn: Any, *arrays: jax.Array) -> Any:
    """Apply an equation's primitive to arrays, as JAX would."""
    # What holds a function (shard_map) is bound by other parameters than it is written with.
    found = getattr(eqn.primitive, "get_bind_params", lambda params: params)(eqn.params)
    functions, params = found if isinstance(found, tuple) else ((), found)  # by version of JAX
    return eqn.primitive.bind(*functions, *arrays, **params)


def like(eqn: Any, output: int = 0) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of an equation's output."""
    aval = eqn.outvars[output].aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def contracted(eqn: Any) -> int:
    """Return how many products each output of a product of matrices, or a convolution, sums."""
    sides = [variable.aval.shape for variable in eqn.invars[:2]]
    if eqn.primitive.name == "dot_general":
        (axes, _), _ = eqn.params["dimension_numbers"]
        return math.prod(sides[0][axis] for axis in axes)
    if eqn.primitive.name == "conv_general_dilated":
        kernel, outputs = sides[1], eqn.params["dimension_numbers"].rhs_spec[0]
        return math.prod(kernel) // max(kernel[outputs], 1)
    return 1


def axes_of(eqn: Any) -> tuple[int, ...]:
    """Return the axes that an equation reduces."""
    return tuple(map(int, eqn.params["axes"]))


def plain(eqn: Any, value: Value) -> Constant:
    """Return an input that must not grow with the parameters.

    Raises:
      LimitError: it does.
    """
    if isinstance(value, PowerSeries):
        raise LimitError(
            f"`{eqn.primitive.name}` takes a quantity of degree {value.degree} as an index or a "
            "condition, which has no limit."
        )
    return value
