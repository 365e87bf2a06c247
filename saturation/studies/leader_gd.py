"""Workers that follow the best of them all arrive; workers that follow their average need not.

Teng et al. 2019 (arXiv 1905.10395): x_i ← x_i − η∇f(x_i) − ηλ(x_i − z), z the best worker, beside
elastic averaging (EASGD), where z is a centre that follows the workers' mean. On a double well,
where both have closed forms (ours), on matrix completion, whose minima are an orbit of rotations,
and on phase retrieval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float, Float64

from saturation.plots.colours import BLUE, GREEN, VERMILION
from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.studies.base import Part, Results, Row, Study, claim, control, in_proportion

WORKERS = 8
PULLS = (0.1, 0.2, 0.24, 0.26, 0.4)  # λ of the double well
WELL_RATE, WELL_STEPS = 0.1, 20_000
SIZE, RANK = 20, 2
KEPT, SEEN = 0.5, 0.25  # of the entries, before the mask is made symmetric
FEW_STEPS, FEW_RATE = 1600, 0.04  # stochastic
ALL_STEPS, ALL_RATE = 1500, 0.05  # full batch
DIMENSION, MEASURED, PHASE_RATE = 20, 100, 0.02
SOLVED, NEAR = 1e-2, 1e-3  # an error, and a loss
LINES: tuple[tuple[str, Method, float], ...] = (
    ("leader", "leader", 0.4),
    ("weak leader", "leader", 0.1),
    ("EASGD", "centre", 0.43),
)

Method = Literal["leader", "centre", "none"]


@dataclass(frozen=True)
class Well:
    """Two workers in the wells of (x² − 1)²/4, pulled at every step by ηλ."""

    method: Literal["leader", "centre"]


@dataclass(frozen=True)
class Run:
    """Eight workers on a problem.

    Attributes:
      problem: what is solved.
      method: whom they follow.
      pull: the share of the way at each pull; of full completion λ, and pulls are ηλ.
      every: steps between pulls.
    """

    problem: Literal["completion", "full completion", "phase"]
    method: Method
    pull: float = 0.0
    every: int = 1

    @property
    def vectors(self) -> int:
        """How many workers' parameters travel in the steps of stochastic completion."""
        rounds = FEW_STEPS // self.every
        return {"leader": rounds, "centre": rounds * (WORKERS + 1), "none": 0}[self.method]


def follow_well(setting: Well) -> dict[str, Any]:
    """Return where two workers stop at each λ, and the derivative there, in float64."""
    import jax
    import jax.numpy as jnp
    import optax

    from saturation.training.leader import follow_centre, follow_leader

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        start = [0.7001, -0.7] if setting.method == "leader" else [0.7, -0.7]
        found = []
        for strength in PULLS:
            pull = WELL_RATE * strength
            # The centre's own pull is b, the workers' b/p.
            follow = follow_leader(pull) if setting.method == "leader" else follow_centre(2 * pull)
            optimizer = optax.chain(optax.sgd(WELL_RATE), follow)

            def step(carried: Any, _: None, optimizer: Any = optimizer) -> Any:
                x, state = carried
                value, slope = (x**2 - 1) ** 2 / 4, x**3 - x
                update, state = optimizer.update(slope, state, x, value=value)
                return (optax.apply_updates(x, update), state), None

            first = jnp.asarray(start)
            run = jax.jit(
                lambda x, o=optimizer, s=step: jax.lax.scan(s, (x, o.init(x)), None, WELL_STEPS)[0][
                    0
                ]
            )
            found.append(np.asarray(run(first)))
    places = np.stack(found)
    return {"places": places, "slopes": places**3 - places}


def expected_place(method: str, strength: float) -> float:
    """Return where the follower, or both workers of EASGD, stop: the closed form.

    A follower left of the leader at 1 solves x² + x + λ = 0, if it has a solution; EASGD's workers
    stop at x² = 1 − λ.
    """
    if method == "centre":
        return -np.sqrt(1 - strength)
    return (-1 - np.sqrt(1 - 4 * strength)) / 2 if strength < 0.25 else 1.0


def pose(setting: Run, generator: np.random.Generator) -> tuple[dict[str, Any], np.ndarray]:
    """Return a problem's data, and where the workers start."""
    if setting.problem == "phase":
        truth = generator.standard_normal(DIMENSION)
        truth /= np.linalg.norm(truth)
        rows = generator.standard_normal((MEASURED, DIMENSION))
        start = 0.5 * generator.standard_normal((WORKERS, DIMENSION))
        return {"rows": rows, "targets": (rows @ truth) ** 2, "truth": truth}, start
    factor = generator.standard_normal((SIZE, RANK))
    drawn = generator.random((SIZE, SIZE)) < KEPT
    start = 0.5 * generator.standard_normal((WORKERS, SIZE, RANK))
    return {"target": factor @ factor.T, "mask": (drawn | drawn.T).astype(float)}, start


def loss_of(
    setting: Run, x: Float[Array, "*shape"], data: Any, kept: Any = 1.0
) -> Float[Array, ""]:
    """Return |P(VVᵀ − M)|²/4n, or the mean of ((aᵀx)² − y)²/4, of one worker."""
    import jax.numpy as jnp

    if setting.problem == "phase":
        return (((data["rows"] @ x) ** 2 - data["targets"]) ** 2).mean() / 4
    error = kept * data["mask"] * (x @ x.T - data["target"])
    return jnp.sum(error**2) / (4 * SIZE)


def error_of(setting: Run, x: Float64[np.ndarray, "*shape"], data: dict[str, Any]) -> float:
    """Return |VVᵀ − M|/|M|, or the distance to ± the truth, of norm 1."""
    if setting.problem == "phase":
        truth = data["truth"]
        return float(min(np.linalg.norm(x - truth), np.linalg.norm(x + truth)))
    return float(np.linalg.norm(x @ x.T - data["target"]) / np.linalg.norm(data["target"]))


def make_training(setting: Run) -> Callable[..., Any]:
    """Return the compiled training: (starts, data, keys) -> (ends, least full loss by step)."""
    import jax
    import jax.numpy as jnp
    import optax

    from saturation.training.leader import follow_centre, follow_leader

    rate = {"completion": FEW_RATE, "full completion": ALL_RATE, "phase": PHASE_RATE}[
        setting.problem
    ]
    pull = rate * setting.pull if setting.problem == "full completion" else setting.pull
    follow: Callable[..., Any] = {
        "leader": follow_leader,
        "centre": follow_centre,
        "none": lambda *_: optax.with_extra_args_support(optax.identity()),
    }[setting.method]
    optimizer = optax.chain(optax.sgd(rate), follow(pull, setting.every))
    loss = lambda x, data, kept: loss_of(setting, x, data, kept)
    slope_of = jax.vmap(jax.value_and_grad(loss), (0, None, 0))
    full = jax.vmap(loss, (0, None, None))

    def step(carried: Any, key: Any, data: Any) -> Any:
        x, state = carried
        kept = jnp.ones((WORKERS, 1, 1))
        if setting.problem == "completion":
            drawn = jax.random.bernoulli(key, SEEN, (WORKERS, SIZE, SIZE))
            share = 1 - (1 - SEEN) ** 2  # an entry counts in full on average
            kept = (drawn | jnp.swapaxes(drawn, 1, 2)).astype(x.dtype) / np.sqrt(share)
        value, slope = slope_of(x, data, kept)
        update, state = optimizer.update(slope, state, x, value=value)
        return (optax.apply_updates(x, update), state), full(x, data, 1.0).min()

    @jax.jit
    def run(x: Any, data: Any, keys: Any) -> Any:
        body = lambda carried, key: step(carried, key, data)
        (x, _), losses = jax.lax.scan(body, (x, optimizer.init(x)), keys)
        return x, losses

    return run


def solve(setting: Run, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield the errors of the workers of each seed at the end, and when the first was near."""
    import jax
    import jax.numpy as jnp

    run = make_training(setting)
    steps = FEW_STEPS if setting.problem == "completion" else ALL_STEPS
    for seed in seeds:
        data, start = pose(setting, np.random.default_rng(seed))
        placed = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), data)
        keys = jax.random.split(jax.random.PRNGKey(seed), steps)
        with jax.numpy_dtype_promotion("standard"):
            ended, followed = run(jnp.asarray(start, jnp.float32), placed, keys)
        places, losses = np.asarray(ended, np.float64), np.asarray(followed)
        errors = np.array([error_of(setting, place, data) for place in places])
        reached = losses < NEAR
        yield {
            "best": errors.min(),
            "median": np.median(errors),
            "solved": float((errors < SOLVED).all()),
            "mean": error_of(setting, places.mean(axis=0), data),
            "steps": float(reached.argmax()) if reached.any() else float(steps),
        }


def simulate(setting: Well | Run, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield where the workers of each seed end."""
    if isinstance(setting, Run):
        return solve(setting, seeds)
    return (follow_well(setting) for _ in seeds)


# --- the study ----------------------------------------------------------------------------------

LEADER, CENTRE = Well("leader"), Well("centre")
EVERY = (4, 16, 64)
COMPLETION = {
    name: [Run("completion", method, pull, every) for every in EVERY]
    for name, method, pull in LINES
}
ALONE = Run("completion", "none")
STRONG, WEAK = (Run("full completion", "leader", pull) for pull in (0.5, 0.1))
PHASE = {
    "leader, pull 0.5 every 16": Run("phase", "leader", 0.5, 16),
    "EASGD, pull 0.5 every 16": Run("phase", "centre", 0.5, 16),
    "no communication": Run("phase", "none"),
}
SEEDS = {"completion": 8, "full completion": 10, "phase": 10}
SETTINGS: dict[Well | Run, int] = {LEADER: 1, CENTRE: 1} | {
    run: SEEDS[run.problem]
    for run in (
        *(r for runs in COMPLETION.values() for r in runs),
        ALONE,
        STRONG,
        WEAK,
        *PHASE.values(),
    )
}


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows of the three problems."""
    yield from _judge_well(results)
    yield from _judge_completion(results)
    what = "share of runs in which all workers are within 0.01"
    full = "matrix completion, all entries at each step: "
    yield claim(what, f"{full}leader, λ = 0.5", results[STRONG]["solved"], (0.9, 1))
    yield control(what, f"{full}leader, λ = 0.1", results[WEAK]["solved"], (0.9, 1))
    shares = {name: results[run]["solved"] for name, run in PHASE.items()}
    strong, centre, alone = shares
    yield claim(what, f"phase retrieval: {strong}", shares[strong], (0.4, 1))
    yield control(what, f"phase retrieval: {centre}", shares[centre], (0.4, 1))
    for name in (centre, alone):
        gain = shares[strong].mean() - shares[name].mean()
        what = f"that share of {strong}, less that of another"
        yield claim(what, f"phase retrieval: {name}", gain, (0.01, 1))


def _judge_well(results: Results) -> Iterator[Row]:
    leaders, both = results[LEADER], results[CENTRE]
    for index, strength in enumerate(PULLS):
        where = f"double well, λ = {strength}"
        place = expected_place("leader", strength)
        follower = leaders["places"][:, index, 1]
        yield claim("place of the follower", where, follower, _near(place), f"{place:.5f}")
        place = expected_place("centre", strength)
        worker = both["places"][:, index, 1]
        yield claim("place of EASGD's worker", where, worker, _near(place), f"{place:.5f}")
    what = "largest |f′|"
    yield claim(
        what, "double well: leader", np.abs(leaders["slopes"][:, :, 0]).max(), (0, 1e-10), "0"
    )
    yield control(what, "double well: EASGD", np.abs(both["slopes"]).max(), (0, 1e-10), "0")
    trapped = np.abs(leaders["slopes"][:, :3, 1]).max()
    where = "double well: follower, λ < ¼"
    yield claim(what, where, trapped, (0, 1e-10), "0", "conditional")


def _near(place: float) -> tuple[float, float]:
    return place - 1e-5, place + 1e-5


def _judge_completion(results: Results) -> Iterator[Row]:
    what, close = "log₁₀ of the median worker's error", (-np.inf, -3.0)
    logs = lambda run, name: np.log10(results[run][name])
    leader, centre = (COMPLETION[name] for name in ("leader", "EASGD"))
    says = lambda name, run: (
        f"matrix completion: {name}, pull {run.pull} every {run.every}, {run.vectors} vectors"
    )
    for run in leader[1:]:
        yield claim(what, says("leader", run), logs(run, "median"), close)
    for run in centre[1:]:
        yield control(what, says("EASGD", run), logs(run, "median"), close)
    weak = COMPLETION["weak leader"][-1]
    yield control(what, says("leader", weak), logs(weak, "median"), close)
    what = "log₁₀ of the error at the workers' mean"
    yield claim(what, says("leader", leader[-1]), logs(leader[-1], "mean"), close)
    yield control(what, "matrix completion: no communication", logs(ALONE, "mean"), close)
    what = "steps until the best worker's loss is below 0.001, over those without communication"
    speed = results[leader[-1]]["steps"] / results[ALONE]["steps"]
    yield claim(what, says("leader", leader[-1]), speed, (0, 0.8), claimed="conditional")


def pictures(results: Results) -> Iterator[Picture]:
    """Yield where the workers of the double well stop, and errors by pulls."""
    strengths = np.array(PULLS)
    fine = np.linspace(0.01, 0.45, 200)
    wells = [
        Line(
            strengths, results[LEADER]["places"][0, :, 1], "follower", BLUE, "none", symbol="circle"
        ),
        Line(
            strengths,
            results[CENTRE]["places"][0, :, 1],
            "EASGD",
            VERMILION,
            "none",
            symbol="square",
        ),
    ]
    for method, colour in (("leader", BLUE), ("centre", VERMILION)):
        law = np.array([expected_place(method, one) for one in fine])
        wells.append(Line(fine, law, "", colour, "dot"))
    every = np.array(EVERY, float)
    errors = [
        Line(
            every, np.array([np.median(results[run]["median"]) for run in runs]), name, colour,
            symbol="circle",
        )
        for (name, runs), colour in zip(COMPLETION.items(), (BLUE, GREEN, VERMILION), strict=True)
    ]  # fmt: skip
    yield Picture(
        "leader_gd",
        "Workers that follow the leader all arrive, if they are pulled hard enough",
        "Wells and errors",
        "Left: where the second of two workers stops in the double well, the minimum on its side "
        "being −1 and the leader's 1; dotted: closed forms. Right: error of the median worker in "
        "matrix completion, median over the seeds.",
        [
            [
                Panel("double well", wells, Axis("place"), Axis("λ"), legend=True),
                Panel(
                    "matrix completion",
                    errors,
                    Axis("error", "log"),
                    Axis("steps between pulls", "log"),
                    legend=True,
                ),
            ]
        ],
    )


STUDY = Study(
    name="leader-gd",
    title="Workers that follow the best of them",
    paper="Teng et al., Leader Stochastic Gradient Descent for Distributed Training of Deep "
    "Learning Models, NeurIPS 2019, arXiv 1905.10395",
    reads="Workers are pulled toward the best one, or (EASGD) toward a centre. All that follow a "
    "leader arrive where it does, if they are pulled hard enough; then their mean is usable too. "
    "EASGD moves the stationary points, and its mean lies between rotated solutions. The best "
    "worker is no faster than without communication.",
    parts=in_proportion(SETTINGS, seeds=8),
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=8,
)
