"""Adversarial training turns a linear classifier to its largest margin faster than clean one.

Li, Fang, Xu and Zhao 2020 (arXiv 1906.02931). Data z_i = y_i x_i, attacks of size c in l_q, loss
mean exp(−z_iᵀθ + c|θ|_p), 1/p + 1/q = 1, gradient descent. The closed forms of |n − u₂|, n the
direction and u₂ the l₂ margin's, are ours: with g the margin, a the duals of the support vectors,
C = exp(entropy(a)), and w ⟂ u₂ solving z_iᵀw − k = −ln a_i on them, |n − u₂| = |w|/r, r = |θ|.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize
from scipy.stats import special_ortho_group

from saturation.plots.colours import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.studies.base import Part, Results, Row, Stacked, Study, claim, control
from saturation.studies.numerics import log_slope

WIDTH, SUPPORT, OTHERS = 3, 3, 7
MARGIN = 0.5  # g
MOST_RESIDUAL = 1.5  # of |w|
APART = 0.25  # |u_q − u₂| of the problems in other norms
RATE = 1.0
TIMES = np.array([10 ** (k / 2) for k in range(4, 13)]).round().astype(int)  # 10² to 10⁶
NORMALISED_RATE, NORMALISED_STEPS = 0.05, 200_000
BEST = 1.98  # κ of c_T = g − κ √(n/(C η T)), at the maximum of ln(1 + x²)/x

Points = Float64[np.ndarray, "points width"]
Vector = Float64[np.ndarray, " width"]


@dataclass(frozen=True)
class Norm:
    """In which norm attacks are bounded: l₂ by plain descent, the others by normalised descent."""

    q: Literal["2", "inf", "1"]


class Problem(NamedTuple):
    """Planted data, with the direction of the l₂ margin and what its approach depends on."""

    points: Points
    direction: Vector  # u₂
    spread: float  # C, the exponential of the duals' entropy
    residual: float  # |w|


def plant(generator: np.random.Generator) -> Problem:
    """Return ten points whose margin is 0.5.

    Duals are unequal, so that there is a rate to see, and |w| is small, so that 10⁶ steps show it.
    """
    while True:
        duals = generator.dirichlet(np.full(SUPPORT, 2.0))
        aside = generator.standard_normal((SUPPORT, WIDTH - 1))
        aside[-1] = -duals[:-1] @ aside[:-1] / duals[-1]  # Σ a_i V_i = 0
        aside /= np.linalg.norm(aside, axis=1).max()
        # z_iᵀw − k = −ln a_i in w (along the basis's other vectors) and k.
        solved = np.linalg.solve(np.column_stack([aside, -np.ones(SUPPORT)]), -np.log(duals))
        residual = float(np.linalg.norm(solved[:-1]))
        unequal = duals.min() > 0.1 and duals.max() > 0.5
        if unequal and np.linalg.cond(aside) < 2.5 and residual < MOST_RESIDUAL:
            break
    basis = special_ortho_group.rvs(WIDTH, random_state=generator)
    support = MARGIN * basis[0] + aside @ basis[1:]
    margins = generator.uniform(1, 1.3, OTHERS)
    far = 0.5 * generator.standard_normal((OTHERS, WIDTH - 1))
    points = np.concatenate([support, np.outer(margins, basis[0]) + far @ basis[1:]])
    spread = float(np.exp(-(duals * np.log(duals)).sum()))
    return Problem(points, basis[0], spread, residual)


def attacks(problem: Problem) -> dict[str, float]:
    """Return the size c of each attack; those of "best T" are of one number of steps each."""
    scale = np.sqrt(len(problem.points) / (problem.spread * RATE * TIMES))
    fixed = {"clean": 0.0, "half": 0.5, "most": 0.9, "equal": 1.0, "above": 1.1}
    found = {name: share * MARGIN for name, share in fixed.items()}
    return found | {
        f"best {time}": MARGIN - BEST * one for time, one in zip(TIMES, scale, strict=True)
    }


def expected_norm(problem: Problem, attack: str, time: float) -> float:
    """Return the closed form of |θ| after T steps of an attack below, at or tuned to the margin."""
    pace = problem.spread * RATE * time / len(problem.points)
    match attack:
        case "equal":
            return (1.5 * MARGIN * problem.residual**2 * pace) ** (1 / 3)
        case "best":
            return 0.805 * np.sqrt(pace)
        case _:
            left = MARGIN - attacks(problem)[attack]
            return np.log(left**2 * pace) / left


def descend(problems: Sequence[Problem]) -> Float64[np.ndarray, "problems attacks times width"]:
    """Return θ at `TIMES` of gradient descent under every attack, all in one compiled loop."""
    import jax
    import jax.numpy as jnp

    sizes = np.array([list(attacks(problem).values()) for problem in problems])
    points = np.stack([problem.points for problem in problems])

    def step(weights: Any, z: Any, c: Any) -> Any:
        size = jnp.linalg.norm(weights, axis=-1, keepdims=True)
        losses = jnp.exp(c[..., None] * size - weights @ jnp.swapaxes(z, -1, -2))
        pushed = c[..., None] * weights / size * losses.mean(axis=-1, keepdims=True)
        return weights - RATE * (pushed - losses @ z / z.shape[-2])

    with jax.enable_x64(True):
        z, c = jnp.asarray(points), jnp.asarray(sizes)
        run = jax.jit(
            lambda weights, steps: jax.lax.fori_loop(0, steps, lambda _, w: step(w, z, c), weights)
        )
        # The first step is clean: |θ| has no gradient at 0.
        weights = jnp.broadcast_to(RATE * z.mean(axis=1)[:, None], (*c.shape, WIDTH))
        done, found = 1, []
        for time in TIMES:
            weights, done = run(weights, int(time) - done), int(time)
            found.append(np.asarray(weights))
    return np.stack(found, axis=2)


def simulate_l2(seeds: Sequence[int]) -> Iterator[Part]:
    """Yield {attack: |n − u₂| at each of `TIMES`}, and the same over its closed form at the end."""
    problems = [plant(np.random.default_rng(seed)) for seed in seeds]
    for problem, weights in zip(problems, descend(problems), strict=True):
        directions = weights / np.linalg.norm(weights, axis=-1, keepdims=True)
        gaps = dict(
            zip(
                attacks(problem),
                np.linalg.norm(directions - problem.direction, axis=-1),
                strict=True,
            )
        )
        tuned = np.array([gaps.pop(f"best {time}")[i] for i, time in enumerate(TIMES)])
        gaps["best"] = tuned
        ratios = {
            f"{name}_ratio": gaps[name][-1]
            / (problem.residual / expected_norm(problem, name, float(TIMES[-1])))
            for name in ("clean", "half", "most", "equal", "best")
        }
        yield gaps | ratios


# --- attacks in other norms ---------------------------------------------------------------------


def dual_norm(q: str) -> tuple[Any, Any]:
    """Return |θ|_p and a subgradient of it, of the norm dual to l_q."""
    if q == "inf":
        return lambda w: np.abs(w).sum(), np.sign

    def slope(weights: Vector) -> Vector:
        largest = np.abs(weights) == np.abs(weights).max()
        return np.sign(weights) * largest / largest.sum()

    return lambda w: np.abs(w).max(), slope


def widest_margin(points: Points, q: str, attack: float | None) -> tuple[Vector, float]:
    """Return argmax of min_i z_iᵀu − c|u|_p over |u|₂ = 1, and the margin in the l_p norm.

    As min |θ|²/2 with z_iᵀθ − c|θ|_p ≥ 1, |θ|_p being held by variables t ≥ |θ_j|. For None the
    l_p margin max min z_iᵀθ/|θ|_p is found, as min |θ|_p with z_iᵀθ ≥ 1.
    """
    size = WIDTH if q == "inf" else 1
    norm = lambda packed: packed[WIDTH:].sum()
    c = 0.0 if attack is None else attack
    held = lambda packed: np.concatenate(
        [packed[WIDTH:] - packed[:WIDTH], packed[WIDTH:] + packed[:WIDTH]]
    )
    apart = lambda packed: points @ packed[:WIDTH] - c * norm(packed) - 1
    start = np.linalg.lstsq(points, np.full(len(points), 3.0), rcond=None)[0]
    packed = np.append(start, np.full(size, np.abs(start).max()))
    objective = norm if attack is None else lambda packed: packed[:WIDTH] @ packed[:WIDTH] / 2
    constraints = [{"type": "ineq", "fun": held}, {"type": "ineq", "fun": apart}]
    options = {"maxiter": 1000, "ftol": 1e-14}
    found = minimize(objective, packed, method="SLSQP", constraints=constraints, options=options)
    weights = found.x[:WIDTH]
    return weights / np.linalg.norm(weights), float(1 / norm(found.x))


def plant_apart(q: str, generator: np.random.Generator) -> tuple[Points, float, Vector, Vector]:
    """Return separable points, an attack of half their l_p margin, u_q and u₂, the two apart."""
    while True:
        basis = special_ortho_group.rvs(WIDTH, random_state=generator)
        along = generator.uniform(0.5, 1.5, SUPPORT + OTHERS)
        aside = generator.standard_normal((SUPPORT + OTHERS, WIDTH - 1))
        points = np.outer(along, basis[0]) + aside @ basis[1:]
        attack = widest_margin(points, q, None)[1] / 2
        target, straight = (widest_margin(points, q, c)[0] for c in (attack, 0.0))
        if np.linalg.norm(target - straight) > APART:
            return points, attack, target, straight


def descend_normalised(points: Points, q: str, attack: float) -> Vector:
    """Return the direction after steps −η ∇L/L of loss-normalised descent."""
    _, slope = dual_norm(q)
    weights = points.mean(axis=0)
    for _ in range(NORMALISED_STEPS):
        inner = -points @ weights
        shares = np.exp(inner - inner.max())
        shares /= shares.sum()
        weights = weights + NORMALISED_RATE * (shares @ points - attack * slope(weights))
    return weights / np.linalg.norm(weights)


def simulate_lq(setting: Norm, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield the distances of adversarial and of clean descent to both margins' directions."""
    for seed in seeds:
        points, attack, target, straight = plant_apart(setting.q, np.random.default_rng(seed))
        found = descend_normalised(points, setting.q, attack)
        clean = descend_normalised(points, setting.q, 0.0)
        yield {
            "to_own": np.linalg.norm(found - target),
            "to_l2": np.linalg.norm(found - straight),
            "clean_to_own": np.linalg.norm(clean - target),
            "clean_to_l2": np.linalg.norm(clean - straight),
        }


def simulate(setting: Norm, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield what a norm's attacks lead to with each seed."""
    return simulate_l2(seeds) if setting.q == "2" else simulate_lq(setting, seeds)


# --- the study ----------------------------------------------------------------------------------

L2, LINF, L1 = Norm("2"), Norm("inf"), Norm("1")
NAMES = {
    "clean": "no attack",
    "half": "c = g/2",
    "most": "c = 0.9 g",
    "equal": "c = g",
    "best": "c tuned to T",
    "above": "c = 1.1 g",
}


def slopes(gaps: Float64[np.ndarray, "seeds times"], first: int) -> Float64[np.ndarray, " seeds"]:
    """Return d ln|n − u₂|/d ln T from a number of steps on, by least squares."""
    taken = first <= TIMES
    return log_slope(TIMES[taken], gaps[:, taken].T)


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows: rates in l₂, closed forms, and limits in other norms."""
    yield from _judge_l2(results[L2])
    for setting, name in ((LINF, "l_∞"), (L1, "l_1")):
        part, where = results[setting], f"{name} attacks, normalised descent"
        what = "|n − u_q|"
        yield claim(what, where, part["to_own"], (0, 0.01), "0")
        what = "|n − u₂| over |n − u_q|"
        nearer = part["to_l2"] / part["to_own"]
        yield claim(what, where, nearer.min(), (10, np.inf))
        where = f"no attack, problems of {name}"
        yield control("|n − u_q|", where, part["clean_to_own"], (0, 0.01), "0")
        clean = part["clean_to_l2"] / part["clean_to_own"]
        yield control(what, where, clean.max(), (10, np.inf))


def _judge_l2(part: Stacked) -> Iterator[Row]:
    what = "d ln|n − u₂|/d ln T, T from 10⁴ to 10⁶"
    bounds, law = (-0.52, -0.44), "−½"
    yield claim(what, NAMES["best"], slopes(part["best"], 10_000), bounds, law, "conditional")
    yield claim(
        what, f"{NAMES['best']}: our closed form", slopes(part["best"], 10_000), bounds, law
    )
    for name in ("clean", "half", "above"):
        yield control(what, NAMES[name], slopes(part[name], 10_000), bounds, law)
    what = "d ln|n − u₂|/d ln T, T from 10³ to 10⁶"
    yield claim(what, NAMES["clean"], slopes(part["clean"], 1000), (-0.15, 0))
    twice = 2 * slopes(part["half"], 1000)  # 1 − cos = |n − u₂|²/2
    what = "d ln(1 − cos)/d ln T, T from 10³ to 10⁶"
    yield claim(what, NAMES["half"], twice, (-0.6, -0.4), "−½", "no")
    for name in ("clean", "half", "equal", "best"):
        what = "|n − u₂| over its closed form at T = 10⁶"
        yield claim(what, NAMES[name], part[f"{name}_ratio"], (0.85, 1.15), "1")
    ratio = part["clean"][:, -1] / part["best"][:, -1]
    yield claim(
        "|n − u₂| of clean training over that of c tuned to T", "T = 10⁶", ratio, (10, np.inf)
    )
    ratio = part["clean"][:, -1] / part["half"][:, -1]
    yield control("|n − u₂| of clean training over that of c = g/2", "T = 10⁶", ratio, (10, np.inf))


def pictures(results: Results) -> Iterator[Picture]:
    """Yield the gaps by steps."""
    part, times = results[L2], TIMES.astype(float)
    colours = (BLUE, GREEN, ORANGE, VERMILION, PURPLE)
    lines = []
    for name, colour in zip(("clean", "half", "equal", "best", "above"), colours, strict=True):
        each = part[name]
        middle, low, high = np.median(each, axis=0), each.min(axis=0), each.max(axis=0)
        lines.append(Line(times, middle, NAMES[name], colour, symbol="circle", low=low, high=high))
    law = np.median(part["best"], axis=0)[-1] * (times / times[-1]) ** -0.5
    lines.append(Line(times, law, "∝ 1/√T", VERMILION, "dot"))
    yield Picture(
        "adversarial_bias",
        "An attack tuned to the number of steps turns the direction as 1/√T; a fixed one does not",
        "Distance to the margin's direction",
        "|n − u₂| of gradient descent, the median over the seeds, with a band from the lowest to "
        "the highest. Each point of c tuned to T is a run of its own.",
        [
            [
                Panel(
                    "distance to the direction of the l₂ margin",
                    lines,
                    Axis("|n − u₂|", "log"),
                    Axis("steps T", "log"),
                    legend=True,
                )
            ]
        ],
    )


STUDY = Study(
    name="adversarial-bias",
    title="Adversarial training turns to the margin faster",
    paper="Li, Fang, Xu and Zhao, Implicit Bias of Gradient Descent based Adversarial Training on "
    "Separable Data, ICLR 2020, arXiv 1906.02931",
    reads="Gradient descent on separable data turns to the direction of the largest margin, "
    "slowly. Under l₂ attacks whose size is tuned to the number of steps T the distance falls as "
    "T^−½; under any fixed attack below the margin it is O(1/ln T), as without attacks. Attacks in "
    "other norms lead to the direction of a mixed margin.",
    parts=lambda seeds, full: dict.fromkeys((L2, LINF, L1), 2 * seeds if full else seeds),
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=5,
)
