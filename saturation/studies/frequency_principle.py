"""Networks fit low frequencies first, whatever the optimiser.

Ma, Xu and Zhang 2021 (arXiv 2101.00747): not with gradient descent alone but also with conjugate
gradients and BFGS, and without gradients, by Powell's method and particle swarms. The target has
three sines of equal amplitudes; time is counted in evaluations of the loss, and the network looked
at is the best so far.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize

from saturation.plots.colours import BLUE, GREEN, ORANGE, VERMILION
from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.studies.base import Part, Results, Row, Stacked, Study, claim, control

POINTS, HIDDEN = 64, 20
FREQUENCIES = (1, 3, 5)
X = -np.pi + 2 * np.pi * np.arange(POINTS) / POINTS  # without the end: peaks fall on DFT bins
TARGET = sum(np.sin(k * X) for k in FREQUENCIES)
PEAKS = np.fft.rfft(TARGET)[list(FREQUENCIES)]
LEVELS = (0.5, 0.2, 0.1)  # of D(k)
PARTICLES, INERTIA, PULL = 60, 0.729, 1.494

Weights = Float64[np.ndarray, " parameters"]
Optimizer = Literal["BFGS", "CG", "L-BFGS-B", "Adam", "GD", "Powell", "PSO"]
BUDGET: dict[Optimizer, int] = {  # evaluations of the loss, with or without its gradient
    "BFGS": 3000,
    "CG": 6000,
    "L-BFGS-B": 6000,
    "Adam": 6000,
    "GD": 15_000,
    "Powell": 20_000,
    "PSO": 60_000,
}
RATES = {"Adam": 5e-3, "GD": 0.02}


@dataclass(frozen=True)
class Setting:
    """An optimiser, and the network's activation: tanh, or fast sines, which break the order."""

    optimizer: Optimizer
    activation: Literal["tanh", "sin"] = "tanh"


class Recorder:
    """The error h − f of the network h(x) = Σ a_i σ(w_i x + b_i) + c, and a record of each one."""

    def __init__(self, activation: str, budget: int) -> None:
        self._tanh, self._budget = activation == "tanh", budget
        self.losses: list[float] = []
        self.distances: list[Float64[np.ndarray, " peaks"]] = []

    def loss_and_slope(self, weights: Weights) -> tuple[float, Weights]:
        """Return the mean squared error and its gradient.

        Raises:
          Spent: the budget of evaluations is.
        """
        if len(self.losses) >= self._budget:
            raise Spent
        w, b, a = weights[:-1].reshape(3, HIDDEN)
        inner = np.outer(X, w) + b
        hidden = np.tanh(inner) if self._tanh else np.sin(inner)
        error = hidden @ a + weights[-1] - TARGET
        self.losses.append(float(error @ error) / POINTS)
        self.distances.append(distances_of(error))
        slope = 1 - hidden**2 if self._tanh else np.cos(inner)
        of_inner = 2 / POINTS * error[:, None] * a * slope
        of_output = 2 / POINTS * error @ hidden
        parts = [X @ of_inner, of_inner.sum(axis=0), of_output, [2 / POINTS * error.sum()]]
        return self.losses[-1], np.concatenate(parts)

    def loss(self, weights: Weights) -> float:
        """Return the loss alone, for optimisers without gradients."""
        return self.loss_and_slope(weights)[0]


class Spent(Exception):
    """The budget of evaluations is spent."""


def distances_of(error: Float64[np.ndarray, "*many points"]) -> Float64[np.ndarray, "*many peaks"]:
    """Return D(k) = |ĥ_k − f̂_k|/|f̂_k| at the target's peaks."""
    found = np.fft.rfft(error)[..., list(FREQUENCIES)]
    return np.abs(found) / np.abs(PEAKS)


def draw_weights(activation: str, generator: np.random.Generator) -> Weights:
    """Return w ~ N(0, 1), or 5 N(0, 1) of sines; b ~ π U(−1, 1); a ~ 0.3 N(0, 1); c = 0."""
    w, a = generator.standard_normal((2, HIDDEN))
    b = np.pi * generator.uniform(-1, 1, HIDDEN)
    return np.concatenate([(1 if activation == "tanh" else 5) * w, b, 0.3 * a, [0.0]])


Record = tuple[Float64[np.ndarray, " evaluations"], Float64[np.ndarray, "evaluations peaks"]]


def minimise(setting: Setting, generator: np.random.Generator) -> Record:
    """Return the loss and D(k) at each evaluation, until the budget or the optimiser ends."""
    budget, start = BUDGET[setting.optimizer], draw_weights(setting.activation, generator)
    if setting.optimizer in RATES:
        return _descend(setting, start)
    network = Recorder(setting.activation, budget)
    with contextlib.suppress(Spent):
        match setting.optimizer:
            case "PSO":
                more = [draw_weights(setting.activation, generator) for _ in range(PARTICLES - 1)]
                _swarm(network.loss, np.stack([start, *more]), generator)
            case "Powell":
                minimize(network.loss, start, method="Powell", options={"maxfev": 10 * budget})
            case method:
                minimize(
                    network.loss_and_slope, start, jac=True, method=method,
                    options={"maxiter": budget},
                )  # fmt: skip
    return np.array(network.losses), np.stack(network.distances)


def _descend(setting: Setting, start: Weights) -> Record:
    """Take the steps of one of optax's optimisers, in one compiled loop."""
    import jax
    import jax.numpy as jnp
    import optax

    activation = jnp.tanh if setting.activation == "tanh" else jnp.sin
    make = optax.sgd if setting.optimizer == "GD" else optax.adam
    optimizer = make(RATES[setting.optimizer])

    def loss(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        w, b, a = weights[:-1].reshape(3, HIDDEN)
        error = activation(jnp.outer(X, w) + b) @ a + weights[-1] - TARGET
        return (error**2).mean(), error

    def step(carried: Any, _: None) -> Any:
        weights, state = carried
        (value, error), slope = jax.value_and_grad(loss, has_aux=True)(weights)
        update, state = optimizer.update(slope, state, weights)
        return (optax.apply_updates(weights, update), state), (value, error)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # optax's Adam promotes
        first = jnp.asarray(start)
        run = jax.jit(lambda w: jax.lax.scan(step, (w, optimizer.init(w)), None, steps)[1])
        steps = BUDGET[setting.optimizer]
        losses, errors = jax.device_get(run(first))
    return losses, distances_of(errors)


def _swarm(
    loss: Callable[[Weights], float],
    places: Float64[np.ndarray, "particles parameters"],
    generator: np.random.Generator,
) -> None:
    """Move particles toward their own best place and the swarm's, until the budget is spent."""
    speeds, own = np.zeros_like(places), places.copy()
    lowest = np.full(len(places), np.inf)
    while True:
        losses = np.array([loss(place) for place in places])
        better = losses < lowest
        own[better], lowest[better] = places[better], losses[better]
        to_own, to_best = generator.random((2, *places.shape))
        speeds = INERTIA * speeds + PULL * to_own * (own - places)
        speeds += PULL * to_best * (own[lowest.argmin()] - places)
        places = places + speeds


def simulate(setting: Setting, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield the first evaluation at which the best network so far has D(k) < τ, inf for never.

    "times" are (τ, k); "distances" (k, 100) at the log-spaced "evaluations".
    """
    for seed in seeds:
        losses, distances = minimise(setting, np.random.default_rng(seed))
        lowest = np.minimum.accumulate(losses)
        best = np.maximum.accumulate(np.where(losses == lowest, np.arange(len(losses)), 0))
        distances = distances[best]
        below = distances < np.array(LEVELS)[:, None, None]
        times = np.where(below.any(axis=1), below.argmax(axis=1) + 1.0, np.inf)
        shown = np.geomspace(1, len(distances), 100).astype(int) - 1
        yield {
            "times": times,
            "loss": lowest[-1],
            "evaluations": shown + 1.0,
            "distances": distances[shown].T,
        }


# --- the study ----------------------------------------------------------------------------------

SEEDS: dict[Optimizer, int] = {
    "BFGS": 10, "CG": 5, "L-BFGS-B": 10, "Adam": 6, "GD": 4, "Powell": 5, "PSO": 5,
}  # fmt: skip
FAST = ("BFGS", "CG", "L-BFGS-B", "Adam")
SINES = (Setting("L-BFGS-B", "sin"), Setting("Adam", "sin"))


def strict(times: Float64[np.ndarray, "seeds levels peaks"], level: float) -> np.ndarray:
    """Return of each seed whether T_1 < T_3 < T_5, where the last may never come."""
    first, second, third = times[:, LEVELS.index(level)].T
    return ((first < second) & (second < third) & np.isfinite(second)).astype(float)


def violated(times: Float64[np.ndarray, "seeds levels peaks"], level: float) -> np.ndarray:
    """Return of each seed whether a higher frequency came before a lower one."""
    first, second, third = times[:, LEVELS.index(level)].T
    return ((second < first) | (third < second)).astype(float)


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows: order by optimiser, and sines, which have no such order."""
    says, wrong = "share of seeds with T₁ < T₃ < T₅", "share of seeds with an order violated"
    for name in SEEDS:
        part, level = results[Setting(name)], 0.2 if name in FAST else 0.5
        where = f"{name}, τ = {level:g}"
        yield claim(says, where, strict(part["times"], level), (0.9, 1), "1")
        where = f"{name}, τ = 0.2"
        yield claim(wrong, where, violated(part["times"], 0.2), (0, 0), "0")
    loose = results[Setting("BFGS")]["times"]
    yield claim(says, "BFGS, τ = 0.5", strict(loose, 0.5), (0.9, 1), "1", "conditional")
    for name in FAST:
        times = results[Setting(name)]["times"][:, LEVELS.index(0.2)]
        with np.errstate(invalid="ignore"):
            least = np.min(times[:, 1] / times[:, 0])
        yield claim("least T₃/T₁ over the seeds", f"{name}, τ = 0.2", least, (1.2, np.inf))
    for setting in SINES:
        where = f"{setting.optimizer}, fast sines for tanh, τ = 0.2"
        yield control(says, where, strict(results[setting]["times"], 0.2), (0.7, 1), "1")


def pictures(results: Results) -> Iterator[Picture]:
    """Yield D(k) by evaluations of four optimisers."""
    colours = dict(zip(FREQUENCIES, (BLUE, ORANGE, VERMILION), strict=True))

    def panel(setting: Setting, title: str) -> Panel:
        part: Stacked = results[setting]
        lines, x = [], part["evaluations"][0]
        for index, (k, colour) in enumerate(colours.items()):
            y = np.maximum(part["distances"][0, index], 1e-4)
            lines.append(Line(x, y, f"k = {k}", colour))
        lines.append(Line(x, np.full(len(x), 0.2), "τ = 0.2", GREEN, "dot"))
        return Panel(title, lines, Axis("D(k)", "log"), Axis("evaluations", "log"))

    yield Picture(
        "frequency_principle",
        "Low frequencies are fitted first by every optimiser, but not by fast sines",
        "Distance by frequency",
        "D(k) = |ĥ_k − f̂_k|/|f̂_k| of the best network so far, the first seed.",
        [
            [panel(Setting("L-BFGS-B"), "L-BFGS-B"), panel(Setting("Adam"), "Adam")],
            [panel(Setting("Powell"), "Powell, no gradients"), panel(SINES[0], "L-BFGS-B, sines")],
        ],
    )


STUDY = Study(
    name="frequency-principle",
    title="Low frequencies are fitted first",
    paper="Ma, Xu and Zhang, Frequency Principle in Deep Learning Beyond Gradient-descent-based "
    "Training, 2021, arXiv 2101.00747",
    reads="A network fits sin x + sin 3x + sin 5x. T_k is the number of evaluations after which "
    "the best network so far has D(k) below τ. The order T₁ < T₃ < T₅ holds for every optimiser "
    "with tanh; with fast sines as activation it does not: it is the activation's doing.",
    parts=lambda seeds, full: {
        **{
            Setting(name): max(1, count * seeds // 10) * (2 if full else 1)
            for name, count in SEEDS.items()
        },
        **dict.fromkeys(SINES, max(1, 6 * seeds // 10)),
    },
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=10,
)
