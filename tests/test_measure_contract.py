"""What every measure of weights must keep: a new one is tested here the day it lands."""

from __future__ import annotations

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from saturation.measures import MEASURES
from saturation.measures.base import ArrayInfo, WeightMeasure
from saturation.measures.reduce import (
    accumulation,
    block_statistics,
    combine,
    enable_x64,
    two_float_sum,
)

WEIGHTS = [m for m in MEASURES.values() if isinstance(m, WeightMeasure)]
measures = pytest.mark.parametrize("measure", WEIGHTS, ids=lambda measure: measure.name)
SIZES = (1, 7, 8192, 3 * 8192 + 5)


def arrays(size: int, seed: int = 0, step: float = 1e-3) -> tuple[np.ndarray, ...]:
    """An array at three steps: x, previous, first."""
    generator = np.random.default_rng(seed)
    first = generator.standard_normal(size)
    previous = first + 0.3 * generator.standard_normal(size)
    x = previous + step * generator.standard_normal(size)
    return tuple(a.astype(np.float32) for a in (x, previous, first))


def by_numpy(measure: WeightMeasure, *values: np.ndarray) -> dict[str, float]:
    """The statistics by NumPy in float64, whole arrays at once."""
    terms = measure.terms(*(value.astype(np.float64) for value in values))
    reduce = {"sum": np.sum, "max": np.max, "min": np.min}
    return {name: float(reduce[rule](terms[name])) for name, rule in measure.statistics.items()}


def by_device(measure: WeightMeasure, platform: str, *values: np.ndarray) -> dict[str, float]:
    kernel = block_statistics((measure,), platform)
    with enable_x64(accumulation(platform) == "float64"):
        partial = jax.device_get(kernel(*map(jax.numpy.asarray, values)))[measure.name]
    return {name: combine(rule, partial[name]) for name, rule in measure.statistics.items()}


@measures
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("platform", "rtol"), [("cpu", 1e-12), ("gpu", 1e-12), ("tpu", 2e-7)])
def test_the_fused_pass_agrees_with_numpy_on_every_platform(
    measure: WeightMeasure, size: int, platform: str, rtol: float
) -> None:
    """The platform chooses the accumulation; each runs on the CPU here, two-float in float32."""
    values = arrays(size)
    scale = max(map(abs, by_numpy(measure, *map(np.abs, values)).values()))
    found, expected = by_device(measure, platform, *values), by_numpy(measure, *values)
    assert set(found) == set(measure.statistics)
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol, atol=rtol * scale, err_msg=name)


@measures
def test_parts_add_up_to_the_whole(measure: WeightMeasure) -> None:
    values = arrays(1000)
    halves = [
        by_numpy(measure, *(v[cut] for v in values)) for cut in (slice(300), slice(300, None))
    ]
    whole = by_numpy(measure, *values)
    for name, rule in measure.statistics.items():
        np.testing.assert_allclose(combine(rule, [h[name] for h in halves]), whole[name], 1e-12)


@measures
def test_a_second_block_does_not_recompile(measure: WeightMeasure) -> None:
    traces = []

    def counted(*values: jax.Array) -> dict[str, jax.Array]:
        traces.append(1)
        return measure.terms(*values)

    watched = dataclasses.replace(measure, terms=counted)
    by_device(watched, "cpu", *arrays(20_000, seed=1))
    compiled = len(traces)
    by_device(watched, "cpu", *arrays(20_000, seed=2))
    assert compiled > 0
    assert len(traces) == compiled


@measures
def test_shapes_alone_are_enough(measure: WeightMeasure) -> None:
    shape = jax.ShapeDtypeStruct((9000,), ml_dtypes.bfloat16)
    with enable_x64(True):
        found = jax.eval_shape(block_statistics((measure,), "cpu"), shape, shape, shape)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {"float64"}


@measures
def test_metrics_do_not_change_their_inputs_and_cover_every_step(measure: WeightMeasure) -> None:
    statistics = {
        name: np.array([[by_numpy(measure, *arrays(64, seed))[name] for seed in range(4)]] * 2)
        for name in measure.statistics
    }
    kept = {name: values.copy() for name, values in statistics.items()}
    column = np.array([[64.0], [64.0]])
    metrics = measure.metrics(statistics, ArrayInfo(column, np.full((2, 1), 2.0), column / 8))
    assert all(values.shape == (4,) for values in metrics.values())
    assert set(measure.rates) | set(measure.against_first) <= set(metrics)
    for name, values in kept.items():
        np.testing.assert_array_equal(statistics[name], values)


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 12345])
def test_two_float_sums_do_not_lose_what_cancels(size: int) -> None:
    """Float32 alone would lose these sums entirely: large terms cancel and small ones remain."""
    generator = np.random.default_rng(size)
    large = (1e7 * generator.standard_normal(size)).astype(np.float32)
    small = generator.standard_normal(size).astype(np.float32)
    terms = generator.permutation(np.concatenate([large, -large, small]))
    found = np.asarray(two_float_sum(jax.numpy.asarray(terms)), np.float64).sum()
    exact = small.astype(np.float64).sum()
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-14 * np.abs(large).sum() + 1e-7)


@pytest.mark.parametrize("step", [1e-1, 1e-3, 1e-5])
def test_one_minus_cosine_holds_on_a_device_without_float64(step: float) -> None:
    direction = MEASURES["direction"]
    values = arrays(50_000, step=step)
    info = ArrayInfo(*(np.ones((1, 1)),) * 3)
    distances = []
    for found in (by_device(direction, "tpu", *values), by_numpy(direction, *values)):
        columns = {name: np.array([[value]]) for name, value in found.items()}
        distances.append(direction.metrics(columns, info)["cosine_distance"][0])
    np.testing.assert_allclose(distances[0], distances[1], rtol=1e-4)
