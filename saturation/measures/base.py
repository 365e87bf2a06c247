"""What a measure is: additive statistics of each array, and metrics derived from them by scope."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from saturation.models.base import Attention, Needs, recorded_model

Rule = Literal["sum", "max", "min"]
Statistics = Mapping[str, np.ndarray]  # {statistic: float64 (arrays, steps)}
STEP = "step"  # beside an activation measure's statistics: the training steps, float64 (steps,)
Shapes = Mapping[str, tuple[int, ...]]  # {array: its shape}
Found = dict[str, dict[str, Any]]  # {scope: {statistic: array}}


class ModelShapes(dict[str, tuple[int, ...]]):
    """The shapes of a model's arrays, and its attentions, which arrays alone do not tell."""

    def __init__(self, shapes: Shapes, attentions: Sequence[Attention] = ()) -> None:
        super().__init__(shapes)
        self.attentions = tuple(attentions)

    @classmethod
    def of_run(cls, described: Mapping[str, Any]) -> ModelShapes:
        """Return those that a `run.json` records."""
        shapes = {name: tuple(each["shape"]) for name, each in described["arrays"].items()}
        model = described.get("model")
        return cls(shapes, recorded_model(model)[1] if model else ())


COMBINE: dict[Rule, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


@dataclass(frozen=True)
class ArrayInfo:
    """What a metric may need to know of the arrays in a scope, each of shape (arrays, 1).

    Attributes:
      size: number of elements.
      rank: number of axes; a matrix has two or more.
      fan_in: length of the contracted axis of a kernel, NaN for what is no kernel.
    """

    size: np.ndarray
    rank: np.ndarray
    fan_in: np.ndarray


class Block(NamedTuple):
    """A stretch of one array at three steps, in the accumulation's dtype: NumPy or traced JAX.

    Attributes:
      now: its values at the step that is measured.
      previous: at the previous selected checkpoint.
      first: at the first selected checkpoint.
      stored: `now` in the dtype it is stored in, for what needs no wider arithmetic.
    """

    now: Any
    previous: Any
    first: Any
    stored: Any


@dataclass(frozen=True, eq=False)  # hashed by identity: it keys the cache of compiled passes
class WeightMeasure:
    """A measure of weights: streamed array by array, its statistics add up over blocks and arrays.

    Attributes:
      name: what the command line calls it.
      definition: one line, the formula.
      source: the paper, or "ours".
      statistics: {statistic: how two parts of it combine}. A name that several measures use is one
        statistic, computed once.
      terms: Block -> {statistic: elementwise terms}, which the driver reduces by the statistic's
        rule, or knows a way around (`saturation.runs.shortcuts`). Truth values are counted; what a
        "max" is taken of is no less than 0.
      metrics: (statistics, arrays) -> {metric: float64 (steps,)}, over the arrays of one scope; a
        metric that has no meaning there is left out.
      compares_steps: whether it needs the previous checkpoint, so that the first has no value.
      against_first: the metrics that compare with the first checkpoint instead of the previous one.
      rates: the metrics that are also given as `<metric>_per_step`, divided by t′ − t.
      version: raised when a metric or statistic of this name changes its meaning. Parts of another
        version are named and left out, so that no table mixes the two.
      log_rates: the metrics that are given divided by ln(t′/t), and have no value where t = 0.
    """

    name: str
    definition: str
    source: str
    statistics: Mapping[str, Rule]
    terms: Callable[[Block], dict[str, Any]]
    metrics: Callable[[Statistics, ArrayInfo], dict[str, np.ndarray]]
    compares_steps: bool = False
    against_first: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    version: int = 1
    log_rates: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ActivationMeasure:
    """A measure of activations: taken a checkpoint at a time; its statistics add over sequences.

    Activations flow through a model stage by stage, and the measure sees one stage at a time. A
    scope is a layer (`encoder/layers_3`) or a head (`encoder/layers_3/attention/head_5`). Each star
    (`encoder/layers_3/attention/head_*`) stands for an axis of its arrays, counted from 0: a
    T5-base has 7,000 numbers of heads, and taking them apart is no work for XLA.

    Attributes:
      name: what the command line calls it.
      definition: one line, the formula.
      source: the paper, or "ours".
      statistics: {statistic: how two parts of it combine}, the same for every scope it reports.
      observe: StageOutputs -> {scope: {statistic: array}}, of what the stage completes; traced once
        for all stages that compute the same, with every other measure asked for, for one batch of
        sequences. Sums that a scope has none of may be left out: they are 0.
      metrics: {statistic: float64 (steps,)} of one scope, the steps themselves under `STEP` ->
        {metric: float64 (steps,)}; a metric that has no meaning there is left out.
      needs: (limits asked for, the finite c) -> the forward passes that `observe` reads.
      on_host: {scope: {name: array}} of one stage -> the same with statistics in the place of what
        NumPy computes better, such as eigenvalues; runs beside the next stages.
      finish: {scope: {name: array}} of all stages -> the same with statistics in the place of what
        takes several stages, such as how a stack ended; of one batch.
      needs_corpus: whether it asks of every key token if it is common or distinct.
      own_tokens: (tokens, the model's config, options) -> the tokens, with targets, that it takes a
        forward of its own on; None where those given will do.
      describe: likewise -> what `run.json` says of it under its name.
      version: raised when a metric or statistic of this name changes its meaning. Parts of another
        version are named and left out, so that no table mixes the two.
    """

    name: str
    definition: str
    source: str
    statistics: Mapping[str, Rule]
    observe: Callable[[Any], dict[str, dict[str, Any]]]
    metrics: Callable[[Statistics], dict[str, np.ndarray]]
    needs: Callable[[Sequence[str], float], Needs] = lambda limits, scale: Needs()
    on_host: Callable[[Found], Found] | None = None
    finish: Callable[[Found], Found] | None = None
    needs_corpus: bool = False
    own_tokens: Callable[[Any, Any, Any], Any] | None = None
    describe: Callable[[Any, Any, Any], dict[str, Any]] | None = None
    version: int = 1

    def filled(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Return every statistic of a scope: 0 where it has none."""
        zero = np.zeros(np.shape(next(iter(sums.values()))))
        return {name: sums.get(name, zero) for name in self.statistics}


def expand_wildcards(observed: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Return what a measure of activations observed with every starred scope taken apart.

    >>> expand_wildcards({"layers_*": {"tokens": np.array([3.0, 4.0])}})["layers_1"]["tokens"]
    array(4.)
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for scope, statistics in observed.items():
        for index in np.ndindex(np.shape(next(iter(statistics.values())))):
            name = scope
            for position in index:
                name = name.replace("*", str(position), 1)
            found[name] = {
                key: np.asarray(np.asarray(each)[index]) for key, each in statistics.items()
            }
    return found


@dataclass(frozen=True, eq=False)
class GroupMeasure:
    """A measure of several arrays together, such as those of one attention, at one step.

    It runs on the host, in NumPy and float64.

    Attributes:
      name: what the command line calls it.
      definition: one line, the formula.
      source: the paper, or "ours".
      statistics: the numbers it returns of each scope.
      vectors: and the vectors, kept on disk beside them for `results.load_vectors`.
      groups: {array: its shape}, all of a checkpoint's (in a run, `ModelShapes`) -> {group: {role:
        array}}; a group is named
        by the module it belongs to (`encoder/layers_3/attention`).
      observe: (group, {role: array}, {array: its shape}) -> {scope: {statistic: scalar, vector:
        (n,)}}, of one group at one step; the arrays in the dtype they are stored in.
      metrics: {statistic: float64 (steps,)} of one scope -> {metric: float64 (steps,)}; a metric
        that has no meaning there is left out.
      version: raised when a metric or statistic of this name changes its meaning. Parts of another
        version are named and left out, so that no table mixes the two.
    """

    name: str
    definition: str
    source: str
    statistics: tuple[str, ...]
    vectors: tuple[str, ...]
    groups: Callable[[Shapes], dict[str, dict[str, str]]]
    observe: Callable[[str, Mapping[str, np.ndarray], Shapes], dict[str, dict[str, Any]]]
    metrics: Callable[[Statistics], dict[str, np.ndarray]]
    version: int = 1


Measure = WeightMeasure | ActivationMeasure | GroupMeasure
