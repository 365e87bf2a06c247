"""Eigenvalues of heads: by the small matrix as by the whole one, and what is said of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from activation_cases import FORMS
from scipy.optimize import linear_sum_assignment

from saturation.errors import MeasureError
from saturation.measures.spectrum.measure import (
    SPECTRUM,
    asymmetry,
    nonzero_eigenvalues,
    observe,
    regime,
    sharpens_below,
    spectrum_summary,
)
from saturation.models.kernels import attention_arrays, split_heads


def attention(embed, heads, head_dim, seed=0, scales=None):
    """Kernels as T5 initialises them, and norm scales."""
    generator = np.random.default_rng(seed)
    joined = heads * head_dim
    value = generator.standard_normal((embed, joined)) / np.sqrt(embed)
    out = generator.standard_normal((joined, embed)) / np.sqrt(joined)
    scale = generator.standard_normal(embed) if scales is None else scales
    return value, out, scale


def whole(value, out, scale, heads):
    """Every head's d × d matrix, as it is written down."""
    columns = np.split(value, heads, axis=1)
    rows = np.split(out, heads, axis=0)
    return [np.diag(scale) @ v @ o for v, o in zip(columns, rows, strict=True)]


def assert_same_set(found, expected, rtol):
    apart = np.abs(found[:, None] - expected[None, :])
    pairs = linear_sum_assignment(apart)
    np.testing.assert_array_less(apart[pairs], rtol * np.abs(expected[pairs[1]]))


@pytest.mark.parametrize("zeros", [0, 40])
def test_the_small_matrix_has_the_whole_ones_eigenvalues_at_t5_smalls_shapes(zeros):
    value, out, scale = attention(512, 8, 64)
    scale[:zeros] = 0
    assert (scale < 0).sum() > 200, "norm scales of both signs"
    found = nonzero_eigenvalues(*split_heads(value, out, scale, 8))
    assert found.shape == (8, 64)
    for head, matrix in list(enumerate(whole(value, out, scale, 8)))[-1:]:
        expected = np.linalg.eigvals(matrix)
        largest = np.argsort(np.abs(expected))[-64:]
        rest = np.delete(expected, largest)
        assert np.abs(rest).max() < 1e-12 < np.abs(expected[largest]).min()
        assert_same_set(found[head], expected[largest], 1e-5)


def test_a_scale_with_fewer_entries_than_head_dim_leaves_exact_zeros():
    value, out, scale = attention(16, 2, 8)
    scale[5:] = 0
    found = nonzero_eigenvalues(*split_heads(value, out, scale, 2))
    assert (found == 0).sum(axis=1).tolist() == [3, 3]
    described = spectrum_summary(found)
    for head in range(2):
        assert described["fraction_negative"][head] == (found[head].real < 0).sum() / 8


def planted(kind, embed, head_dim, seed=0):
    """Left and right factors of one head's matrix that is symmetric, skew or random."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((embed, head_dim)))[0]
    inner = generator.standard_normal((head_dim, head_dim))
    if kind == "random":
        return generator.standard_normal((embed, head_dim)), generator.standard_normal(
            (head_dim, embed)
        )
    inner = inner + inner.T if kind == "symmetric" else inner - inner.T
    return basis @ inner, basis.T


@pytest.mark.parametrize(
    ("kind", "expected", "atol"),
    [("symmetric", 0, 1e-7), ("skew", 1, 1e-7), ("random", 0.71, 0.01)],
)
def test_asymmetry(kind, expected, atol):
    left, right = planted(kind, 512, 64)
    found = asymmetry(left[None], right[None])[0]
    assert found == pytest.approx(expected, abs=atol)
    matrix = left @ right
    by_definition = np.linalg.norm(matrix - matrix.T) / (2 * np.linalg.norm(matrix))
    assert found == pytest.approx(by_definition, abs=1e-7)


def test_asymmetry_of_no_matrix_is_none():
    assert np.isnan(asymmetry(np.zeros((1, 8, 2)), np.ones((1, 2, 8)))[0])


def spectra():
    generator = np.random.default_rng(1)
    yield np.array([0.5, 2.0, 0.1]) + 0j
    yield np.array([-0.2, -0.9, -1.0]) + 0j
    yield np.array([-0.5, -2.5]) + 0j
    yield np.array([-0.5, -3.0]) + 0j
    yield np.array([0.0, 0.0]) + 0j
    for size in (0.3, 1, 3):
        pairs = size * (
            generator.standard_normal((20, 3)) + 1j * generator.standard_normal((20, 3))
        )
        yield from np.concatenate([pairs, pairs.conj()], axis=1)


def growths(values, of_attention, null_space):
    """ln p of each λ^A alone, and ln s, by their definition."""
    whole = np.append(values, 0) if null_space else values
    apart = np.abs(1 + np.multiply.outer(of_attention, whole)).max(axis=1)
    return np.log(apart), np.log(np.abs(1 + whole).max())


@pytest.mark.parametrize("null_space", [True, False])
def test_the_regime_by_its_definition(null_space):
    smallest = np.linspace(-0.999, 0.999, 201)
    regimes = set()
    for values in spectra():
        apart, shared = growths(values, smallest, null_space)
        change = apart - shared
        clear = np.abs(np.abs(change) - 1e-3) > 1e-9
        expected = np.select([change > 1e-3, change < -1e-3], ["sharpens", "smooths"], "neither")
        found = np.array([regime(values, m, null_space) for m in smallest])
        assert (found == expected)[clear].all(), values
        regimes |= set(found)
    assert regimes == {"smooths", "sharpens", "neither"}


@pytest.mark.parametrize("null_space", [True, False])
def test_the_threshold_agrees_with_a_search_on_1000_random_spectra(null_space):
    """The largest λ^A at which the head sharpens all the way down from there, on a grid."""
    generator = np.random.default_rng(4)
    grid = np.linspace(-1, 1, 20_001)
    found, expected = [], []
    for number in range(1000):
        size, count = 10 ** generator.uniform(-1, 1), int(generator.integers(1, 6))
        real = size * generator.standard_normal(count)
        values = real - generator.choice([0, 0, size, 2 * size]) + 0j
        if number % 2:
            imaginary = 1j * size * generator.standard_normal(count)
            values = np.concatenate([values + imaginary, values - imaginary])
        apart, shared = growths(values, grid, null_space)
        sharp = apart > shared + 1e-12
        expected.append(grid[sharp].max() if sharp[0] else -1.0)
        found.append(float(sharpens_below(values, null_space)))
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert -1 in found
    assert sum(-1 < one < -0.01 for one in found) > 100
    assert (max(found) <= 0) == null_space


@pytest.mark.parametrize(
    ("values", "null_space", "threshold"),
    [
        ([0.5, 2.0], True, -1.0),  # H positive: smooths whatever its attention
        ([-0.2, -1.0], True, 0.0),  # in [−1, 0): sharpens where attention has a negative λ^A
        ([-0.2, -1.0], False, 1.0),  # of full rank whatever its attention
        ([-0.5, -3.0], True, -1 / 3),  # |1 − 3| = 2 against |1 − 3 λ^A_min|
        ([-0.5, -3.0], False, -1 / 3),
        ([-2.0], True, 0.0),
        ([0.0], True, -1.0),
    ],
)
def test_thresholds_by_hand(values, null_space, threshold):
    assert sharpens_below(np.array(values) + 0j, null_space) == pytest.approx(threshold)


def test_complex_eigenvalues_of_attention_sharpen_with_positive_real_parts():
    """λ_j = −β: where Re λ^A < β|λ^A|²/2."""
    for of_attention, expected in ((0.3 + 0.8j, "sharpens"), (0.3 + 0.3j, "neither")):
        beta = 1.0
        bends = of_attention.real < beta * abs(of_attention) ** 2 / 2
        assert bends == (expected == "sharpens")
        pair = np.array([of_attention, of_attention.conjugate()])
        assert regime(np.array([-beta + 0j]), pair) == expected
    assert sharpens_below(np.array([-1 + 0j])) == 0


def test_complex_eigenvalues_of_negative_real_part_can_smooth():
    """A share of 1 promises nothing of complex eigenvalues."""
    values = np.array([-0.5 + 3j, -0.5 - 3j])
    assert spectrum_summary(values[None])["fraction_sharpening"] == 1
    assert regime(values, -0.5) == "smooths"
    assert regime(np.real(values) + 0j, -0.5) == "sharpens"


def test_what_is_said_of_a_spectrum_by_hand():
    values = np.array([[-2.0, -1.0, -0.5, 0.0, 1.0, 3 + 4j, 3 - 4j, -1.5]])
    found = {name: float(one[0]) for name, one in spectrum_summary(values).items()}
    assert found["fraction_negative"] == 4 / 8
    assert found["fraction_sharpening"] == 2 / 8
    assert found["spectral_radius"] == 5
    assert (found["real_min"], found["real_max"], found["imaginary_max"]) == (-2, 3, 4)
    assert found["growth_of_shared"] == pytest.approx(np.sqrt(32))
    inside = spectrum_summary(np.array([[-0.2, -0.9]]) + 0j)
    assert inside["growth_of_shared"] == 1
    assert spectrum_summary(np.array([[-0.2, -0.9]]) + 0j, False)[
        "growth_of_shared"
    ] == pytest.approx(0.8)


SHAPES = dataclasses.replace(FORMS["umt5"], num_encoder_layers=2).parameter_shapes()


def test_every_attention_has_its_own_norm_scale_and_cross_attention_the_encoders():
    found = attention_arrays(SHAPES)
    scales = {path: arrays["scale"] for path, arrays in found.items()}
    assert scales == {
        "encoder/layers_0/attention": "encoder/layers_0/pre_attention_layer_norm/scale",
        "encoder/layers_1/attention": "encoder/layers_1/pre_attention_layer_norm/scale",
        "decoder/layers_0/self_attention": "decoder/layers_0/pre_self_attention_layer_norm/scale",
        "decoder/layers_0/encoder_decoder_attention": "encoder/encoder_norm/scale",
    }
    arrays = found["encoder/layers_1/attention"]
    assert arrays["value"] == "encoder/layers_1/attention/value/kernel"
    assert arrays["out"] == "encoder/layers_1/attention/out/kernel"


@pytest.mark.parametrize(
    ("without", "text"),
    [
        ("attention/value/kernel", r"`spectrum` is taken of T5's attentions, and none"),
        ("encoder/encoder_norm/scale", r"encoder_decoder_attention needs the array encoder/encod"),
        ("relpos_bias/rel_embedding", r"takes the number of heads from the relative position bias"),
    ],
)
def test_a_model_that_is_not_understood_is_refused(without, text):
    shapes = {name: shape for name, shape in SHAPES.items() if not name.endswith(without)}
    with pytest.raises(MeasureError, match=text):
        attention_arrays(shapes)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_weights_are_reported_and_not_averaged_away(broken):
    value, out, scale = attention(8, 2, 3)
    value[0, 0] = broken
    scopes = observe("a", {"value": value, "out": out, "scale": scale}, SHAPES)
    columns = {
        scope: SPECTRUM.metrics({k: np.array([v]) for k, v in found.items() if np.ndim(v) == 0})
        for scope, found in scopes.items()
    }
    assert {name: values[0] for name, values in columns["a"].items()} == {
        "negative_scales": (scale < 0).sum()
    }
    assert all(np.isnan(values[0]) for values in columns["a/head_0"].values())
    assert all(np.isfinite(values[0]) for values in columns["a/head_1"].values())
