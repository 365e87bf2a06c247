"""Limits compose: that of g ∘ f is found from the expansion of f, whatever f and g are."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import FORMS, QUICK, case

from saturation.errors import LimitError
from saturation.limit import Expansion, Limit, count_ties, saturate, tie_report
from saturation.models.base import Needs
from saturation.models.variants import advance, start


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def weights(**shapes):
    generator = np.random.default_rng(3)
    return {name: np.asarray(generator.standard_normal(s)) for name, s in shapes.items()}


W = weights(a=(4, 5), b=(5, 4), c=(4,), s=(), t=(6, 4))
X = np.random.default_rng(4).standard_normal((3, 4))
REPEATED = np.concatenate([X, X[:1]])


def norm(x):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred * centred, -1, keepdims=True) + 1e-6)


def attend(p, x):
    return jax.nn.softmax(x @ p["a"] @ p["b"] @ x.T, axis=-1) @ x


# Chains of functions of (parameters, what the one before made).
CHAINS = {
    "products": (lambda p, x: x @ p["a"], lambda p, y: y @ p["b"], lambda p, y: y * p["c"]),
    "residual": (lambda p, x: x + x @ p["a"] @ p["b"], lambda p, y: y + jnp.tanh(y) * p["c"]),
    "activations": (lambda p, x: x @ p["a"], lambda p, y: jax.nn.gelu(y) @ p["b"],
                    lambda p, y: jax.nn.relu(y) + jax.nn.sigmoid(y)),
    "norms": (lambda p, x: x @ p["a"] @ p["b"] + x, lambda p, y: norm(y) * p["c"],
              lambda p, y: layer_norm(y) + p["s"]),
    # What is the same along an axis by construction cancels, wherever the function is cut.
    "uniform": (lambda p, x: x + p["s"], lambda p, y: y - y.mean(-1, keepdims=True)),
    "uniform twice": (lambda p, x: p["s"] * p["s"] * jnp.ones_like(x) + x,
                      lambda p, y: y - y.mean(-1, keepdims=True), lambda p, y: y / p["s"]),
    "ties": (lambda p, x: x @ p["a"] @ p["b"], lambda p, y: attend(p, y), lambda p, y: norm(y)),
    "a tree": (lambda p, x: {"y": x @ p["a"], "n": x.sum(), "z": (jnp.abs(p["c"]), p["s"])},
               lambda p, o: o["y"] @ p["b"] * o["n"] + o["z"][0] * o["z"][1]),
    "bounds": (lambda p, x: jnp.maximum(x @ p["a"], 1.0), lambda p, y: jnp.minimum(y, 6.0),
               lambda p, y: y @ p["b"] + p["c"]),
    "lower terms": (lambda p, x: x @ p["a"] + 1.0, lambda p, y: y - y[:, :1],
                    lambda p, y: y @ p["b"], lambda p, y: jnp.sort(y, axis=-1)),
    "integers": (lambda p, x: (x @ p["a"], jnp.argmax(x @ p["a"], axis=-1)),
                 lambda p, o: jnp.take_along_axis(o[0], o[1][:, None], axis=-1) * p["s"]),
}  # fmt: skip


def in_one_piece(chain, p, x):
    for function in chain:
        x = function(p, x)
    return x


def in_pieces(chain, p, x, jit):
    *first, last = chain
    for function in first:
        found = saturate(function, expansions=True)
        x = (jax.jit(found) if jit else found)(p, x)
    return jax.jit(saturate(last))(p, x)


def assert_same_limit(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", CHAINS)
def test_the_limit_of_a_composition_is_the_composition_of_limits(name, jit):
    chain, x = CHAINS[name], REPEATED if name == "ties" else X
    expected = jax.jit(saturate(partial(in_one_piece, chain)))(W, x)
    assert_same_limit(in_pieces(chain, W, x, jit), expected)


def test_degrees_are_those_of_the_whole():
    """x + s·1 less its mean does not grow, though both of them do."""
    chain = CHAINS["uniform"]
    found = in_pieces(chain, W, X, jit=True)
    assert found.degree == 0
    np.testing.assert_allclose(found.value, X - X.mean(-1, keepdims=True), atol=1e-12)


def test_validity_and_ties_go_along():
    zero = X * (np.arange(3) > 0)[:, None]
    made = saturate(lambda p, x: x @ p["a"], expansions=True)(W, zero)
    found = jax.jit(saturate(lambda p, y: norm(y)))(W, made)
    whole = jax.jit(saturate(lambda p, x: norm(x @ p["a"])))(W, zero)
    np.testing.assert_array_equal(found.valid, whole.valid)
    broken = saturate(lambda p, x: 1 / (x @ p["a"]), expansions=True)(W, zero)
    with pytest.raises(LimitError, match="have no limit"):
        saturate(lambda p, y: y * p["s"])(W, broken)
    scores = saturate(lambda p, x: x @ p["t"].T, expansions=True)(W, REPEATED)
    ties = count_ties(lambda p, y: jnp.max(y, axis=0))
    assert int(ties(W, scores)) == int(
        count_ties(lambda p, x: jnp.max(x @ p["t"].T, axis=0))(W, REPEATED))  # fmt: skip
    assert tie_report(lambda p, y: jnp.max(y, axis=0))(W, scores).ties_reliable


def test_float32_stays_unreliable():
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), W)
    made = saturate(lambda p, x: x @ p["a"], expansions=True)(narrow, X.astype(jnp.float32))
    assert not made.limits().ties_reliable
    assert not jax.jit(saturate(lambda p, y: jnp.tanh(y)))(narrow, made).ties_reliable


def test_an_expansion_is_a_pytree_whose_parts_can_be_taken_and_joined():
    made = jax.jit(saturate(CHAINS["a tree"][0], expansions=True))(W, X)
    assert isinstance(made, Expansion)
    leaves, structure = jax.tree.flatten(made)
    again = jax.tree.unflatten(structure, leaves)
    assert_same_limit(again.limits(), made.limits())
    assert isinstance(made["y"].limits(), Limit)
    assert made["z"][1].limits().degree == 1
    joined = made.only(["y", "n"]).updated(made.only(["z"]))
    assert_same_limit(joined.limits(), made.limits())
    assert set(made.without(["y"]).tree) == {"n", "z"}
    assert jax.tree.structure(joined) == jax.tree.structure(joined.updated(made.only(["n"])))


def test_two_calls_of_one_function_are_told_apart():
    """They have one structure, and their atoms are not each other's."""
    first, second = (
        jax.jit(saturate(lambda p, x: {"y": x + p["s"]}, expansions=True))(W, x) for x in (X, 2 * X)
    )
    other = saturate(lambda p, y: {"z": y["y"]}, expansions=True)(W, second)
    joined = first.updated(other)
    found = jax.jit(saturate(lambda p, o: o["z"] - o["y"]))(W, joined)
    order, leading = found.leading()
    assert set(np.asarray(order).tolist()) == {0}
    np.testing.assert_allclose(leading, X, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_stages_of_a_t5_compose_to_its_limit(form):
    """Every stage by itself, against one call of the whole, to the last bit but one."""
    config, flat, _, tokens = case(form, dtype=np.float64, encoder_length=8, decoder_length=6)
    named = dict(zip(("encoder", "decoder"), map(jnp.asarray, tokens), strict=True))
    stages = [stage for stage in config.stages() if not stage.head]

    def pieces(parameters, through):
        found, variants = {}, start(Needs(parameter=True))
        for stage in stages:
            ours = {local: parameters[name] for local, name in stage.parameters.items()}
            variants, taps = advance(stage, variants, ours, named, 4, through)
            found |= dict(zip(stage.scopes, taps.limits.states, strict=True))
        return found

    def whole(parameters):
        streams, states = {}, {}
        for stage in stages:
            ours = {local: parameters[name] for local, name in stage.parameters.items()}
            streams, _ = stage.step(ours, streams, named)
            for scope, path in stage.scopes.items():
                state = streams
                for key in path:
                    state = state[key]
                states[scope] = state
        return states

    def apart(stage, function, *args):
        return jax.jit(partial(function, stage), compiler_options=QUICK)(*args)

    flat = {name: jnp.asarray(array) for name, array in flat.items()}
    found = pieces(flat, apart)
    limits = jax.jit(saturate(whole), compiler_options=QUICK)(flat)
    assert found.keys() == limits.keys()
    for scope, limit in limits.items():
        order, leading = limit.leading()
        np.testing.assert_array_equal(found[scope].order, order, err_msg=scope)
        np.testing.assert_array_equal(found[scope].exists, limit.valid.all(-1), err_msg=scope)
        np.testing.assert_allclose(
            found[scope].leading, leading, rtol=1e-10, atol=1e-12, err_msg=scope
        )
