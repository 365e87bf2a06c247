"""What every measure of activations must keep: a new one is tested here the day it lands.

All of them run in one jitted pass through all stages, with x64 on and float32 parameters, compiled
once for each shape. The driver runs the same stage by stage (`test_run_activations`).
"""

from __future__ import annotations

from functools import lru_cache, partial

import jax
import numpy as np
import pytest
from activation_cases import (
    FORMS,
    QUICK,
    asked_of,
    case,
    completed,
    observe_stages,
)
from t5_reference import nested

from saturation.measures import MEASURES
from saturation.measures.base import COMBINE, STEP, ActivationMeasure
from saturation.runtime.sharding import make_mesh, over_data, parameter_sharding

ACTIVATIONS = [m for m in MEASURES.values() if isinstance(m, ActivationMeasure)]
measures = pytest.mark.parametrize("measure", ACTIVATIONS, ids=lambda measure: measure.name)
LENGTHS = {"encoder_length": 8, "decoder_length": 6}
TRACES = []


@pytest.fixture(autouse=True)
def x64(highest_precision):
    with jax.enable_x64(True):
        yield


@lru_cache
def compiled(form="v1_0"):
    """All that every measure sees, jitted in one piece."""

    @partial(jax.jit, compiler_options=QUICK)
    def observe(params, encoder_tokens, decoder_tokens):
        TRACES.append(form)
        asked = asked_of(FORMS[form], encoder_tokens, decoder_tokens)
        return observe_stages(ACTIVATIONS, asked, params)

    return observe


def taken_apart(found):
    """Every scope of every measure by its own name, as the driver has them."""
    found = jax.device_get(found)
    return {measure.name: completed(measure, found[measure.name]) for measure in ACTIVATIONS}


@lru_cache
def observed():
    _, _, params, tokens = case(**LENGTHS)
    return taken_apart(compiled()(params, *tokens))


@lru_cache
def observed_padded():
    _, _, params, (encoder, decoder) = case(**LENGTHS)
    encoder, decoder = np.pad(encoder, ((0, 2), (0, 3))), np.pad(decoder, ((0, 2), (0, 2)))
    return taken_apart(compiled()(params, encoder, decoder))


@lru_cache
def observed_by_sequence():
    _, _, params, tokens = case(**LENGTHS)
    rows = range(len(tokens[0]))
    observe = compiled()
    return [taken_apart(observe(params, *(t[row : row + 1] for t in tokens))) for row in rows]


@lru_cache
def observed_on_eight_devices():
    """Rows 0, 1, 2, 0 of the batch, each on two devices that split the model between them."""
    assert jax.device_count() == 8
    config, flat, _, tokens = case(**LENGTHS)
    mesh, axes = make_mesh({"data": 4, "model": 2}), config.parameter_axes()
    params = {
        name: jax.device_put(array.astype(np.float32), parameter_sharding(mesh, axes[name], shape))
        for (name, array), shape in zip(
            flat.items(), config.parameter_shapes().values(), strict=True
        )
    }
    tokens = jax.device_put(tuple(t[np.arange(4) % 3] for t in tokens), over_data(mesh))
    return taken_apart(compiled()(nested(params), *tokens))


def added(measure, parts):
    """The statistics of several batches, combined by their rules."""
    parts = [part[measure.name] for part in parts]
    return {
        scope: {
            name: COMBINE[rule].reduce([part[scope][name] for part in parts])
            for name, rule in measure.statistics.items()
        }
        for scope in parts[0]
    }


def assert_same(found, expected, rtol=1e-5):
    assert found.keys() == expected.keys()
    for scope, statistics in expected.items():
        assert found[scope].keys() == statistics.keys()
        for name, value in statistics.items():
            np.testing.assert_allclose(
                found[scope][name], value, rtol, atol=rtol, err_msg=f"{scope} {name}"
            )


@measures
def test_every_scope_has_every_statistic_at_once(measure):
    """A number each, none left over, and none that `filled` does not know."""
    found = observed()[measure.name]
    assert found
    for scope, statistics in found.items():
        assert set(statistics) == set(measure.statistics), scope
        assert {np.shape(each) for each in statistics.values()} == {()}, scope
    assert set(measure.statistics.values()) <= set(COMBINE)


@measures
@pytest.mark.parametrize("form", FORMS)
def test_it_is_observed_from_shapes_alone(measure, form):
    _, _, params, tokens = case(form, **LENGTHS)
    found = jax.eval_shape(compiled(form), params, *tokens)[measure.name]
    names = {name for sums in found.values() for name in sums}
    assert names & set(measure.statistics)
    if measure.on_host is None and measure.finish is None:
        assert names <= set(measure.statistics)


@pytest.mark.parametrize(
    "measure",
    [
        # A minute each of most: every operation of four or more forward passes is compiled alone.
        pytest.param(m, marks=() if m.name == "scan" else pytest.mark.slow, id=m.name)
        for m in ACTIVATIONS
    ],
)
def test_jit_is_eager(measure):
    config, _, params, tokens = case(**LENGTHS)
    asked = asked_of(config, *tokens)
    found = observe_stages((measure,), asked, params)[measure.name]
    assert_same(observed()[measure.name], completed(measure, found))


def test_pure():
    _, _, params, tokens = case(**LENGTHS)
    kept = jax.tree.map(np.array, (params, tokens))
    first = taken_apart(compiled()(params, *tokens))
    jax.tree.map(np.testing.assert_array_equal, first, observed())
    jax.tree.map(np.testing.assert_array_equal, (params, tokens), kept)


def test_a_second_batch_does_not_recompile():
    _, _, params, tokens = case(**LENGTHS)
    compiled()(params, *tokens)
    traced = len(TRACES)
    _, _, params, tokens = case(seed=1, **LENGTHS)
    compiled()(params, *tokens)
    assert len(TRACES) == traced > 0


@measures
def test_padding_never_matters(measure):
    """Neither further columns of padding nor whole rows of it."""
    assert_same(observed_padded()[measure.name], observed()[measure.name])


@measures
def test_sums_add_up_over_sequences(measure):
    assert_same(added(measure, observed_by_sequence()), observed()[measure.name])


@pytest.mark.usefixtures("eight_devices")
@measures
def test_eight_devices_are_one(measure):
    rows = observed_by_sequence()
    expected = added(measure, [rows[row % 3] for row in range(4)])
    assert_same(observed_on_eight_devices()[measure.name], expected)


@measures
def test_metrics_do_not_change_their_inputs_and_cover_every_step(measure):
    for scope, sums in observed()[measure.name].items():
        column = {k: np.array([value, np.nan, value], np.float64) for k, value in sums.items()}
        column[STEP] = np.array([0.0, 10.0, 20.0])
        kept = {name: values.copy() for name, values in column.items()}
        metrics = measure.metrics(column)
        assert metrics, scope
        for name, values in metrics.items():
            assert values.shape == (3,), (scope, name)
            assert values.dtype == np.float64
            assert np.isnan(values[1])
        for name, values in kept.items():
            np.testing.assert_array_equal(column[name], values)
