"""The forward passes that measures of activations share, a stage at a time.

What flows from stage to stage is one set of streams for each pass: the model as it is, every
attention at τ = 0, f(x; cθ) for each c, and the expansion of the limit c → ∞.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from saturation.limit import Expansion, Limit, saturate, scale_parameters
from saturation.models.base import Arrays, Needs, Stage, Streams, Taps


class Scaled(NamedTuple):
    """The streams of f(x; cθ), and their derivatives in ln c where they are asked for."""

    streams: Streams
    slopes: Streams | None = None

    def changed(self, function: Callable[[Streams], Streams]) -> Scaled:
        """Return what a function makes of both."""
        slopes = None if self.slopes is None else function(self.slopes)
        return Scaled(function(self.streams), slopes)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["model", "attention", "scaled", "parameter"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Variants:
    """The streams between two stages, of every forward pass that is asked for.

    Attributes:
      model: of the model as it is.
      attention: with every attention at τ = 0.
      scaled: of f(x; cθ), by c.
      parameter: of the limit.
    """

    model: Streams = field(default_factory=dict)
    attention: Streams | None = None
    scaled: Mapping[float, Scaled] = field(default_factory=dict)
    parameter: Expansion | None = None


_SHOWN = ("weights", "scores", "output", "logits")


class LimitRows(NamedTuple):
    """The exact limit of an array's rows, vectors along the last axis (`limit.Limit.leading`).

    Its degree is not among it, so that layers whose degrees differ are observed by one program.

    Attributes:
      order: of each row, int32.
      leading: its coefficient of that order, elements of a lower order 0.
      exists: whether all elements of the row have a limit.
    """

    order: Array
    leading: Array
    exists: Array

    @classmethod
    def of(cls, limit: Limit) -> LimitRows:
        """Return those of an array's limit."""
        return cls(*limit.leading(), limit.valid.all(axis=-1))


class StageLimits(NamedTuple):
    """What a stage shows of the parameter limit.

    Attributes:
      states: of each state that it completes, in the order of `Stage.scopes`.
      weights: of its attention's weights, if it has one.
    """

    states: tuple[LimitRows, ...]
    weights: LimitRows | None


class StageTaps(NamedTuple):
    """What a stage shows of its inside.

    Attributes:
      model: of the model as it is.
      wide: of the same in the widest float there is; None where c = 1 is not among the scales.
      limits: of the parameter limit; None where it is not asked for.
    """

    model: Taps
    wide: Taps | None = None
    limits: StageLimits | None = None


# (stage, function, *args) -> function(stage, *args): as it is, or compiled for the stage's key.
Call = Callable[..., Any]


def plainly(stage: Stage, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of a stage as it is."""
    return function(stage, *args)


def start(needs: Needs) -> Variants:
    """Return the streams before the first stage: none of any pass."""
    return Variants(
        {},
        {} if needs.attention else None,
        {c: Scaled({}, {} if c in needs.slopes else None) for c in sorted(needs.scales)},
        Expansion({}).with_cheap_sizes() if needs.parameter else None,
    )


def advance(
    stage: Stage,
    before: Variants,
    parameters: Arrays,
    tokens: Arrays,
    terms: int,
    call: Call = plainly,
) -> tuple[Variants, StageTaps]:
    """Return the streams behind a stage, of every pass, and what it shows of its inside.

    Args:
      stage: of the model.
      before: the streams in front of it.
      parameters: by their local names; the model as it is computes in their dtype.
      tokens: {stack: ids}.
      terms: of the series that computes the limit.
      call: how functions are called.
    """

    def moved(streams: Streams, found: Streams) -> Streams:
        return {k: v for k, v in streams.items() if k not in stage.reads} | found

    def at_temperature(streams: Streams, temperature: float) -> tuple[Streams, Taps]:
        tau = jnp.asarray(temperature, jnp.float32)  # traced, so that one program does for both
        found, taps = call(stage, _as_it_is, parameters, _read(stage, streams), tokens, tau)
        return moved(streams, found), taps

    model, taps = at_temperature(before.model, 1.0)
    attention, parameter, wide, limits = None, None, None, None
    if before.attention is not None:
        attention, _ = at_temperature(before.attention, 0.0)
    scaled: dict[float, Scaled] = {}
    for c, each in before.scaled.items():
        function = _scaled if each.slopes is None else _along_scale
        read = each.changed(lambda streams: _read(stage, streams))
        after, shown = call(stage, function, parameters, read, tokens, jnp.asarray(c, float))
        slopes = None if each.slopes is None else moved(each.slopes, after.slopes)
        scaled[c] = Scaled(moved(each.streams, after.streams), slopes)
        wide = shown if c == 1.0 else wide
    if before.parameter is not None:
        kept, read = before.parameter.without(stage.reads), before.parameter.only(stage.reads)
        found, limits = call(stage, partial(_limit, terms), parameters, read, tokens)
        parameter = kept.updated(found)
    return Variants(model, attention, scaled, parameter), StageTaps(taps, wide, limits)


def _read(stage: Stage, streams: Streams) -> Streams:
    return {name: streams[name] for name in stage.reads}


def _as_it_is(
    stage: Stage, parameters: Arrays, streams: Streams, tokens: Arrays, temperature: Array
) -> tuple[Streams, Taps]:
    found, taps = stage.run(parameters, streams, tokens, temperature)
    return found, {name: tap for name, tap in taps.items() if name in _SHOWN}


def _scaled(
    stage: Stage, parameters: Arrays, given: Scaled, tokens: Arrays, scale: Array
) -> tuple[Scaled, Taps]:
    grown = scale_parameters(_widest(parameters), scale)
    found, taps = stage.run(grown, given.streams, tokens, 1.0)
    return Scaled(found), _of_scores(taps)


def _along_scale(
    stage: Stage, parameters: Arrays, given: Scaled, tokens: Arrays, scale: Array
) -> tuple[Scaled, Taps]:
    """The same with d/d ln c, by one forward-mode pass: that of cθ is cθ."""
    grown = scale_parameters(_widest(parameters), scale)
    run = lambda parameters, streams: stage.run(parameters, streams, tokens, 1.0)
    primals, tangents = (grown, given.streams), (grown, given.slopes)
    found, slopes, taps = jax.jvp(run, primals, tangents, has_aux=True)
    return Scaled(found, slopes), _of_scores(taps)


def _limit(
    terms: int, stage: Stage, parameters: Arrays, given: Expansion, tokens: Arrays
) -> tuple[Expansion, StageLimits]:
    """The expansion of the streams, and the limits of the states and of the weights.

    Sharp sizes are not handed on: what a model compares, scores, is a product within the stage.
    """

    def run(parameters: Arrays, streams: Streams) -> dict[str, Any]:
        found, taps = stage.run(parameters, streams, tokens, 1.0)
        return {"streams": found, "weights": taps.get("weights")}

    found = saturate(run, terms, expansions=True)(_widest(parameters), given)
    states = []
    for path in stage.scopes.values():
        state = found["streams"]
        for key in path:
            state = state[key]
        states.append(LimitRows.of(state.limits()))
    weights = None if stage.attention is None else LimitRows.of(found["weights"].limits())
    limits = StageLimits(tuple(states), weights)
    return found["streams"].with_cheap_sizes(), limits


def _of_scores(taps: Taps) -> Taps:
    """The scores, and what they are made of."""
    return {name: tap for name, tap in taps.items() if name in ("scores", "query", "key", "bias")}


def _widest(parameters: Arrays) -> Arrays:
    """The parameters in the widest float there is: float64 where x64 is on.

    What scales them needs it: scores reach c^4, and what breaks their ties is c^3 smaller.
    """
    return jax.tree.map(lambda p: jnp.asarray(p, jnp.result_type(float)), dict(parameters))
