"""Influence in a small network: over a whole training, of flipped labels, and of single steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

WIDTH, HIDDEN, CLASSES = 16, 32, 8
EXAMPLES, FLIPPED, TESTED = 600, 0.1, 40
STEPS, BATCH, EVERY, RATE = 1200, 32, 200, 0.1
RATES = (0.2, 0.1, 0.05, 0.025, 0.0125)  # of the telescoping sum, η T fixed
TIME = 60.0  # η T
PROJECTIONS = (16, 64, 256)
JUDGED_EVERY = 12  # steps between those whose effect is measured

Optimizer = Literal["sgd", "adam without momentum", "adam", "adafactor"]
Vector = Float64[np.ndarray, " values"]


@dataclass(frozen=True)
class Labels:
    """Finding flipped labels by self-influence, and pairs' influence by projections."""


@dataclass(frozen=True)
class Telescope:
    """The sum of first-order effects of all steps, beside the fall of the loss, batches of one."""

    rate: float


@dataclass(frozen=True)
class OneStep:
    """The effect of single steps on the losses of test examples."""

    optimizer: Optimizer


def draw_data(generator: np.random.Generator, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return examples of eight Gaussian classes, a tenth of the labels flipped, and test ones."""
    means = 1.1 * generator.standard_normal((CLASSES, WIDTH))
    truth = generator.integers(CLASSES, size=EXAMPLES)
    flipped = generator.permutation(EXAMPLES) < FLIPPED * EXAMPLES
    labels = np.where(flipped, (truth + generator.integers(1, CLASSES, EXAMPLES)) % CLASSES, truth)
    tested = generator.integers(CLASSES, size=TESTED)
    noise = generator.standard_normal((EXAMPLES + TESTED, WIDTH))
    inputs = means[np.concatenate([truth, tested])] + noise
    return {
        "x": (scale * inputs[:EXAMPLES]).astype(np.float32),
        "y": labels.astype(np.int32),
        "flipped": flipped,
        "test_x": (scale * inputs[EXAMPLES:]).astype(np.float32),
        "test_y": tested.astype(np.int32),
    }


def network() -> tuple[Any, Callable[[Any, Any, Any], Any], Any]:
    """Return a start from a seed, one example's loss of flat parameters, and how to unflatten."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax
    from jax.flatten_util import ravel_pytree

    model = nn.Sequential([nn.Dense(HIDDEN), nn.relu, nn.Dense(CLASSES)])

    def draw(seed: int) -> tuple[Any, Any]:
        drawn = model.init(jax.random.PRNGKey(seed), jnp.zeros((1, WIDTH), jnp.float32))
        return ravel_pytree(drawn)

    unravel = draw(0)[1]

    def loss(weights: Any, x: Any, y: Any) -> Any:
        logits = jnp.asarray(model.apply(unravel(weights), x))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y)

    return lambda seed: draw(seed)[0], loss, unravel


def make_optimizer(name: Optimizer) -> Any:
    """Return one of optax's."""
    import optax

    match name:
        case "sgd":
            return optax.sgd(0.05)
        case "adam without momentum":
            return optax.adam(3e-3, b1=0.0)
        case "adam":
            return optax.adam(3e-3)
        case "adafactor":
            return optax.adafactor(1e-2, momentum=None)


# --- flipped labels -----------------------------------------------------------------------------


def find_flipped(seed: int) -> dict[str, Any]:
    """Return how well scores rank the flipped labels, and projections the influence of pairs."""
    import jax

    data = draw_data(np.random.default_rng(seed))
    begin, loss, unravel = network()
    gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))
    losses = jax.jit(jax.vmap(loss, (None, 0, 0)))
    checkpoints = [np.asarray(w) for w in _train(begin(seed), loss, data, seed)]
    scores = {"self-influence": np.zeros(EXAMPLES), "mean loss": np.zeros(EXAMPLES)}
    scores["last layer"] = np.zeros(EXAMPLES)
    kept = []
    for number, weights in enumerate(checkpoints):
        each = np.asarray(gradients(weights, data["x"], data["y"]), np.float64)
        squares = (each**2).sum(axis=1)
        if number == 0:
            scores["initialisation"] = squares
            continue
        scores["self-influence"] += squares
        scores["mean loss"] += np.asarray(losses(weights, data["x"], data["y"]), np.float64)
        scores["last layer"] += _last_layer(unravel(weights), data)
        scores["last checkpoint"] = squares
        kept.append(
            (each, np.asarray(gradients(weights, data["test_x"], data["test_y"]), np.float64))
        )
    scores["random"] = np.random.default_rng([seed, 1]).random(EXAMPLES)
    found: dict[str, Any] = {}
    for name, score in scores.items():
        found[f"auc {name}"] = _auc(score, data["flipped"])
        top = np.argsort(-score)[: int(FLIPPED * EXAMPLES)]
        found[f"recall {name}"] = data["flipped"][top].sum() / data["flipped"].sum()
    exact = np.sum([train @ test.T for train, test in kept[::2]], axis=0)
    for size in PROJECTIONS:
        found[f"projection {size}"] = _projected(kept[::2], exact, size, seed)
    return found


def _train(weights: Any, loss: Any, data: dict[str, np.ndarray], seed: int) -> Iterator[Any]:
    """Yield the parameters at the start and at every checkpoint."""
    import jax

    @jax.jit
    def step(weights: Any, x: Any, y: Any) -> Any:
        mean = lambda w: jax.vmap(loss, (None, 0, 0))(w, x, y).mean()
        return weights - RATE * jax.grad(mean)(weights)

    generator = np.random.default_rng([seed, 2])
    yield weights
    for number in range(1, STEPS + 1):
        rows = generator.integers(EXAMPLES, size=BATCH)
        weights = step(weights, data["x"][rows], data["y"][rows])
        if number % EVERY == 0:
            yield weights


def _last_layer(params: Any, data: dict[str, np.ndarray]) -> Vector:
    """Return |p − y|²(|h|² + 1), the squared gradient of the last layer in closed form."""
    layers = params["params"]
    kernel = [np.asarray(layers[name]["kernel"], np.float64) for name in ("layers_0", "layers_2")]
    bias = [np.asarray(layers[name]["bias"], np.float64) for name in ("layers_0", "layers_2")]
    hidden = np.maximum(data["x"] @ kernel[0] + bias[0], 0)
    logits = hidden @ kernel[1] + bias[1]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(EXAMPLES), data["y"]] -= 1
    return (shares**2).sum(axis=1) * ((hidden**2).sum(axis=1) + 1)


def _auc(score: Vector, flipped: np.ndarray) -> float:
    """Return the chance that a flipped example scores above another."""
    ranks, count = rankdata(score)[flipped], flipped.sum()
    return float((ranks.sum() - count * (count + 1) / 2) / (count * (len(score) - count)))


def _projected(kept: Sequence[Any], exact: np.ndarray, size: int, seed: int) -> float:
    """Return the correlation of pairs' influence with that of gradients on random directions."""
    generator = np.random.default_rng([seed, size])
    total = np.zeros_like(exact)
    for train, test in kept:
        signs = generator.choice([-1.0, 1.0], size=(train.shape[1], size)) / np.sqrt(size)
        total += (train @ signs) @ (test @ signs).T
    return float(np.corrcoef(total.ravel(), exact.ravel())[0, 1])


# --- the sum over all steps ---------------------------------------------------------------------


def telescope(case: Telescope, seed: int) -> dict[str, float]:
    """Return the mean residual of the summed effects, to first order and by the trapezoid."""
    import jax
    import jax.numpy as jnp

    data = draw_data(np.random.default_rng(seed), 0.25)
    begin, loss, _ = network()
    test_x, test_y = data["test_x"], data["test_y"]
    tested = jax.vmap(jax.grad(loss), (None, 0, 0))
    of_tests = jax.vmap(loss, (None, 0, 0))

    @jax.jit
    def run(weights: Any, xs: Any, ys: Any) -> Any:
        def step(carried: Any, pair: Any) -> Any:
            weights, before, first, middle = carried
            slope = jax.grad(loss)(weights, *pair)
            moved = weights - case.rate * slope
            after = tested(moved, test_x, test_y)
            first = first + case.rate * before @ slope
            middle = middle + case.rate * (before + after) @ slope / 2
            return (moved, after, first, middle), None

        zero = jnp.zeros(TESTED, weights.dtype)
        start = (weights, tested(weights, test_x, test_y), zero, zero)
        return jax.lax.scan(step, start, (xs, ys))[0]

    with jax.enable_x64(True):
        rows = np.random.default_rng([seed, 3]).integers(EXAMPLES, size=round(TIME / case.rate))
        weights = jnp.asarray(begin(seed), jnp.float64)
        xs = jnp.asarray(data["x"][rows], jnp.float64)
        test_x = jnp.asarray(test_x, jnp.float64)
        ended, _, first, middle = run(weights, xs, jnp.asarray(data["y"][rows]))
        fall = of_tests(weights, test_x, test_y) - of_tests(ended, test_x, test_y)
    return {
        "first": float(np.abs(first - fall).mean()),
        "trapezoid": float(np.abs(middle - fall).mean()),
        "fall": float(np.abs(fall).mean()),
    }


# --- single steps -------------------------------------------------------------------------------


def explained(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """Return R² of a prediction, its correlation, and the slope of the prediction on the actual."""
    residual, total = ((predicted - actual) ** 2).sum(), ((actual - actual.mean()) ** 2).sum()
    apart = actual - actual.mean()
    return {
        "r2": float(1 - residual / total),
        "correlation": float(np.corrcoef(predicted, actual)[0, 1]),
        "slope": float(predicted @ apart / (actual @ apart)),
    }


def secant(update: Any, slope: Any) -> Any:
    """Return P = u/g elementwise, 0 where g is 0."""
    import jax.numpy as jnp

    return jnp.where(slope == 0, 0.0, update / jnp.where(slope == 0, 1.0, slope))


def take_steps(case: OneStep, seed: int) -> dict[str, float]:
    """Return how raw and preconditioned first-order effects predict single steps' real ones."""
    import jax
    import optax

    data = draw_data(np.random.default_rng(seed))
    begin, loss, _ = network()
    optimizer = make_optimizer(case.optimizer)
    rate = {"sgd": 0.05, "adafactor": 1e-2}.get(case.optimizer, 3e-3)
    of_each = jax.vmap(jax.grad(loss), (None, 0, 0))
    of_tests = jax.vmap(loss, (None, 0, 0))

    @jax.jit
    def step(weights: Any, state: Any, x: Any, y: Any) -> Any:
        each = of_each(weights, x, y)
        mean = each.mean(axis=0)
        update, state = optimizer.update(mean, state, weights)
        tested = of_each(weights, data["test_x"], data["test_y"])
        # The share of each example; of Adam with momentum, of its own part of the step.
        shares = -(tested * secant(update, mean)) @ each.T / len(each)
        moved = optax.apply_updates(weights, update)
        before, after = (of_tests(w, data["test_x"], data["test_y"]) for w in (weights, moved))
        own = 0.1 if case.optimizer == "adam" else 1.0
        if case.optimizer == "adam":
            second = optax.tree_utils.tree_get(state, "nu")
            count = optax.tree_utils.tree_get(state, "count")
            scale = rate / (jax.numpy.sqrt(second / (1 - 0.999**count)) + 1e-8)
            shares = own * (tested * scale) @ each.T / len(each)
        raw = rate * tested @ mean
        return moved, state, (raw, shares.sum(axis=1), before - after)

    weights = begin(seed)
    generator = np.random.default_rng([seed, 4])
    effects = []
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(weights)
        for number in range(STEPS // 4):
            rows = generator.integers(EXAMPLES, size=BATCH)
            weights, state, effect = step(weights, state, data["x"][rows], data["y"][rows])
            if number % JUDGED_EVERY == 0:
                effects.append(np.asarray(effect, np.float64))
    raw, shares, actual = np.concatenate(effects, axis=1)
    return {f"raw {k}": v for k, v in explained(raw, actual).items()} | {
        f"shares {k}": v for k, v in explained(shares, actual).items()
    }
