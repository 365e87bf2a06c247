"""A linear self-attention layer that learns to regress in context takes a step of gradient descent.

Von Oswald et al. 2023 (arXiv 2212.07677). Tokens e_i = (x_i, y_i), y_i = wᵀx_i, and a query
(x_q, 0) that is no key. One layer predicts Σ u_k S_ki B_ij x_qj with S = Σ e eᵀ, B = W_K W_Qᵀ and
u the column of W_V P that writes y, so that the population loss is a quadratic in u ⊗ B with the
moments E[S ⊗ S] and E[S ⊗ w], and training needs no data but for these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float64
from scipy.optimize import minimize

from saturation.plots.colours import BLUE, GREEN, ORANGE, VERMILION
from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.studies.base import Part, Results, Row, Stacked, Study, claim, control
from saturation.studies.numerics import lowest

WIDTH = EXAMPLES = 10
SIZE = WIDTH + 1  # of a token
VARIANCE = 1 / 12  # of an input, U(−½, ½)
MOMENTS, JUDGED = 160_000, 8192  # tasks
ONE_STEPS, TWO_STEPS, TWO_BATCH = 5000, 3000, 256
RIDGE = VARIANCE  # λ of the ridge regression that must not be taken for a step

Prompts = Float64[np.ndarray, "tasks examples width"]
Targets = Float64[np.ndarray, "tasks examples"]
Vectors = Float64[np.ndarray, "tasks width"]


@dataclass(frozen=True)
class OneLayer:
    """One layer, on inputs whose entries have variances from 1/12 to `condition`/12."""

    condition: float = 1.0


@dataclass(frozen=True)
class TwoLayers:
    """One layer applied twice."""


class Tasks(NamedTuple):
    """Regression tasks without noise: x, y of the examples, w, and the query's x."""

    x: Prompts
    y: Targets
    w: Vectors
    query: Vectors


def draw_tasks(
    count: int, generator: np.random.Generator, reach: float = 1.0, condition: float = 1.0
) -> Tasks:
    """Return tasks with x ~ U(−reach/2, reach/2) and w ~ N(0, I)."""
    scale = reach * np.sqrt(np.linspace(1, condition, WIDTH))
    x = scale * (generator.random((count, EXAMPLES, WIDTH)) - 0.5)
    w = generator.standard_normal((count, WIDTH))
    query = scale * (generator.random((count, WIDTH)) - 0.5)
    return Tasks(x, np.einsum("tnd,td->tn", x, w), w, query)


def best_rate() -> tuple[float, float]:
    """Return η* = E tr S/E tr S² of one step of gradient descent, S = Σ x xᵀ, and its loss.

    >>> tuple(round(value, 6) for value in best_rate())
    (0.606061, 0.206229)
    """
    fourth, square = 1 / 80, VARIANCE**2  # E x⁴, (E x²)²
    trace = EXAMPLES * WIDTH * VARIANCE
    own = EXAMPLES * (WIDTH * fourth + WIDTH * (WIDTH - 1) * square)
    squares = own + EXAMPLES * (EXAMPLES - 1) * WIDTH * square
    return trace / squares, VARIANCE / 2 * (WIDTH - trace**2 / squares)


# --- one layer ----------------------------------------------------------------------------------


class Layer(NamedTuple):
    """The factors of one layer, each (size, size): queries, keys, values, projection."""

    query: Any
    key: Any
    value: Any
    project: Any


def kernel(layer: Layer) -> tuple[Any, Any]:
    """Return B (size, width) and u (size,), in which one layer's prediction is bilinear."""
    return (layer.key @ layer.query.T)[:, :WIDTH], -(layer.value @ layer.project)[:, WIDTH]


def draw_layer(generator: np.random.Generator, scale: float) -> Layer:
    """Return normal factors."""
    return Layer(*(scale * generator.standard_normal((4, SIZE, SIZE))))


def moments(tasks: Tasks) -> tuple[np.ndarray, np.ndarray]:
    """Return E[S ⊗ S] (size², size²) and E[S ⊗ w] (size², width)."""
    tokens = np.concatenate([tasks.x, tasks.y[..., None]], axis=-1)
    products = np.einsum("tni,tnj->tij", tokens, tokens, optimize=True).reshape(len(tokens), -1)
    return products.T @ products / len(tokens), products.T @ tasks.w / len(tokens)


def train_one(case: OneLayer, generator: np.random.Generator) -> tuple[Layer, np.ndarray]:
    """Return a layer trained by Adam on the population loss, and that loss at each step."""
    import jax
    import jax.numpy as jnp
    import optax

    from_tasks = moments(draw_tasks(MOMENTS, generator, condition=case.condition))
    squares, products = (jnp.asarray(each, jnp.float32) for each in from_tasks)
    query = jnp.asarray(VARIANCE * np.linspace(1, case.condition, WIDTH), jnp.float32)

    def population_loss(layer: Layer) -> Float[Array, ""]:
        kernels, values = kernel(layer)
        outer = (values[:, None, None] * kernels).reshape(-1, WIDTH)  # u ⊗ B, a column a query's j
        quadratic = (outer * (squares @ outer)).sum(axis=0) - 2 * (outer * products).sum(axis=0)
        return (query * (quadratic + 1)).sum() / 2

    optimizer = optax.chain(optax.clip_by_global_norm(0.001), optax.adam(1e-3, 0.9, 0.98))
    scale = float(np.sqrt(0.002 / SIZE))
    start = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), draw_layer(generator, scale))

    def step(carried: Any, _: None) -> Any:
        layer, state = carried
        value, slope = jax.value_and_grad(population_loss)(layer)
        update, state = optimizer.update(slope, state, layer)
        return (optax.apply_updates(layer, update), state), value

    run = jax.jit(lambda layer: jax.lax.scan(step, (layer, optimizer.init(layer)), None, ONE_STEPS))
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam promotes
        (layer, _), losses = run(start)
    return Layer(*(np.asarray(each, np.float64) for each in layer)), np.asarray(losses)


def sensitivity(tasks: Tasks, kernels: np.ndarray, values: np.ndarray) -> Vectors:
    """Return ∂ŷ/∂x_q = BᵀSu of one layer."""
    tokens = np.concatenate([tasks.x, tasks.y[..., None]], axis=-1)
    return np.einsum("tni,ij,tn->tj", tokens, kernels, tokens @ values, optimize=True)


def gradient_step(tasks: Tasks, rate: float) -> Vectors:
    """Return ∂ŷ/∂x_q = η Σ y_i x_i, the weights after one step from 0."""
    return rate * np.einsum("tn,tnd->td", tasks.y, tasks.x)


def regress(tasks: Tasks, penalty: float) -> Vectors:
    """Return the weights of ridge regression."""
    products = np.einsum("tni,tnj->tij", tasks.x, tasks.x) + penalty * np.eye(WIDTH)
    right = np.einsum("tn,tnd->td", tasks.y, tasks.x)
    return np.linalg.solve(products, right[..., None])[..., 0]


def loss_of(tasks: Tasks, weights: Vectors) -> float:
    """Return the mean of ½(ŷ − y)² at the query."""
    errors = ((weights - tasks.w) * tasks.query).sum(axis=-1)
    return float((errors**2).mean() / 2)


def compare(tasks: Tasks, weights: Vectors, other: Vectors) -> dict[str, float]:
    """Return the rms difference of two predictors over the other's rms, and their cosine."""
    predictions = [(each * tasks.query).sum(axis=-1) for each in (weights, other)]
    rms = np.sqrt(((predictions[0] - predictions[1]) ** 2).mean() / (predictions[1] ** 2).mean())
    norms = np.linalg.norm(weights, axis=-1) * np.linalg.norm(other, axis=-1)
    cosines = (weights * other).sum(axis=-1) / np.maximum(norms, 1e-30)
    return {"difference": float(rms), "cosine": float(cosines.mean())}


def judge_one(case: OneLayer, generator: np.random.Generator) -> dict[str, Any]:
    """Return the trained layer beside one step of gradient descent on the same tasks."""
    layer, losses = train_one(case, generator)
    tasks = draw_tasks(JUDGED, generator, condition=case.condition)
    if case.condition == 1:
        rate = best_rate()[0]
    else:
        rate = lowest(lambda eta: loss_of(tasks, gradient_step(tasks, eta)), 0, 2)
    step = gradient_step(tasks, rate)
    at_best = loss_of(tasks, step)
    kernels, values = kernel(layer)
    scale = np.trace(kernels[:WIDTH]) / WIDTH
    kernels, values = kernels / scale, values * scale  # the product alone is determined
    learned = sensitivity(tasks, kernels, values)
    target = np.eye(SIZE)[:, :WIDTH], np.append(np.zeros(WIDTH), rate)
    halfway = sensitivity(tasks, (kernels + target[0]) / 2, (values + target[1]) / 2)
    wide = draw_tasks(JUDGED, generator, reach=2.0, condition=case.condition)
    at_twice = loss_of(wide, sensitivity(wide, kernels, values))
    untrained = sensitivity(tasks, *kernel(draw_layer(generator, float(np.sqrt(0.002 / SIZE)))))
    others = {
        "untrained": untrained,
        "half": step / 2,
        "more": 1.5 * step,
        "ridge": regress(tasks, RIDGE),
        "ols": regress(tasks, 1e-9),
    }
    found = compare(tasks, learned, step) | {
        "losses": losses,
        "ratio": loss_of(tasks, learned) / at_best,
        "rate": values[WIDTH] / rate,
        "kernel": np.linalg.norm(kernels[:WIDTH] - np.eye(WIDTH)) / np.sqrt(WIDTH),
        "values": np.linalg.norm(values[:WIDTH]) / abs(values[WIDTH]),
        "cross": np.linalg.norm(kernels[WIDTH]),
        "halfway": loss_of(tasks, halfway) / at_best,
        "wide": at_twice / loss_of(wide, gradient_step(wide, rate)),
    }
    for name, weights in others.items():
        found[f"{name}_ratio"] = loss_of(tasks, weights) / at_best
        found |= {f"{name}_{key}": value for key, value in compare(tasks, weights, step).items()}
    return found


# --- two layers ---------------------------------------------------------------------------------


def apply_twice(layer: Layer, tokens: Any, examples: int) -> Any:
    """Return −(last entry of the query token) after two layers E ← E + E W_Q W_Kᵀ S W_V P.

    Args:
      layer: the factors.
      tokens: (tasks, examples + 1, size), the query last; it is no key.
      examples: how many of the tokens are keys.
    """
    import jax.numpy as jnp

    queries, values = layer.query @ layer.key.T, layer.value @ layer.project
    for _ in range(2):
        keys = tokens[:, :examples]
        scores = (tokens @ queries) @ jnp.swapaxes(keys, -1, -2)
        tokens = tokens + scores @ (keys @ values)
    return -tokens[:, -1, WIDTH]


def as_tokens(tasks: Tasks) -> Float64[np.ndarray, "tasks tokens size"]:
    """Return (x_i, y_i) of the examples, and the query as (x_q, 0)."""
    x = np.concatenate([tasks.x, tasks.query[:, None]], axis=1)
    return np.concatenate([x, np.pad(tasks.y, [(0, 0), (0, 1)])[..., None]], axis=-1)


def train_two(generator: np.random.Generator) -> Layer:
    """Return a layer that was trained to be applied twice."""
    import jax
    import jax.numpy as jnp
    import optax

    def loss(layer: Layer, tokens: Any, targets: Any) -> Any:
        return ((apply_twice(layer, tokens, EXAMPLES) - targets) ** 2).mean() / 2

    optimizer = optax.chain(
        optax.clip_by_global_norm(0.1), optax.adam(optax.linear_schedule(3e-3, 0, TWO_STEPS))
    )

    @jax.jit
    def step(layer: Layer, state: Any, tokens: Any, targets: Any) -> Any:
        update, state = optimizer.update(jax.grad(loss)(layer, tokens, targets), state, layer)
        return optax.apply_updates(layer, update), state

    layer = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), draw_layer(generator, 0.05))
    state = optimizer.init(layer)
    for _ in range(TWO_STEPS):
        tasks = draw_tasks(TWO_BATCH, generator)
        targets = (tasks.w * tasks.query).sum(axis=-1)
        tokens = as_tokens(tasks)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam promotes
            layer, state = step(layer, state, tokens.astype(np.float32), targets.astype(np.float32))
    return Layer(*(np.asarray(each, np.float64) for each in layer))


def descend_twice(tasks: Tasks, rate: float, curvature: float) -> Float64[np.ndarray, " tasks"]:
    """Return the prediction of two steps of GD++: x_j ← x_j − γ XXᵀx_j beside each step.

    γ = 0 is plain gradient descent.
    """
    tokens = as_tokens(tasks)
    change = np.diag([-curvature] * WIDTH + [-rate])
    for _ in range(2):
        keys = tokens[:, :EXAMPLES]
        scores = tokens[..., :WIDTH] @ keys[..., :WIDTH].transpose(0, 2, 1)
        tokens = tokens + scores @ keys @ change
    return -tokens[:, -1, WIDTH]


def judge_two(generator: np.random.Generator) -> dict[str, float]:
    """Return the trained layer beside two tuned steps of GD and of GD++, on the same tasks."""
    import jax

    layer = train_two(generator)
    tasks = draw_tasks(JUDGED, generator)
    targets = (tasks.w * tasks.query).sum(axis=-1)
    loss = lambda predicted: float(((predicted - targets) ** 2).mean() / 2)
    plain = lowest(lambda eta: loss(descend_twice(tasks, eta, 0)), 0, 2)
    better = minimize(
        lambda both: loss(descend_twice(tasks, *both)), [1.2, 0.15], method="Nelder-Mead"
    ).x
    slope = _sensitivity_of(lambda one: descend_twice(one, *better), tasks)
    plain_slope = _sensitivity_of(lambda one: descend_twice(one, plain, 0), tasks)
    predict = jax.jit(lambda tokens: apply_twice(layer, tokens, EXAMPLES))
    predicted = lambda one: np.asarray(predict(as_tokens(one)), np.float64)
    learned = _sensitivity_of(predicted, tasks)
    return {
        "over_plain": loss(predicted(tasks)) / loss(descend_twice(tasks, plain, 0)),
        "over_better": loss(predicted(tasks)) / loss(descend_twice(tasks, *better)),
        **{f"better_{name}": value for name, value in compare(tasks, learned, slope).items()},
        **{f"plain_{name}": value for name, value in compare(tasks, learned, plain_slope).items()},
    }


def _sensitivity_of(predict: Callable[[Tasks], Any], tasks: Tasks) -> Vectors:
    """Return ∂ŷ/∂x_q of a predictor that is linear in the query."""
    columns = [
        predict(tasks._replace(query=np.broadcast_to(unit, tasks.query.shape)))
        for unit in np.eye(WIDTH)
    ]
    return np.stack(columns, axis=-1)


def simulate(setting: Any, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield what a setting gives with each seed."""
    for seed in seeds:
        generator = np.random.default_rng(seed)
        if isinstance(setting, OneLayer):
            yield judge_one(setting, generator)
        else:
            yield judge_two(generator)


# --- the study ----------------------------------------------------------------------------------

PLAIN, SKEWED, TWICE = OneLayer(), OneLayer(condition=10.0), TwoLayers()
NEAR = (0.995, 1.005)
OTHERS = {
    "ridge": f"ridge regression, λ = {RIDGE:.3g}",
    "ols": "least squares",
    "untrained": "before training",
    "half": "half of η*",
    "more": "1.5 η*",
}


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows of one and of two layers."""
    yield from _judge_one(results[PLAIN])
    where = "one layer, variances of x from 1 to 10 times 1/12"
    what = "loss over that of one step with the best η"
    yield claim(what, where, results[SKEWED]["ratio"], NEAR, "1", "conditional")
    yield from _judge_two(results[TWICE])


def _judge_one(part: Stacked) -> Iterator[Row]:
    where, what = "one layer", "loss over that of one step with η*"
    yield claim(what, where, part["ratio"], NEAR, "1")
    for name, says in OTHERS.items():
        yield control(what, says, part[f"{name}_ratio"], NEAR, "1")
    what = "rms difference of predictions over their rms"
    yield claim(what, where, part["difference"], (0, 0.03), "0")
    yield control(what, OTHERS["untrained"], part["untrained_difference"], (0, 0.03), "0")
    what = "cosine of ∂ŷ/∂x_q to the step's"
    yield claim(what, where, part["cosine"], (0.999, 1 + 1e-9), "1")
    for name in ("ridge", "ols", "untrained"):
        yield control(what, OTHERS[name], part[f"{name}_cosine"], (0.999, 1 + 1e-9), "1")
    yield claim("η learned over η*", where, part["rate"], (0.99, 1.01), "1")
    yield claim("|B_xx − I|/|I|", where, part["kernel"], (0, 0.03), "0")
    yield claim("|u_x|/|u_y|", where, part["values"], (0, 0.03), "0")
    yield claim("|B_yx|", where, part["cross"], (0, 0.03), "0")
    where = "one layer, weights halfway to the construction's"
    what = "loss over that of one step with η*"
    yield claim(what, where, part["halfway"], NEAR, "1")
    yield claim(what, "one layer, inputs twice as wide", part["wide"], (0.98, 1.02), "1")


def _judge_two(part: Stacked) -> Iterator[Row]:
    where, what = "two layers", "loss over that of two steps, best η"
    yield claim(what, where, part["over_plain"], (0, 0.75))
    yield control(f"{what}: as good", where, part["over_plain"], (0.9, 1.1), "1")
    what = "loss over that of two steps of GD++, best η and γ"
    yield claim(what, where, part["over_better"], (0.97, 1.03), "1")
    for name, says in (("better", "GD++"), ("plain", "plain steps")):
        row = claim if name == "better" else control
        what = "rms difference of predictions over their rms"
        yield row(what, f"{where}, to {says}", part[f"{name}_difference"], (0, 0.1), "0")
        what = "cosine of ∂ŷ/∂x_q"
        yield row(what, f"{where}, to {says}", part[f"{name}_cosine"], (0.995, 1 + 1e-9), "1")


def pictures(results: Results) -> Iterator[Picture]:
    """Yield the loss through training beside that of a step, and who predicts alike."""
    part = results[PLAIN]
    steps = np.unique(np.geomspace(1, ONE_STEPS, 200).astype(int)) - 1
    losses = part["losses"][:, steps]
    level = np.full(len(steps), best_rate()[1])
    low, high = losses.min(axis=0), losses.max(axis=0)
    falls = [
        Line(steps + 1.0, losses.mean(axis=0), "one layer", BLUE, low=low, high=high),
        Line(steps + 1.0, level, "one step of gradient descent", VERMILION, "dot"),
    ]
    names = ("one layer", *OTHERS.values())
    keys = ("", *(f"{name}_" for name in OTHERS))
    marks = [
        Line(names, part_of, text, colour, "none", symbol="circle", size=7)
        for text, colour, part_of in (
            ("cosine of ∂ŷ/∂x_q", BLUE, np.array([part[f"{k}cosine"].mean() for k in keys])),
            ("rms difference", ORANGE, np.array([part[f"{k}difference"].mean() for k in keys])),
            ("loss over the step's", GREEN, np.array([part[f"{k}ratio"].mean() for k in keys])),
        )
    ]
    yield Picture(
        "in_context_gd",
        "One layer of linear attention learns one step of gradient descent",
        "Training and predictors",
        "Left: population loss through training, a band over the seeds. Right: each predictor "
        "beside one step with η*, on the same tasks.",
        [
            [
                Panel("loss", falls, Axis("loss"), Axis("training step", "log"), legend=True),
                Panel(
                    "beside one step",
                    marks,
                    Axis(),
                    Axis("", "categories", order=names),
                    legend=True,
                ),
            ]
        ],
    )


STUDY = Study(
    name="in-context-gd",
    title="Linear attention regresses in context by gradient descent",
    paper="Von Oswald et al., Transformers Learn In-Context by Gradient Descent, ICML 2023, "
    "arXiv 2212.07677",
    reads="One layer of linear attention, trained on regression tasks, predicts what one step of "
    "gradient descent with the best rate predicts, in loss, prediction and sensitivity. Two layers "
    "do better than two steps, and as well as GD++, which also transforms the inputs. With inputs "
    "of unequal variances one layer learns a preconditioned step, which a single η does not match.",
    parts=lambda seeds, full: {
        PLAIN: 2 * seeds if full else seeds,
        SKEWED: seeds,
        TWICE: seeds if full else -(-2 * seeds // 5),
    },
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=5,
    version=2,  # two layers start smaller, so that none is stuck
)
