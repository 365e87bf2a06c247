"""Attention that is given its eigenvalues: it has them, keeps them, and is a T5 otherwise."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from activation_cases import FORMS, QUICK, observe_table
from flax.traverse_util import flatten_dict
from t5_reference import nested, random_tokens, reference_t5

from saturation.errors import ArgumentError
from saturation.measures.smoothing.measure import SMOOTHING
from saturation.measures.spectrum.measure import SPECTRUM
from saturation.models import T5, T5Config
from saturation.models.eigenvalues import SPECTRA, spectral_kernels

orthonormal = lambda columns: np.linalg.qr(columns)[0]
kinds = pytest.mark.parametrize("kind", SPECTRA)
ALLOWED = {
    "sharpen": lambda values: (values >= -1) & (values <= 0),
    "smooth": lambda values: values >= 0,
    "free": np.isfinite,
}


def configured(kind, form="v1_0"):
    return dataclasses.replace(FORMS[form], attention_spectrum=kind)


def initialised(config, seed=0):
    tokens = random_tokens(config, encoder_length=8, decoder_length=6)
    params = jax.jit(T5(config).init)(jax.random.key(seed), *tokens)["params"]
    return nn.unbox(params), tokens


def whole_matrices(config, params):
    """The d × d matrix V Λ Vᵀ of every head of self-attention, by NumPy, in float64."""
    flat = {n: np.asarray(a, np.float64) for n, a in flatten_dict(params, sep="/").items()}
    kind = config.attention_spectrum
    for name, basis in flat.items():
        if name.endswith(f"/{kind}/basis"):
            psi = flat[name.replace("basis", "psi")]
            for head, columns in enumerate(np.split(basis, config.num_heads, axis=1)):
                v = np.linalg.qr(columns)[0]
                yield v @ np.diag(SPECTRA[kind](psi[head])) @ v.T


def extremes(config, params):
    """The smallest and the largest eigenvalue of all heads' matrices, zeros of their rank apart."""
    values = np.concatenate([np.linalg.eigvalsh(m) for m in whole_matrices(config, params)])
    assert values.size == 2 * config.num_heads * config.emb_dim
    return values.min(), values.max()


@kinds
@pytest.mark.parametrize(("embed", "heads", "head_dim"), [(8, 2, 4), (6, 3, 6)])
def test_the_product_of_the_kernels_has_the_eigenvalues_it_is_given(kind, embed, heads, head_dim):
    generator = np.random.default_rng(0)
    basis = generator.standard_normal((embed, heads * head_dim))
    psi = 2 * generator.standard_normal((heads, head_dim))
    given = np.sort(SPECTRA[kind](psi), axis=1)
    assert ALLOWED[kind](given).all()
    value, out = spectral_kernels(kind, basis, psi, orthonormal)
    for head in range(heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        matrix = value[:, part] @ out[part]
        expected = np.sort(np.concatenate([given[head], np.zeros(embed - head_dim)]))
        np.testing.assert_allclose(np.sort(np.linalg.eigvals(matrix).real), expected, atol=1e-12)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "form"), [("sharpen", "v1_0"), ("smooth", "umt5"), ("free", "v1_0")]
)
def test_it_is_a_t5_with_those_kernels(kind, form):
    config = configured(kind, form)
    with jax.enable_x64(True):
        params, tokens = initialised(config)
        params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float64), params)
        apply = jax.jit(T5(config).apply, compiler_options=QUICK)
        logits, taps = apply({"params": params}, *tokens)
    flat = {name: np.asarray(a) for name, a in flatten_dict(params, sep="/").items()}
    assert {name: a.shape for name, a in flat.items()} == config.parameter_shapes()
    for name in list(flat):
        if name.endswith("/basis"):
            path = name.removesuffix(f"/{kind}/basis")
            psi = flat.pop(f"{path}/{kind}/psi")
            value, out = spectral_kernels(kind, flat.pop(name), psi, orthonormal)
            flat |= {f"{path}/value/kernel": value, f"{path}/out/kernel": out}
    expected, streams = reference_t5(FORMS[form], flat, *tokens)
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(taps["decoder/final"], streams["decoder/final"], atol=1e-9)


@kinds
def test_the_spectrum_stays_where_it_is_promised_through_200_updates(kind):
    """Adam at a rate that moves every ψ by up to 10: whatever it does, Λ keeps its promise."""
    config = configured(kind)
    params, tokens = initialised(config)
    targets = jnp.asarray(np.roll(tokens[1], -1, axis=1))
    optimizer = optax.adam(0.05)

    def loss_of(params):
        logits, _ = T5(config).apply({"params": params}, *tokens)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        # Pushed to both sides, or those of "sharpen" would have no reason to leave [−1, 0].
        encoder = params["encoder"]["layers_0"]["attention"][kind]["psi"]
        decoder = params["decoder"]["layers_0"]["self_attention"][kind]["psi"]
        return losses.mean() + 0.3 * (encoder.sum() - decoder.sum())

    @jax.jit
    def update(params, state):
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam promotes
            changes, state = optimizer.update(jax.grad(loss_of)(params), state, params)
        return optax.apply_updates(params, changes), state

    first, state = params, optimizer.init(params)
    seen = [extremes(config, params)]
    for step in range(200):
        params, state = update(params, state)
        if step % 20 == 19:
            seen.append(extremes(config, params))
    assert ALLOWED[kind](np.round(seen, 12)).all(), seen
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first, params)
    assert all(one > 0.1 for one in flatten_dict(moved).values()), "everything is trained"
    psi = [a for n, a in flatten_dict(params, sep="/").items() if n.endswith("psi")]
    assert min(a.min() for a in psi) < -1 < 1 < max(a.max() for a in psi), "ψ itself is not held"


@pytest.mark.parametrize(("kind", "sharpens"), [("sharpen", 1), ("smooth", 0)])
def test_the_measures_see_the_spectrum_that_was_given(kind, sharpens):
    config = configured(kind)
    params, tokens = initialised(config)
    flat = flatten_dict(jax.device_get(params), sep="/")
    shapes = config.parameter_shapes()
    groups = SPECTRUM.groups(shapes)
    assert set(groups) == set(config.attention_names())
    path = "encoder/layers_0/attention"
    found = SPECTRUM.observe(path, {r: flat[n] for r, n in groups[path].items()}, shapes)
    given = SPECTRA[kind](np.asarray(flat[f"{path}/{kind}/psi"], np.float64))
    for head, values in enumerate(given):
        seen = found[f"{path}/head_{head}"]
        np.testing.assert_allclose(np.sort(seen["real_unscaled"]), np.sort(values), atol=1e-12)
        assert seen["asymmetry_unscaled"] < 1e-7
    assert found[f"{path}/head_0"]["fraction_sharpening_unscaled"] == np.mean(given[0] < 0)
    with jax.enable_x64(True):
        table = observe_table(SMOOTHING, config, jax.device_get(params), tokens)
    assert table[f"{path}/head_0"]["sharpens"] == sharpens


@kinds
def test_names_and_shapes_tell_the_spectrum(kind):
    config = configured(kind)
    assert T5Config.from_parameters(config.parameter_shapes()) == config
    mixed = config.parameter_shapes() | FORMS["v1_0"].parameter_shapes()
    with pytest.raises(ArgumentError, match=r"unknown: encoder/layers_0/attention/value/kernel"):
        T5Config.from_parameters(mixed)


def test_a_t5_has_none_and_what_is_not_understood_is_refused(unchecked):
    assert FORMS["v1_0"].attention_spectrum is None
    assert not any("psi" in name for name in FORMS["v1_0"].parameter_shapes())
    with pytest.raises(ArgumentError, match="must be of sharpen, smooth, free, or None, not 'up'"):
        configured("up")
    with pytest.raises(ArgumentError, match="head_dim must not exceed 8, but is 9"):
        dataclasses.replace(configured("free"), head_dim=9)
    shapes = {
        name.replace("sharpen", "flatten"): shape
        for name, shape in configured("sharpen").parameter_shapes().items()
    }
    with pytest.raises(ArgumentError, match=r"unknown: encoder/layers_0/attention/flatten/basis"):
        T5Config.from_parameters(nested({n: np.zeros(s) for n, s in shapes.items()}))
