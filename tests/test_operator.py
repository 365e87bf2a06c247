"""The frozen layer's map: exact, with the spectrum it must have, and iterated as defined (§11)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import QUICK, attentions_of, case
from scipy.optimize import linear_sum_assignment

from saturation.measures.smoothing import operator as operators
from saturation.measures.smoothing.forecast import forecast
from saturation.measures.smoothing.measure import SMOOTHING, head_kernels
from saturation.measures.smoothing.operator import ITERATIONS, freeze
from saturation.measures.smoothing.similarity import hfc_lfc_stationary, token_cosine
from saturation.measures.spectrum.measure import regime

EPSILON = 1e-6
iterate, iterate_some, change_ahead = (
    jax.jit(each, compiler_options=QUICK)
    for each in (operators.iterate, operators.iterate_some, operators.change_ahead)
)


@pytest.fixture(autouse=True)
def x64(highest_precision):
    with jax.enable_x64(True):
        yield


def stochastic(generator, heads, n, causal):
    power = np.exp(generator.standard_normal((heads, n, n))) * (np.tri(n) if causal else 1)
    return power / power.sum(-1, keepdims=True)


class Layer:
    """A frozen layer by its definition, on one sequence, in NumPy."""

    def __init__(self, n=6, d=5, head_dim=2, heads=2, causal=False, seed=0, equal_norms=None):
        generator = np.random.default_rng(seed)
        self.attention = stochastic(generator, heads, n, causal)
        self.value = generator.standard_normal((heads, d, head_dim))
        self.out = generator.standard_normal((heads, head_dim, d)) / np.sqrt(d)
        self.state = generator.standard_normal((n, d)) * generator.uniform(0.5, 2, (n, 1))
        if equal_norms:
            self.state *= equal_norms * np.sqrt(d) / np.linalg.norm(self.state, axis=1)[:, None]
        self.norms = np.sqrt((self.state**2).mean(axis=1) + EPSILON)

    @property
    def of_heads(self):
        return self.value @ self.out

    def __call__(self, x):
        scaled = x / self.norms[:, None]
        pairs = zip(self.attention, self.of_heads, strict=True)
        return x + sum(a @ scaled @ h for a, h in pairs)

    def dense(self):
        """The matrix of L on the rows of X laid end to end."""
        n, d = self.state.shape
        pairs = zip(self.attention / self.norms, self.of_heads, strict=True)
        return np.eye(n * d) + sum(np.kron(a, h.T) for a, h in pairs)

    def frozen(self, valid=None):
        """The same by `freeze`, a batch of one."""
        n = len(self.state)
        valid = np.ones(n, bool) if valid is None else valid
        places = np.flatnonzero(valid)
        state = np.full((len(valid), self.state.shape[1]), 7.0)
        state[places] = self.state
        weights = np.full((len(self.attention), len(valid), len(valid)), 0.3)
        weights[:, places[:, None], places] = self.attention
        arrays = (weights[None], self.value, self.out, state[None], valid[None])
        return freeze(*map(jnp.asarray, arrays), EPSILON)


def ratio(x):
    mean = x.mean(axis=0)
    return np.linalg.norm(x - mean) / (np.sqrt(len(x)) * np.linalg.norm(mean))


def cosine(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(x), 1)].mean()


def iterated(layer):
    """Growth, mean cosine and geometric mean of HFC/LFC, and whether the halves agree."""
    x, rows = layer.state / np.linalg.norm(layer.state), []
    for _ in range(ITERATIONS):
        after = layer(x)
        rows.append([np.log(np.linalg.norm(after)), cosine(x), np.log(ratio(x))])
        x = after / np.linalg.norm(after)
    window = np.array(rows[ITERATIONS // 2 :])
    early, late = np.split(window, 2)
    growth, alike, apart = window.mean(axis=0)
    agree = np.abs(early.mean(axis=0) - late.mean(axis=0)) <= 1e-2
    return {
        "joint_growth": np.exp(growth),
        "joint_token_cosine": alike,
        "joint_hfc_lfc": np.exp(apart),
        "joint_converged": float(agree.all()),
    }


@pytest.mark.parametrize("causal", [False, True])
def test_one_step_is_what_the_self_attention_of_a_t5_adds(causal):
    config, _, params, tokens = case(dtype=np.float64, encoder_length=9, decoder_length=7)
    path = "decoder/layers_0/self_attention" if causal else "encoder/layers_0/attention"
    found = attentions_of((SMOOTHING,), config, params, tokens)[path]
    weights, state, valid = found.weights.at_temperature_one, found.state, found.valid
    operator, start = freeze(weights, *head_kernels(found), state, valid, config.layer_norm_epsilon)
    expected = jnp.where(valid[..., None], state + found.output, 0)
    np.testing.assert_allclose(operator(start), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_linear_and_as_defined_whatever_the_padding(causal):
    layer = Layer(causal=causal)
    valid = np.array([1, 0, 1, 1, 1, 0, 1, 1, 0], bool)
    for rows in (np.ones(6, bool), valid):
        operator, start = layer.frozen(rows)
        np.testing.assert_allclose(operator(start)[0][rows], layer(layer.state), atol=1e-12)
        twice = np.asarray(operator(operator(2.5 * start))[0])
        np.testing.assert_allclose(twice[rows], 2.5 * layer(layer(layer.state)), atol=1e-12)
        assert not twice[~rows].any()


def test_a_causal_layer_has_the_spectra_of_its_tokens():
    """⋃_i eig(I + d_i⁻¹ Σ_h A_h[i, i] H_h)."""
    layer = Layer(n=5, d=4, causal=True)
    expected = np.concatenate([
        np.linalg.eigvals(np.eye(4) + np.einsum("h,hde->de", a, layer.of_heads) / norm)
        for a, norm in zip(layer.attention.diagonal(axis1=1, axis2=2).T, layer.norms, strict=True)
    ])  # fmt: skip
    found = np.linalg.eigvals(layer.dense())
    apart = np.abs(found[:, None] - expected)
    # Heads of rank 2 of 4 leave no eigenvalue 1 here: two of them together have rank 4.
    assert apart[linear_sum_assignment(apart)].max() < 1e-9


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("causal", [False, True])
def test_the_iterates_grow_as_the_largest_eigenvalue(causal, seed):
    layer = Layer(n=5, d=4, causal=causal, seed=seed)
    size = np.sort(np.abs(np.linalg.eigvals(layer.dense())))
    found = iterate(*layer.frozen())
    # A complex pair turns through what is averaged, and a close rival takes long to fall behind.
    np.testing.assert_allclose(np.log(found["joint_growth"][0]), np.log(size[-1]), atol=5e-3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("causal", [False, True])
def test_iterates_and_the_change_ahead_agree_with_numpy(causal, seed):
    layer = Layer(causal=causal, seed=seed)
    valid = np.array([0, 1, 1, 1, 0, 1, 1, 1], bool)
    for operator, start in (layer.frozen(), layer.frozen(valid)):
        found = iterate(operator, start)
        for name, wanted in iterated(layer).items():
            np.testing.assert_allclose(found[name][0], wanted, rtol=1e-8, err_msg=name)
        for layers in (1, 3, 12):
            x = layer.state
            for _ in range(layers):
                x = layer(x)
            wanted = np.log(ratio(x) / ratio(layer.state)) / layers
            found = change_ahead(operator, start, operator(start), layers)
            np.testing.assert_allclose(found[0], wanted, rtol=1e-9)


def test_only_sequences_asked_for_are_iterated():
    layers = [Layer(seed=seed) for seed in range(3)]
    frozen = [layer.frozen() for layer in layers]
    operator = frozen[0][0]._replace(**{
        name: jnp.concatenate([getattr(one, name) for one, _ in frozen])
        for name in ("weights", "divisor", "valid")
    })  # fmt: skip
    start = jnp.concatenate([state for _, state in frozen])
    found = iterate_some(operator, start, jnp.array([True, False, True]))
    whole = iterate(operator, start)
    for name, values in found.items():
        np.testing.assert_allclose(values, np.where([1, 0, 1], whole[name], 0), rtol=1e-9)


def stationary(attention):
    values, vectors = np.linalg.eig(attention.T)
    vector = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    return vector / vector.sum()


@pytest.mark.parametrize("causal", [False, True])
def test_what_tokens_share_of_one_head_with_equal_norms(causal):
    """πᵀX′ = πᵀX(I + H), and HFC_π′ = HFC_π + A HFC_π H: neither feeds the other."""
    layer = Layer(heads=1, causal=causal, equal_norms=1.7)
    attention, of_head = layer.attention[0], layer.of_heads[0] / layer.norms[0]
    pi, x, after = stationary(attention), layer.state, layer(layer.state)
    np.testing.assert_allclose(pi @ after, pi @ x @ (np.eye(5) + of_head), atol=1e-12)
    apart = x - pi @ x
    np.testing.assert_allclose(after - pi @ after, apart + attention @ apart @ of_head, atol=1e-12)
    values, vectors = np.linalg.eig(attention)
    others = np.delete(vectors, np.argmin(np.abs(values - 1)), axis=1)
    np.testing.assert_allclose(pi @ others, 0, atol=1e-12)


def test_what_tokens_share_of_several_heads_with_equal_norms():
    layer = Layer(heads=3, equal_norms=1.7)
    r, heads = layer.norms[0], layer.of_heads
    row = layer.state[:1]
    equal = layer(np.repeat(row, 6, axis=0))
    expected = row @ (np.eye(5) + heads.sum(axis=0) / r)
    np.testing.assert_allclose(equal, np.repeat(expected, 6, axis=0), atol=1e-12)
    centre = np.eye(6) - 1 / 6
    apart = centre @ layer.state
    moved = sum(centre @ a @ apart @ h / r for a, h in zip(layer.attention, heads, strict=True))
    np.testing.assert_allclose(centre @ layer(layer.state), apart + moved, atol=1e-12)
    # So the spectrum is that of I + ΣH_h/r and that of the map of what is centred.
    rest = np.eye(30) + sum(
        np.kron(centre @ a @ centre, h.T) / r for a, h in zip(layer.attention, heads, strict=True)
    )
    shared = np.linalg.eigvals(np.eye(5) + heads.sum(axis=0) / r)
    basis = np.linalg.svd(np.kron(centre, np.eye(5)))[0][:, :25]
    both = np.concatenate([shared, np.linalg.eigvals(basis.T @ rest @ basis)])
    distance = np.abs(np.linalg.eigvals(layer.dense())[:, None] - both)
    assert distance[linear_sum_assignment(distance)].max() < 1e-9


def test_the_first_token_of_causal_attention_goes_its_own_way():
    layer = Layer(heads=3, causal=True)
    x, after, d = layer.state, layer(layer.state), layer.norms
    heads = layer.of_heads
    np.testing.assert_allclose(after[0], x[0] @ (np.eye(5) + heads.sum(axis=0) / d[0]), atol=1e-12)
    apart = x - x[0]
    pairs = list(zip(layer.attention, heads, strict=True))
    moved = sum(a @ (apart / d[:, None]) @ h for a, h in pairs)
    source = sum(np.outer(a @ (1 / d) - 1 / d[0], x[0]) @ h for a, h in pairs)
    np.testing.assert_allclose(after - after[0], apart + moved + source, atol=1e-12)
    level = Layer(heads=3, causal=True, equal_norms=1.7)
    for attention in level.attention:
        np.testing.assert_allclose(attention @ (1 / level.norms), 1 / level.norms[0], atol=1e-12)


def test_the_split_by_the_first_token_as_defined_whatever_the_padding():
    x = np.random.default_rng(0).standard_normal((5, 4))
    expected = np.linalg.norm(x - x[0]) / (np.sqrt(5) * np.linalg.norm(x[0]))
    padded = np.full((8, 4), 3.0)
    valid = np.array([0, 1, 1, 0, 1, 1, 1, 0], bool)
    padded[valid] = x
    for state, which in ((x, np.ones(5, bool)), (padded, valid)):
        found = hfc_lfc_stationary(jnp.asarray(state)[None], jnp.asarray(which)[None])
        np.testing.assert_allclose(found[0], expected, rtol=1e-12)
        np.testing.assert_allclose(
            token_cosine(jnp.asarray(state)[None], jnp.asarray(which)[None])[0],
            cosine(x),
            atol=1e-12,
        )


def one_head(head_dim, sign, kind, seed):
    """λ^H of one sign, λ^A but for the simple 1, π, and the two matrices, 12 tokens of width 32."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((32, head_dim)))[0]
    of_head = sign * generator.uniform(0.3, 1, head_dim)
    scores = generator.standard_normal((12, 12)) * (1 if kind == "causal" else 2)
    if kind == "positive":
        scores = -(np.subtract.outer(np.arange(12), np.arange(12)) ** 2) / 8
    if kind == "negative":  # a symmetric kernel less than its diagonal: real, some below 0
        scores = (scores + scores.T) / 2 - 4 * np.eye(12)
    power = np.exp(scores) * (np.tri(12) if kind == "causal" else 1)
    attention = power / power.sum(axis=1, keepdims=True)
    values = np.linalg.eigvals(attention)
    return of_head, values, attention, (basis * of_head) @ basis.T


KINDS = ("causal", "positive", "negative", "complex")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("head_dim", [8, 32])
def test_a_heads_forecast_agrees_with_400_exact_iterations(head_dim, sign, kind):
    """HFC_π and LFC_π go their own ways: each is iterated by itself, and rounding mixes none."""
    seed = 3
    of_head, values, attention, matrix = one_head(head_dim, sign, kind, seed)
    others = np.delete(values, np.argmin(np.abs(values - 1)))
    if kind in ("causal", "positive"):
        assert (others.real > 0).all()
        assert np.abs(others.imag).max() < 1e-9
    else:
        assert others.real.min() < -0.01
        assert (np.abs(others.imag).max() > 0.1) == (kind == "complex")
    said = forecast(
        jnp.asarray(of_head + 0j)[None],
        jnp.asarray(values + 0j)[None, None],
        jnp.ones((1, 1, 12), bool),
        jnp.ones(1),
        head_dim < 32,
    )
    pi, x = stationary(attention), np.random.default_rng(1).standard_normal((12, 32))
    shared, apart = pi @ x, x - pi @ x
    logs = []
    # 400 layers, but where an attention with close eigenvalues needs more to let one of them win.
    for _ in range(3000 if (head_dim, kind) == (32, "causal") else 400):
        after = shared + shared @ matrix, apart + attention @ apart @ matrix
        after = after[0], after[1] - pi @ after[1]
        sizes = [np.linalg.norm(each) for each in after]
        logs.append(
            np.log(sizes[1] / np.linalg.norm(apart)) - np.log(sizes[0] / np.linalg.norm(shared))
        )
        shared, apart = after[0] / sizes[0], after[1] / sizes[1]
    change = float(said["apart_over_shared"][0, 0])
    assert np.mean(logs[-100:]) == pytest.approx(change, abs=1e-3)
    expected = "sharpens" if change > 1e-3 else "smooths" if change < -1e-3 else "neither"
    assert float(said[expected][0, 0]) == 1
    assert regime(of_head + 0j, others, head_dim < 32) == expected
    if head_dim == 8 and sign < 0 and kind in ("causal", "positive"):
        assert expected == "neither"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("head_dim", [8, 32])
def test_the_operators_forecast_is_the_mean_based_change_of_400_exact_layers(head_dim, sign, kind):
    _, _, attention, matrix = one_head(head_dim, sign, kind, 3)
    basis = np.linalg.svd(matrix)[0][:, :head_dim]
    x = np.random.default_rng(1).standard_normal((12, 32))
    x *= np.sqrt(32) / np.linalg.norm(x, axis=1, keepdims=True)  # r = 1
    arrays = (attention[None, None], basis[None], (basis.T @ matrix)[None], x[None])
    operator, start = freeze(*map(jnp.asarray, arrays), jnp.ones((1, 12), bool), 0.0)
    # Where tokens become equal, 400 layers would leave only the rounding of what they share.
    layers = 400 if sign < 0 else 25
    state = x
    for _ in range(layers):
        state = state + attention @ state @ matrix
        state /= np.linalg.norm(state)
    measured = np.log(ratio(state) / ratio(x)) / layers
    found = change_ahead(operator, start, operator(start), layers)
    np.testing.assert_allclose(found[0], measured, atol=1e-9)
