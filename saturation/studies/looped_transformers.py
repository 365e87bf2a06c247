"""A looped linear transformer learns gradient descent, preconditioned, a step a loop.

Gatmiry et al. 2024 (arXiv 2410.08292). L loops of one linear attention layer on the prompt
(x_i, y_i = wᵀx_i) predict (w + u)ᵀ(I − (I − SA)^L) x_q with S = XXᵀ/n, so that the population loss
has a closed form in A and u but for the mean over S. With A = Σ^{-1/2} A₀ Σ^{-1/2} it is
E|(I − S₀A₀)^L|² + E|ũᵀ(I − (I − S₀A₀)^L)|², S₀ Wishart(I, n)/n, ũ = Σ^{1/2}u, whatever Σ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.integrate import solve_ivp
from scipy.optimize import minimize
from scipy.stats import special_ortho_group, wishart

from saturation.plots.colours import BLUE, GREEN, ORANGE, VERMILION
from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.studies.base import Part, Results, Row, Study, claim, control
from saturation.studies.numerics import lowest

WIDTH, CONDITION = 5, 10
TRAINED, JUDGED = 3000, 20000  # matrices S, for training and for judging
EXTRA_LOOPS = (2, 4, 8, 16)
TIMES = np.geomspace(0.01, 1e5, 200)

Matrix = Float64[np.ndarray, "width width"]
Matrices = Float64[np.ndarray, "prompts width width"]


@dataclass(frozen=True)
class Minimum:
    """BFGS from small random A and u; free, or with A symmetric."""

    prompt: int
    loops: int
    symmetric: bool
    start: float = 0.05


@dataclass(frozen=True)
class Recursion:
    """The layer applied literally, beside the closed form."""

    loops: int
    symmetric: bool


@dataclass(frozen=True)
class Flow:
    """Gradient flow from A = 0 with Σ = I, where A stays a·I."""

    prompt: int
    loops: int


@dataclass(frozen=True)
class Dominance:
    """The constant of gradient dominance at random A."""

    loops: int


@dataclass(frozen=True)
class Antisymmetric:
    """The loss along one antisymmetric direction from a*·I."""

    loops: int


@dataclass(frozen=True)
class Loops:
    """More loops at test time than the two of training, in and out of distribution."""

    prompt: int


def draw_matrices(prompt: int, count: int, generator: np.random.Generator) -> Matrices:
    """Return S₀, of `prompt` standard normal tokens each."""
    return wishart.rvs(prompt, np.eye(WIDTH) / prompt, size=count, random_state=generator)


def power(residual: Matrices, loops: int) -> Matrices:
    """Return each (I − S₀A₀)^L."""
    return np.linalg.matrix_power(residual, loops)


def loss(matrices: Matrices, precondition: Matrix, loops: int) -> float:
    """Return E|(I − S₀A₀)^L|²."""
    residual = power(np.eye(WIDTH) - matrices @ precondition, loops)
    return float((residual**2).sum(axis=(1, 2)).mean())


def loss_and_slope(
    matrices: Matrices, precondition: Matrix, shift: Float64[np.ndarray, " width"], loops: int
) -> tuple[float, Matrix, Float64[np.ndarray, " width"]]:
    """Return the population loss of A₀ and ũ, and its gradients in both."""
    residual = np.eye(WIDTH) - matrices @ precondition
    powers = [np.broadcast_to(np.eye(WIDTH), residual.shape)]
    for _ in range(loops):
        powers.append(powers[-1] @ residual)
    last, rest = powers[-1], shift @ (np.eye(WIDTH) - powers[-1])
    value = (last**2).sum(axis=(1, 2)).mean() + (rest**2).sum(axis=-1).mean()
    of_last = 2 * (last - shift[:, None] * rest[:, None, :])
    turned = [each.transpose(0, 2, 1) for each in powers]
    of_residual = sum(turned[i] @ of_last @ turned[loops - 1 - i] for i in range(loops))
    of_precondition = -(matrices.transpose(0, 2, 1) @ of_residual).mean(axis=0)
    of_shift = 2 * ((np.eye(WIDTH) - last) @ rest[..., None])[..., 0].mean(axis=0)
    return float(value), of_precondition, of_shift


def best_scalar(matrices: Matrices, loops: int) -> float:
    """Return a* = argmin_a E Σ_i (1 − aλ_i)^{2L}, λ the eigenvalues of S₀."""
    values = np.linalg.eigvalsh(matrices)
    return lowest(lambda a: ((1 - a * values) ** (2 * loops)).sum(axis=-1).mean(), 0.05, 1.5)


def draw_root(generator: np.random.Generator) -> Matrix:
    """Return Σ^{1/2}, Σ rotated, its eigenvalues log-spaced from 1/√10 to √10."""
    turn = special_ortho_group.rvs(WIDTH, random_state=generator)
    values = np.geomspace(1 / CONDITION, CONDITION, WIDTH) ** 0.25
    return turn @ np.diag(values) @ turn.T


def find_minimum(case: Minimum, generator: np.random.Generator) -> dict[str, Any]:
    """Return where BFGS ends, judged on other prompts than those it saw."""
    trained = draw_matrices(case.prompt, TRAINED, generator)
    judged = draw_matrices(case.prompt, JUDGED, generator)
    root = draw_root(generator)
    start = case.start * generator.standard_normal(WIDTH * (WIDTH + 1))

    def unpacked(packed: np.ndarray) -> tuple[Matrix, np.ndarray]:
        free = packed[: WIDTH**2].reshape(WIDTH, WIDTH)
        return (free + free.T) / 2 if case.symmetric else free, packed[WIDTH**2 :]

    def objective(packed: np.ndarray) -> tuple[float, np.ndarray]:
        precondition, shift = unpacked(packed)
        value, slope, of_shift = loss_and_slope(
            trained, root @ precondition @ root, root @ shift, case.loops
        )
        slope = root @ slope @ root
        slope = (slope + slope.T) / 2 if case.symmetric else slope
        return value, np.concatenate([slope.ravel(), root @ of_shift])

    found = minimize(objective, start, jac=True, method="BFGS", options={"maxiter": 2000})
    precondition, shift = unpacked(found.x)
    white = root @ precondition @ root
    best = best_scalar(judged, case.loops)
    at_best = loss(judged, best * np.eye(WIDTH), case.loops)
    plain = lowest(lambda c: loss(trained, c * root @ root, case.loops), 0.01, 1.5)
    return {
        "best": best,
        "error": np.linalg.norm(white - best * np.eye(WIDTH)) / (best * np.sqrt(WIDTH)),
        "ratio": loss(judged, white, case.loops) / at_best,
        "antisymmetric": np.linalg.norm(white - white.T) / (2 * best * np.sqrt(WIDTH)),
        "shift": np.linalg.norm(shift),
        "plain_ratio": loss(judged, plain * root @ root, case.loops) / at_best,
    }


def run_recursion(case: Recursion, generator: np.random.Generator) -> dict[str, float]:
    """Return how far Z ← Z − (1/n) P Z M ZᵀQZ is from the closed form, with L and L − 1 loops."""
    prompt, size = 20, WIDTH + 1
    precondition = generator.standard_normal((WIDTH, WIDTH)) / WIDTH
    precondition = (precondition + precondition.T) / 2 if case.symmetric else precondition
    shift, weights, query = generator.standard_normal((3, WIDTH))
    tokens = generator.standard_normal((prompt, WIDTH)).T
    state = np.zeros((size, prompt + 1))
    state[:WIDTH] = np.column_stack([tokens, query])
    state[WIDTH, :prompt] = weights @ tokens
    seen = np.diag([1.0] * prompt + [0.0])
    keys, values = np.zeros((2, size, size))
    keys[:WIDTH, :WIDTH] = precondition
    values[WIDTH] = np.append(shift, 1)
    for _ in range(case.loops):
        state = state - values @ state @ seen @ state.T @ keys @ state / prompt
    residual = np.eye(WIDTH) - tokens @ tokens.T / prompt @ precondition

    def closed(loops: int) -> float:
        done = np.eye(WIDTH) - np.linalg.matrix_power(residual, loops)
        return float((weights + shift) @ done @ query)

    output, scale = -state[WIDTH, prompt], abs(closed(case.loops))
    return {
        "difference": abs(output - closed(case.loops)) / scale,
        "one_loop_less": abs(output - closed(case.loops - 1)) / scale,
    }


def follow_flow(case: Flow, generator: np.random.Generator) -> dict[str, Any]:
    """Return the loss at `TIMES`, and what the theory says of its fall."""
    values = np.linalg.eigvalsh(draw_matrices(case.prompt, TRAINED, generator))
    twice = 2 * case.loops
    loss_of = lambda a: ((1 - a * values) ** twice).sum(axis=-1).mean()
    slope_of = lambda a: -twice * (values * (1 - a * values) ** (twice - 1)).sum(axis=-1).mean()
    solved = solve_ivp(
        lambda _, a: [-slope_of(a[0]) / WIDTH],
        (0, TIMES[-1]),
        [0.0],
        method="LSODA",
        t_eval=TIMES,
        rtol=1e-9,
        atol=1e-12,
    )
    scalars = solved.y[0]
    losses = np.array([loss_of(a) for a in scalars])
    floor = losses.min()
    gradients = np.array([slope_of(a) for a in scalars]) ** 2 / WIDTH  # |∇_A|² at A = a·I
    dominance = gradients / losses ** ((twice - 1) / case.loops)
    within = (losses < 0.2 * WIDTH) & (losses > 3 * floor)
    slopes = np.polyfit(np.log(TIMES[within]), np.log(losses[within]), 1)
    halves = np.gradient(np.log(losses[within]), TIMES[within])
    above = losses > 2 * floor  # nearer to its minimum, the theory says nothing
    return {
        "losses": losses,
        "above": above,
        "dominance": dominance[above].min(),
        "slope": slopes[0],
        "slowing": halves[-1] / halves[0],
    }


def find_dominance(case: Dominance, generator: np.random.Generator) -> dict[str, float]:
    """Return the least |∇_A L|²/L^{(2L−1)/L} over 120 random symmetric A, Σ = I."""
    matrices = draw_matrices(100, TRAINED, generator)
    found = []
    for _ in range(120):
        drawn = generator.uniform(0, 0.5) * generator.standard_normal((WIDTH, WIDTH))
        value, slope, _ = loss_and_slope(
            matrices, (drawn + drawn.T) / 2, np.zeros(WIDTH), case.loops
        )
        found.append((slope**2).sum() / value ** ((2 * case.loops - 1) / case.loops))
    return {"dominance": min(found)}


def go_aside(case: Antisymmetric, generator: np.random.Generator) -> dict[str, float]:
    """Return by how much a*I + bJ, J antisymmetric, lowers the loss at best, judged on other S."""
    trained, judged = (draw_matrices(100, JUDGED, generator) for _ in range(2))
    best = best_scalar(trained, case.loops) * np.eye(WIDTH)
    drawn = generator.standard_normal((WIDTH, WIDTH))
    aside = (drawn - drawn.T) / np.linalg.norm(drawn - drawn.T)
    along = lambda b, matrices: loss(matrices, best + b * aside, case.loops)
    b = lowest(lambda b: along(b, trained), 0, 3)
    return {"change": along(b, judged) / along(0, judged) - 1}


def add_loops(case: Loops, generator: np.random.Generator) -> dict[str, Any]:
    """Return the loss after 2, 4, 8 and 16 loops of the A that two loops train."""
    matrices = draw_matrices(case.prompt, JUDGED, generator)
    best = best_scalar(matrices, 2)
    root, turned = draw_root(generator), draw_root(generator)
    inverse = np.linalg.inv(root)
    rotated = turned @ inverse @ (best * inverse) @ turned
    places = {
        "same": best * np.eye(WIDTH),
        "wider": 1.5 * best * np.eye(WIDTH),
        "rotated": (rotated + rotated.T) / 2,
    }
    return {
        name: np.array([loss(matrices, white, loops) for loops in EXTRA_LOOPS])
        for name, white in places.items()
    }


_SIMULATE: dict[type, Any] = {
    Minimum: find_minimum,
    Recursion: run_recursion,
    Flow: follow_flow,
    Dominance: find_dominance,
    Antisymmetric: go_aside,
    Loops: add_loops,
}


def simulate(setting: Any, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield what a setting gives with each seed."""
    for seed in seeds:
        yield _SIMULATE[type(setting)](setting, np.random.default_rng(seed))


# --- the study ----------------------------------------------------------------------------------

CELLS = ((20, 1), (20, 2), (100, 1), (100, 2), (100, 3))  # tails of 6th powers spoil n = 20, L = 3
ERRORS = {20: 0.03, 100: 0.01}
RECURSIONS = tuple(Recursion(loops, s) for loops in (1, 2, 3, 5) for s in (True, False))
FLOWS = tuple(Flow(prompt, loops) for prompt in (100, 10_000) for loops in (1, 2, 3, 5))
FAR = tuple(Minimum(20, loops, True, 0.3) for loops in (1, 2))
SETTINGS = (
    *(Minimum(*cell, symmetric) for cell in CELLS for symmetric in (True, False)),
    *FAR,
    *RECURSIONS,
    *FLOWS,
    *(Dominance(loops) for loops in (1, 2, 3)),
    *(Antisymmetric(loops) for loops in (2, 3, 4, 5)),
    *(Loops(prompt) for prompt in (20, 100, 400)),
)


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows: the closed form, the minimiser, the flow, and loops at test time."""
    worst = np.max([results[one]["difference"] for one in RECURSIONS], axis=0)
    what, where = "output of the loops and closed form, relative difference", "L = 1, 2, 3, 5"
    yield claim(what, where, worst, (0, 1e-10), "0")
    least = np.min([results[one]["one_loop_less"] for one in RECURSIONS], axis=0)
    yield control(what, f"{where}, closed form with L − 1", least, (0, 1e-10), "0")
    yield from _judge_minima(results)
    yield from _judge_free(results)
    yield from _judge_flow(results)
    yield from _judge_loops(results)


def _judge_minima(results: Results) -> Iterator[Row]:
    for prompt, loops in CELLS:
        part, where = results[Minimum(prompt, loops, True)], f"n = {prompt}, L = {loops}"
        what = "|A₀ − a*I|/|a*I|, A symmetric"
        yield claim(what, where, part["error"], (0, ERRORS[prompt]), "0")
        yield claim("loss over that of a*I", where, part["ratio"], (0.99, 1.005), "1")
        yield claim("|u|", where, part["shift"], (0, 1e-4), "0")
        where = f"{where}: c·I, not adapted to Σ"
        yield control("loss over that of a*I", where, part["plain_ratio"], (0.99, 1.5), "1")
    for case in FAR:
        where = f"n = {case.prompt}, L = {case.loops}, starts N(0, 0.3²)"
        yield claim("|u|", where, results[case]["shift"], (0, 1e-4), "0")
    best = {n: results[Minimum(n, 1, True)]["best"] for n in (20, 100)}
    yield claim("a* at n = 100 over a* at n = 20", "L = 1", best[100] / best[20], (1.1, 1.5))
    yield claim("a*", "n = 100, L = 1", best[100], (0.9, 1), "1")
    bound = 8 * np.sqrt(8 * WIDTH / np.sqrt(100)) * WIDTH**0.5
    what = "c, which must be below 1 to say anything"
    yield claim(what, "n = 100, L = 1", bound, (0, 1), claimed="conditional")


def _judge_free(results: Results) -> Iterator[Row]:
    """Yield what A does that need not be symmetric: from two loops on, better than a*I."""
    for prompt, loops in CELLS:
        part, where = results[Minimum(prompt, loops, False)], f"n = {prompt}, L = {loops}, A free"
        claimed = "yes" if loops == 1 else "no"
        yield claim("loss over that of a*I", where, part["ratio"], (0.99, 1.005), "1", claimed)
        what = "|antisymmetric part of A₀|/|a*I|"
        yield claim(what, where, part["antisymmetric"], (0, 0.01), "0", claimed)
    for loops in (2, 3, 4, 5):
        change = results[Antisymmetric(loops)]["change"]
        what = "change of the loss along an antisymmetric direction"
        yield claim(what, f"n = 100, L = {loops}", change, (0, np.inf), "0", "no")


def _judge_flow(results: Results) -> Iterator[Row]:
    what = "|∇_A L|²/L^{(2L−1)/L}, least"
    for flow in FLOWS:
        part, where = results[flow], f"flow, n = {flow.prompt}, L = {flow.loops}"
        yield claim(what, where, part["dominance"], (1 / 16, np.inf), "≥ 1/16")
        if flow.loops == 1:
            continue
        share = flow.loops / (flow.loops - 1)
        bound = (16 * share / TIMES) ** share
        most = np.where(part["above"], part["losses"] / bound, 0).max(axis=1)
        says = "loss over (16L/((L−1)t))^{L/(L−1)}, largest"
        yield claim(says, where, most, (0, 1), "≤ 1")
        if flow.prompt == 10_000:
            law = "d ln L/d ln t"
            bounds = (-1.15 * share, -0.85 * share)
            yield claim(law, where, part["slope"], bounds, f"{-share:.3g}")
            says = "last over first slope of ln L in t: 1 of an exponential fall"
            yield claim(says, where, part["slowing"], (0.8, 1.2), "1", "no")
    alone = results[Flow(10_000, 1)]["slope"]
    where = "flow, n = 10000, L = 1, which falls exponentially"
    yield control("d ln L/d ln t", where, alone, (-2.3, -1.7), "−2")
    for loops in (1, 2, 3):
        part = results[Dominance(loops)]
        yield claim(what, f"random A, L = {loops}", part["dominance"], (1 / 16, np.inf), "≥ 1/16")


def _judge_loops(results: Results) -> Iterator[Row]:
    more = {n: results[Loops(n)] for n in (20, 100, 400)}
    what = "loss after 16 loops over that after the 2 of training"
    ratio = lambda n, name: more[n][name][:, -1] / more[n][name][:, 0]
    for n in (100, 400):
        yield claim(what, f"n = {n}", ratio(n, "same"), (0, 0.1))
        four = more[n]["same"][:, 1] / more[n]["same"][:, 0]
        yield claim("loss after 4 loops over that after 2", f"n = {n}", four, (0, 0.5))
    where = "n = 20, where a*·λ_max(S) > 2 in some prompts"
    yield control(what, where, ratio(20, "same"), (0, 0.1))
    yield claim(what, "n = 400, tokens of 1.5 Σ", ratio(400, "wider"), (0, 0.1))
    for n in (100, 400):
        where = f"n = {n}, tokens of another Σ"
        yield claim(what, where, ratio(n, "rotated"), (0, 0.1), claimed="conditional")


def pictures(results: Results) -> Iterator[Picture]:
    """Yield the fall of the loss, and what more loops do."""
    falls = []
    for flow, colour in zip(FLOWS[4:], (ORANGE, BLUE, VERMILION, GREEN), strict=True):
        losses = results[flow]["losses"][0]
        falls.append(Line(TIMES, losses, f"L = {flow.loops}", colour))
        if flow.loops > 1:
            share = flow.loops / (flow.loops - 1)
            middle = int(np.argmin(np.abs(np.log(losses / 0.1))))
            law = losses[middle] * (TIMES / TIMES[middle]) ** -share
            shown = law < WIDTH
            falls.append(Line(TIMES[shown], law[shown], "", colour, "dot"))
    loops = np.array(EXTRA_LOOPS, float)
    more = [
        Line(loops, results[Loops(n)]["same"].mean(axis=0), f"n = {n}", colour, symbol="circle")
        for n, colour in ((20, VERMILION), (100, BLUE), (400, GREEN))
    ]
    yield Picture(
        "looped_transformers",
        "The loss falls as a power of time; more loops help where prompts are long",
        "Time and loops",
        "Left: gradient flow at n = 10,000; dotted: t^{−L/(L−1)}. Right: more loops at test time "
        "than the two of training.",
        [
            [
                Panel(
                    "loss along gradient flow",
                    falls,
                    Axis("loss", "log", (1e-8, 10)),
                    Axis("time", "log"),
                    legend=True,
                ),
                Panel(
                    "loss after more loops",
                    more,
                    Axis("loss", "log"),
                    Axis("loops", "log"),
                    legend=True,
                ),
            ]
        ],
    )


STUDY = Study(
    name="looped-transformers",
    title="A looped transformer takes steps of gradient descent",
    paper="Gatmiry et al., Can Looped Transformers Learn to Implement Multi-step Gradient Descent "
    "for In-context Learning?, ICML 2024, arXiv 2410.08292",
    reads="L loops of one linear attention layer are L steps of gradient descent preconditioned by "
    "A. Among symmetric A the minimiser is a*Σ⁻¹; from two loops on a free A does better by an "
    "antisymmetric part. The loss falls as t^{−L/(L−1)} along gradient flow, not exponentially, "
    "and more loops at test time help only where every prompt has a*·λ_max(S) < 2.",
    parts=lambda seeds, full: dict.fromkeys(SETTINGS, 3 * seeds if full else seeds),
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=3,
)
