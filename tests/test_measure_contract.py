"""What every measure of weights must keep: a new one is tested here the day it lands."""

from __future__ import annotations

import dataclasses
import re
import warnings
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest

from saturation.measures import MEASURES, words_of
from saturation.measures.base import STEP, ArrayInfo, Block, Measure, WeightMeasure
from saturation.measures.words import COMMON_TERMS
from saturation.report.glossary import glossary
from saturation.results.table import array_info
from saturation.runs.reduce import (
    bfloat16_as_bits,
    block_statistics,
    capacity,
    combine,
    statistic_rules,
    two_float_sum,
)
from saturation.runs.shortcuts import (
    BESIDE_NONFINITE,
    CARRIED,
    DERIVED,
    DERIVED_AT,
    accumulation,
    beside_nonfinite,
    carried,
    derived,
    derived_at,
)

WEIGHTS = [m for m in MEASURES.values() if isinstance(m, WeightMeasure)]
measures = pytest.mark.parametrize("measure", WEIGHTS, ids=lambda measure: measure.name)
SIZES = (1, 7, 8192, 3 * 8192 + 5)
DTYPES = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float64))


def arrays(size: int, seed: int = 0, step: float = 1e-3) -> tuple[np.ndarray, ...]:
    """An array at three steps: x, previous, first."""
    generator = np.random.default_rng(seed)
    first = generator.standard_normal(size)
    previous = first + 0.3 * generator.standard_normal(size)
    x = previous + step * generator.standard_normal(size)
    return tuple(a.astype(np.float32) for a in (x, previous, first))


def by_numpy(measure: WeightMeasure, *values: np.ndarray) -> dict[str, float]:
    """The statistics of the terms by NumPy in float64, whole arrays at once."""
    terms = measure.terms(Block(*(v.astype(np.float64) for v in values), stored=values[0]))
    reduce = {"sum": np.sum, "max": np.max, "min": np.min}
    return {name: float(reduce[measure.statistics[name]](term)) for name, term in terms.items()}


def by_device(measure: WeightMeasure, platform: str, *values: np.ndarray) -> dict[str, float]:
    kernel = block_statistics((measure,), platform)
    count = values[0].size
    buffers = [
        np.full(capacity(count, platform, value.dtype), np.nan, value.dtype) for value in values
    ]
    for buffer, value in zip(buffers, values, strict=True):
        buffer[:count] = value  # what lies behind it must not count
    if platform == "cpu":
        buffers = [bfloat16_as_bits(buffer) for buffer in buffers]
    with jax.enable_x64(accumulation(platform) == "float64"):
        found = jax.device_get(kernel(np.int32(count), *map(jax.numpy.asarray, buffers)))
    rules = statistic_rules([measure], platform)
    return {n: combine(rule, parts) for (n, rule), parts in zip(rules.items(), found, strict=True)}


def completed(
    measure: WeightMeasure, found: dict[str, float], *values: np.ndarray
) -> dict[str, float]:
    """Add what is carried from other steps, and what is derived and was not summed."""
    squares = [float(np.sum(value.astype(np.float64) ** 2)) for value in values[1:]]
    sums = found | dict(zip(("previous_squares", "first_squares"), squares, strict=True))
    return {name: derive(sums) for name, derive in derived([measure], "cpu").items()} | sums


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
    unsummed = carried([measure]).keys() | derived([measure], platform)
    assert set(found) == set(measure.statistics) - unsummed
    found = completed(measure, found, *values)
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol, atol=rtol * scale, err_msg=name)


@measures
def test_a_maximum_is_of_what_is_not_negative(measure: WeightMeasure) -> None:
    values = arrays(100)
    terms = measure.terms(Block(*values, stored=values[0]))
    for name, rule in measure.statistics.items():
        assert rule != "max" or (terms[name] >= 0).all()


@measures
def test_parts_add_up_to_the_whole(measure: WeightMeasure) -> None:
    values = arrays(1000)
    halves = [
        by_numpy(measure, *(v[cut] for v in values)) for cut in (slice(300), slice(300, None))
    ]
    whole = by_numpy(measure, *values)
    for name, wanted in whole.items():
        parts = [half[name] for half in halves]
        np.testing.assert_allclose(combine(measure.statistics[name], parts), wanted, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@measures
def test_every_stored_dtype_is_summed_at_its_own_values(
    measure: WeightMeasure, dtype: np.dtype
) -> None:
    values = [value.astype(dtype) for value in arrays(5000)]
    found, expected = by_device(measure, "cpu", *values), by_numpy(measure, *values)
    found = completed(measure, found, *values)
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, 1e-12, 1e-12, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_is_counted_in_every_stored_dtype(dtype: np.dtype) -> None:
    values = [value.astype(dtype) for value in arrays(5000)]
    values[0][[3, 8, 4999]] = np.nan, -np.inf, np.inf
    found = by_device(MEASURES["norms"], "cpu", *values)
    assert found["nonfinite"] == 3
    assert np.isnan(found["max_abs"])


def test_statistics_of_one_name_are_one_statistic() -> None:
    """What several measures call alike is computed once, for all of them."""
    values = arrays(100)
    found: dict[str, float] = {}
    for measure in WEIGHTS:
        for name, value in by_numpy(measure, *values).items():
            assert found.setdefault(name, value) == value, (measure.name, name)


@measures
def test_what_is_carried_is_carried_from_a_sum_of_its_own(measure: WeightMeasure) -> None:
    for name, (source, step) in carried([measure]).items():
        assert name in measure.statistics
        assert source in statistic_rules([measure], "cpu")
        assert measure.compares_steps if step == "previous" else measure.against_first


def test_a_shortcut_holds_only_where_what_it_follows_from_is_asked_for() -> None:
    rows = [
        *((carried, name, {of}) for name, (of, _) in CARRIED.items()),
        *((beside_nonfinite, name, {of}) for name, of in BESIDE_NONFINITE.items()),
        *((partial(derived, platform="cpu"), n, {*row.needs}) for n, row in DERIVED.items()),
        *(
            (partial(derived_at, position, platform="cpu"), name, {*row.needs})
            for position, known in enumerate(DERIVED_AT)
            for name, row in known.items()
        ),
    ]
    for holding, name, needs in rows:
        for lacking in (set(), *({one} for one in needs)):
            rules = dict.fromkeys({name, *needs} - lacking, "sum")
            asked = dataclasses.replace(WEIGHTS[0], statistics=rules)
            assert (name in holding(measures=[asked])) == (not lacking)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_what_is_not_finite_is_counted(platform: str) -> None:
    x = np.ones(20_000, np.float32)
    x[[0, 3, 9000, 19_999]] = [np.nan, np.inf, -np.inf, np.nan]
    found = by_device(MEASURES["norms"], platform, x, x, x)
    assert found["nonfinite"] == 4
    assert not np.isfinite(found["sum_squares"])
    assert not np.isfinite(found["max_abs"])


@measures
def test_what_is_derived_of_infinite_sums_is_nan_without_a_warning(measure: WeightMeasure) -> None:
    infinite = {name: np.array([np.inf]) for name in measure.statistics}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for derive in (derived([measure], "cpu") | derived_at(1, [measure], "cpu")).values():
            assert np.isnan(derive(infinite)).all()


@measures
@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_is_known_at_the_first_steps_is_not_summed_but_right(
    measure: WeightMeasure, position: int
) -> None:
    """Blocks as the driver gives them: one buffer thrice, then the first one twice."""
    x, previous, first = arrays(20_000)
    given = {0: (first, first, first), 1: (x, first, first), 2: (x, previous, first)}[position]
    buffers = {id(a): np.resize(a, capacity(a.size, "cpu", a.dtype)) for a in given}
    with jax.enable_x64(True):
        kernel = block_statistics((measure,), "cpu")
        parts = kernel(np.int32(x.size), *(buffers[id(a)] for a in given))
    rules = statistic_rules([measure], "cpu")
    found = dict(zip(rules, np.asarray(parts)[:, 0], strict=True))
    known = derived_at(position, [measure], "cpu")
    assert all(found[name] == 0 for name in known)
    assert derived_at(position, [measure], "gpu") == {}
    sums = completed(measure, found, *given)
    for name, wanted in by_numpy(measure, *given).items():
        value = known[name](sums) if name in known else sums[name]
        scale = np.abs(list(sums.values())).max()
        np.testing.assert_allclose(value, wanted, 1e-12, 1e-12 * scale, err_msg=name)


def test_direction_sums_less_at_the_first_two_steps() -> None:
    known = [set(derived_at(at, [MEASURES["direction"]], "cpu")) for at in range(3)]
    assert known == [{"delta_squares", "first_now"}, {"first_now"}, set()]


@measures
def test_a_second_block_does_not_recompile(measure: WeightMeasure) -> None:
    traces = []

    def counted(block: Block) -> dict[str, jax.Array]:
        traces.append(1)
        return measure.terms(block)

    watched = dataclasses.replace(measure, terms=counted)
    by_device(watched, "cpu", *arrays(20_000, seed=1))
    compiled = len(traces)
    by_device(watched, "cpu", *arrays(30_000, seed=2))
    assert compiled > 0
    assert len(traces) == compiled


@measures
def test_shapes_alone_are_enough_on_an_accelerator(measure: WeightMeasure) -> None:
    shape = jax.ShapeDtypeStruct((capacity(9000, "gpu", DTYPES[1]),), ml_dtypes.bfloat16)
    with jax.enable_x64(True):
        kernel = block_statistics((measure,), "gpu")
        found = jax.eval_shape(kernel, np.int32(9000), shape, shape, shape)
    count = len(statistic_rules([measure], "gpu"))
    assert (found.shape, found.dtype) == ((count, 1), np.float64)


@measures
def test_metrics_do_not_change_their_inputs_and_cover_every_step(measure: WeightMeasure) -> None:
    statistics = {
        name: np.array([[by_numpy(measure, *arrays(64, seed))[name] for seed in range(4)]] * 2)
        for name in by_numpy(measure, *arrays(64))
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


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("step", [1e-1, 1e-3, 1e-5, 1e-7])
def test_one_minus_cosine_holds_for_small_steps(platform: str, step: float) -> None:
    """With and without float64: from the sum of its own and from the sums it is derived from."""
    direction = MEASURES["direction"]
    values = arrays(50_000, step=step)
    info = ArrayInfo(*(np.ones((1, 1)),) * 3)
    metrics = []
    for found in (by_device(direction, platform, *values), by_numpy(direction, *values)):
        sums = completed(direction, found, *values)
        columns = {name: np.array([[value]]) for name, value in sums.items()}
        metrics.append(direction.metrics(columns, info))
    for name, rtol, atol in (("cosine_distance", 1e-4, 0), ("alignment", 0, 1e-6)):
        np.testing.assert_allclose(metrics[0][name], metrics[1][name], rtol, atol, err_msg=name)


def test_one_minus_cosine_holds_where_one_weight_moved_by_one_rounding() -> None:
    first = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    moved = first.copy()
    moved[7] = np.nextafter(moved[7], np.float32(9))
    direction, values = MEASURES["direction"], (moved, first, first)
    sums = completed(direction, by_device(direction, "cpu", *values), *values)
    columns = {name: np.array([[value]]) for name, value in sums.items()}
    found = direction.metrics(columns, ArrayInfo(*(np.ones((1, 1)),) * 3))
    a, b = first.astype(np.longdouble), moved.astype(np.longdouble)
    aa, ad, dd = a @ a, a @ (b - a), (b - a) @ (b - a)
    exact = (dd - ad**2 / aa) / (2 * aa)
    np.testing.assert_allclose(found["cosine_distance"], float(exact), rtol=1e-4)


def term_of(metric: str) -> str:
    """The row of the glossary that a metric belongs to."""
    metric = re.sub("_(stderr|unscaled|per_step)$", "", metric)
    return re.sub("_at_[0-9.e+]+$", "_at_c", metric).replace("_imaginary", "_real")


@pytest.mark.parametrize("measure", MEASURES.values(), ids=lambda measure: measure.name)
def test_a_measure_explains_every_metric_it_gives(measure: Measure) -> None:
    """Of a layer, of a head and of an attention, whatever has a meaning there."""
    named = {term.metric for term in (*words_of(measure.name).terms, *COMMON_TERMS)}
    statistics = {name: np.ones((1, 2)) for name in measure.statistics}
    if isinstance(measure, WeightMeasure):
        info = array_info({"encoder/layers_0/mlp/wi/kernel": {"shape": [2, 2]}})
        found = measure.metrics(statistics, info)
        assert "…_per_step" in named or not measure.rates
    else:
        column = {name: values[0] for name, values in statistics.items()}
        found = measure.metrics(column | {STEP: np.arange(2.0)})
    assert found
    assert {term_of(metric) for metric in found} <= named


def test_no_metric_is_explained_twice() -> None:
    metrics = [term.metric for term in glossary()]
    assert len(metrics) == len(set(metrics))
