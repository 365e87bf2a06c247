"""What every measure of activations must keep: a new one is tested here the day it lands."""

from __future__ import annotations

from functools import lru_cache

import jax
import numpy as np
import pytest
from activation_cases import FORMS, case, jitted
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from saturation.measures import MEASURES
from saturation.measures.base import COMBINE, ActivationMeasure
from saturation.measures.forwards import Forwards

ACTIVATIONS = [m for m in MEASURES.values() if isinstance(m, ActivationMeasure)]
measures = pytest.mark.parametrize("measure", ACTIVATIONS, ids=lambda measure: measure.name)
LENGTHS = {"encoder_length": 8, "decoder_length": 6}


@lru_cache
def compiled(measure, form="v1_0"):
    """One compiled pass for all tests, which use the same few shapes."""
    return jitted(measure, FORMS[form])


def assert_same(found, expected, rtol=1e-5):
    assert found.keys() == expected.keys()
    for scope, statistics in expected.items():
        assert found[scope].keys() == statistics.keys()
        for name, value in statistics.items():
            np.testing.assert_allclose(
                found[scope][name], value, rtol, atol=rtol, err_msg=f"{scope} {name}"
            )


@measures
@pytest.mark.parametrize("form", FORMS)
def test_every_scope_has_every_statistic_as_a_scalar_from_shapes_alone(measure, form):
    config, _, params, tokens = case(form, **LENGTHS)
    found = jax.eval_shape(jitted(measure, config), params, *tokens)
    assert found
    for scope, statistics in found.items():
        assert set(statistics) == set(measure.statistics), scope
        assert {leaf.shape for leaf in statistics.values()} == {()}, scope
    assert set(measure.statistics.values()) <= set(COMBINE)


@measures
def test_pure_and_the_same_under_jit(measure):
    config, _, params, tokens = case(**LENGTHS)
    kept = jax.tree.map(np.array, (params, tokens))
    eager = measure.observe(Forwards(config, params, *tokens))
    observe = compiled(measure)
    first, second = observe(params, *tokens), observe(params, *tokens)
    assert_same(first, eager)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, (params, tokens), kept)


@measures
def test_neither_a_second_batch_nor_another_scale_recompiles(measure):
    config, _, params, tokens = case(**LENGTHS)
    _, _, other_params, other_tokens = case(seed=1, **LENGTHS)
    traces = []
    observe = jitted(measure, config, traces)
    observe(params, *tokens, 1000.0)
    observe(other_params, *other_tokens, 10.0)
    assert len(traces) == 1


@measures
@pytest.mark.parametrize("form", FORMS)
def test_padding_never_matters(measure, form):
    _, _, params, (encoder, decoder) = case(form, **LENGTHS)
    observe = compiled(measure, form)
    expected = observe(params, encoder, decoder)
    columns = observe(params, np.pad(encoder, ((0, 0), (0, 3))), np.pad(decoder, ((0, 0), (0, 2))))
    assert_same(columns, expected)
    rows = ((0, 2), (0, 0))
    assert_same(observe(params, np.pad(encoder, rows), np.pad(decoder, rows)), expected)


@measures
def test_sums_add_up_over_sequences(measure):
    _, _, params, (encoder, decoder) = case(batch=3, **LENGTHS)
    observe = compiled(measure)
    parts = [observe(params, encoder[rows], decoder[rows]) for rows in (slice(2), slice(2, 3))]
    total = {
        scope: {
            name: COMBINE[rule].reduce([np.asarray(part[scope][name]) for part in parts])
            for name, rule in measure.statistics.items()
        }
        for scope in parts[0]
    }
    assert_same(total, observe(params, encoder, decoder))


@measures
def test_eight_devices_are_one(measure):
    assert jax.device_count() == 8
    _, _, params, (encoder, decoder) = case(batch=3, **LENGTHS)
    rows = np.arange(16) % 3
    tokens = encoder[rows], decoder[rows]
    observe = compiled(measure)
    expected = observe(params, *tokens)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    over_data = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    found = observe(jax.device_put(params, everywhere), *jax.device_put(tokens, over_data))
    assert_same(jax.device_get(found), expected)


@measures
def test_metrics_do_not_change_their_inputs_and_cover_every_step(measure):
    _, _, params, tokens = case(**LENGTHS)
    for scope, sums in jax.device_get(compiled(measure)(params, *tokens)).items():
        column = {
            name: np.array([value, np.nan, value], np.float64) for name, value in sums.items()
        }
        kept = {name: values.copy() for name, values in column.items()}
        metrics = measure.metrics(column)
        assert metrics, scope
        for name, values in metrics.items():
            assert values.shape == (3,), (scope, name)
            assert values.dtype == np.float64
            assert np.isnan(values[1])
        for name, values in kept.items():
            np.testing.assert_array_equal(column[name], values)
