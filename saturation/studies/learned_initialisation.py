"""Starts of gradient descent that are learned from the solutions of earlier problems.

Ahuja, Dhurandhar and Varshney 2020 (arXiv 2012.12141), at their example of allocating power to
links: max_p Σ_k ln(1 + G_kk p_k/(0.1 + Σ_{j≠k} G_kj p_j)) over p in [0, 1]^K. Arg-Init predicts the
solution from the instance and starts there; Val-Init predicts the value that a start leads to, and
takes the best of several. A second family has adversarial examples of linear classifiers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float, Float64

from saturation.plots.colours import BLUE, ORANGE
from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.studies.base import Part, Results, Row, Study, claim, control

LINKS, NOISE = 6, 0.1
TRAINED, TESTED = 1500, 200
RATE, CAP = 0.05, 400
LABEL_STARTS, LABEL_STEPS, REFERENCE_STARTS = 4, 150, 20
CANDIDATES = 30  # of Val-Init
RIDGE, NETWORK_STEPS, NETWORK_BATCH, NETWORK_RATE, HIDDEN = 1e-2, 1500, 128, 3e-3, 64
DIMENSION, BOUND = 6, 4.0  # of the adversarial family: |d| in each entry at most BOUND

Powers = Float64[np.ndarray, "instances entries"]
Instances = Float64[np.ndarray, "instances numbers"]


@dataclass(frozen=True)
class Setting:
    """Which family of problems."""

    family: Literal["power", "adversarial"]


def draw_instances(setting: Setting, count: int, generator: np.random.Generator) -> Instances:
    """Return instances, a row of numbers each, from which everything about one follows.

    Of power allocation they are ln G, K × K: a base that all share (cross links N(ln 0.4, 0.5²),
    own links 0) and N(0, 0.5²). Of adversarial examples they are a linear classifier's weights and
    bias.
    """
    if setting.family == "adversarial":
        return generator.standard_normal((count, DIMENSION + 1)) + np.linspace(0, 1, DIMENSION + 1)
    base = np.random.default_rng(7).normal(np.log(0.4), 0.5, (LINKS, LINKS))
    np.fill_diagonal(base, 0)
    return (base + 0.5 * generator.standard_normal((count, LINKS, LINKS))).reshape(count, -1)


def value_of(
    setting: Setting, points: Float[Array, "instances entries"], instances: Any
) -> Float[Array, " instances"]:
    """Return what is to be maximised: the sum rate, or −(max(margin, −1) + 0.1 |d|²)."""
    import jax.numpy as jnp

    if setting.family == "adversarial":
        moved = BOUND * (2 * points - 1)
        weights, bias = instances[:, :DIMENSION], instances[:, DIMENSION]
        margin = jnp.abs((weights).sum(axis=1) / 2 + bias)
        sign = jnp.sign(weights.sum(axis=1) / 2 + bias)
        margin = margin + sign * (moved * weights).sum(axis=1)
        return -(jnp.maximum(margin, -1.0) + 0.1 * (moved**2).sum(axis=1))
    gains = jnp.exp(instances).reshape(-1, LINKS, LINKS)
    received = gains * points[:, None]
    own = jnp.diagonal(received, axis1=1, axis2=2)
    return jnp.log1p(own / (NOISE + received.sum(axis=-1) - own)).sum(axis=-1)


def ascend(setting: Setting, starts: Powers, instances: Instances, steps: int) -> tuple[Any, Any]:
    """Return where projected gradient ascent ends, and the values before each step and at the end.

    Args:
      setting: the family.
      starts: in [0, 1], a row an instance.
      instances: as `draw_instances` returns them.
      steps: how many.
    """
    import jax
    import jax.numpy as jnp
    from optax.projections import projection_box

    slope = jax.grad(lambda points, given: value_of(setting, points, given).sum())

    @jax.jit
    def run(points: Any, given: Any) -> Any:
        def step(points: Any, _: None) -> Any:
            moved = projection_box(points + RATE * slope(points, given), 0.0, 1.0)
            return moved, value_of(setting, points, given)

        points, values = jax.lax.scan(step, points, None, steps)
        return points, jnp.concatenate([values, value_of(setting, points, given)[None]])

    ends, values = run(jnp.asarray(starts, jnp.float32), jnp.asarray(instances, jnp.float32))
    return np.asarray(ends, np.float64), np.asarray(values, np.float64)


def best_of(
    setting: Setting, instances: Instances, starts: int, steps: int, generator: np.random.Generator
) -> tuple[Powers, Float64[np.ndarray, " instances"]]:
    """Return the best point that several random starts lead to, and its value."""
    size = DIMENSION if setting.family == "adversarial" else LINKS
    drawn = generator.random((starts, len(instances), size))
    ends, values = zip(*(ascend(setting, each, instances, steps) for each in drawn), strict=True)
    last = np.stack([each[-1] for each in values])
    best = last.argmax(axis=0)
    return np.stack(ends)[best, np.arange(len(instances))], last.max(axis=0)


# --- what is learned ----------------------------------------------------------------------------


def fit_ridge(features: Instances, labels: Powers) -> Any:
    """Return a ridge regression on standardised features."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scaled = (features - mean) / spread
    products = scaled.T @ scaled / len(scaled) + RIDGE * np.eye(scaled.shape[1])
    weights = np.linalg.solve(products, scaled.T @ (labels - labels.mean(axis=0)) / len(scaled))
    return lambda given: (given - mean) / spread @ weights + labels.mean(axis=0)


def fit_network(features: Instances, labels: Powers, generator: np.random.Generator) -> Any:
    """Return a network of one hidden layer of tanh, trained by Adam on the squared error."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = lambda given: ((given - mean) / spread).astype(np.float32)
    model = nn.Sequential([nn.Dense(HIDDEN), jnp.tanh, nn.Dense(labels.shape[1])])
    inputs, targets = jnp.asarray(scale(features)), jnp.asarray(labels, jnp.float32)
    params = model.init(jax.random.PRNGKey(int(generator.integers(2**31))), inputs[:1])
    optimizer = optax.adam(NETWORK_RATE)
    picked = generator.integers(len(features), size=(NETWORK_STEPS, NETWORK_BATCH))

    def loss(params: Any, rows: Any) -> Any:
        predicted = jnp.asarray(model.apply(params, inputs[rows]))
        return ((predicted - targets[rows]) ** 2).mean()

    def step(carried: Any, rows: Any) -> Any:
        params, state = carried
        update, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, update), state), None

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam promotes
        run = jax.jit(lambda p, rows: jax.lax.scan(step, (p, optimizer.init(p)), rows)[0][0])
        params = run(params, jnp.asarray(picked))
    return lambda given: np.asarray(model.apply(params, jnp.asarray(scale(given))), np.float64)


def make_starts(
    setting: Setting, generator: np.random.Generator
) -> tuple[Instances, dict[str, Powers]]:
    """Return new instances, and the starts that each rule gives for them."""
    seen = draw_instances(setting, TRAINED, generator)
    unseen = draw_instances(setting, TESTED, generator)
    solved, _ = best_of(setting, seen, LABEL_STARTS, LABEL_STEPS, generator)
    single, _ = best_of(setting, seen, 1, LABEL_STEPS, generator)
    size = solved.shape[1]
    distances = ((unseen[:, None] - seen) ** 2).sum(axis=-1)
    starts = {
        "random": generator.random((TESTED, size)),
        "ones": np.ones((TESTED, size)),
        "mean": np.broadcast_to(solved.mean(axis=0), (TESTED, size)),
        "ridge": fit_ridge(seen, solved)(unseen),
        "network": fit_network(seen, solved, generator)(unseen),
        "single": fit_network(seen, single, generator)(unseen),
        "nearest": solved[distances.argmin(axis=1)],
        "values": _best_candidates(setting, seen, unseen, size, generator),
        "shuffled": fit_network(seen, generator.permutation(solved), generator)(unseen),
    }
    return unseen, {name: np.clip(each, 0, 1) for name, each in starts.items()}


def _best_candidates(
    setting: Setting,
    seen: Instances,
    unseen: Float64[np.ndarray, "tested numbers"],
    size: int,
    generator: np.random.Generator,
) -> Float64[np.ndarray, "tested entries"]:
    """Return Val-Init's starts: of random ones, that with the best predicted value at the end."""
    tried = generator.random((len(seen), size))
    reached = ascend(setting, tried, seen, LABEL_STEPS)[1][-1]
    predict = fit_network(np.concatenate([seen, tried], axis=1), reached[:, None], generator)
    drawn = generator.random((CANDIDATES, len(unseen), size))
    values = [predict(np.concatenate([unseen, one], axis=1))[:, 0] for one in drawn]
    return drawn[np.argmax(values, axis=0), np.arange(len(unseen))]


def simulate(setting: Setting, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield of each rule's starts: value at start and end, steps to 99 %, and the way to go."""
    for seed in seeds:
        generator = np.random.default_rng(seed)
        unseen, starts = make_starts(setting, generator)
        _, reference = best_of(setting, unseen, REFERENCE_STARTS, CAP, generator)
        found = {}
        for name, start in starts.items():
            ends, values = ascend(setting, start, unseen, CAP)
            # 99 % of the way from the worst value that any of the rules starts from.
            share = (
                values / reference if setting.family == "power" else _progress(values, reference)
            )
            reached = share >= 0.99
            steps = np.where(reached.any(axis=0), reached.argmax(axis=0), CAP)
            found |= {
                f"{name}_start": share[0].mean(),
                f"{name}_end": share[-1].mean(),
                f"{name}_steps": steps.mean(),
                f"{name}_reached": reached.any(axis=0).mean(),
                f"{name}_way": ((start - ends) ** 2).sum(axis=-1).mean(),
            }
        yield found


def _progress(values: Any, reference: Any) -> Any:
    """Return the share of the way from a value of −10 to the reference, of values below 0."""
    return (values + 10) / (reference + 10)


# --- the study ----------------------------------------------------------------------------------

POWER, ADVERSARIAL = Setting("power"), Setting("adversarial")
NAMES = {
    "random": "random",
    "ones": "all ones",
    "mean": "mean of earlier solutions",
    "ridge": "Arg-Init, ridge",
    "network": "Arg-Init, network",
    "single": "Arg-Init, labels of one start",
    "nearest": "solution of the nearest",
    "values": "Val-Init, 30 candidates",
    "shuffled": "Arg-Init, shuffled labels",
}


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows: steps saved, by Arg-Init, by a constant, by Val-Init, by shuffled labels."""
    part, where = results[POWER], "power allocation"
    ratio = lambda name, other: part[f"{name}_steps"] / part[f"{other}_steps"]
    what = "steps to 99 % of the reference, over those from random starts"
    yield claim(what, f"{where}: {NAMES['ridge']}", ratio("ridge", "random"), (0, 0.6))
    yield control(what, f"{where}: {NAMES['shuffled']}", ratio("shuffled", "random"), (0, 0.6))
    near = ratio("shuffled", "random")
    yield claim(f"{what}: no gain", f"{where}: {NAMES['shuffled']}", near, (0.9, 1.1), "1")
    values = ratio("values", "random")
    yield claim(what, f"{where}: {NAMES['values']}", values, (0, 0.6), claimed="conditional")
    network = ratio("network", "random")
    yield claim(what, f"{where}: {NAMES['network']}", network, (0, 0.8))
    yield claim(what, f"{where}: {NAMES['mean']}", ratio("mean", "random"), (0, 0.8), claimed="no")
    what = "steps over those from the mean of earlier solutions"
    yield claim(what, f"{where}: {NAMES['ridge']}", ratio("ridge", "mean"), (0, 0.85))
    what = "share that reaches 99 %, less that of random starts"
    for name in ("ridge", "shuffled"):
        more = part[f"{name}_reached"] - part["random_reached"]
        row = claim if name == "ridge" else control
        yield row(what, f"{where}: {NAMES[name]}", more, (0.08, 1))
    what = "mean squared way from start to end, over that of random starts"
    for name in ("ridge", "shuffled"):
        way = part[f"{name}_way"] / part["random_way"]
        row = claim if name == "ridge" else control
        yield row(what, f"{where}: {NAMES[name]}", way, (0, 0.5))
    what = "value at the end over the reference, less that of random starts"
    worse = part["nearest_end"] - part["random_end"]
    yield claim(what, f"{where}: {NAMES['nearest']}", worse, (0, 1), claimed="no")
    part, where = results[ADVERSARIAL], "adversarial examples"
    what = "steps to 99 % of the reference, over those from random starts"
    for name in ("ridge", "network", "mean"):
        steps = part[f"{name}_steps"] / part["random_steps"]
        yield claim(what, f"{where}: {NAMES[name]}", steps, (0, 0.6), claimed="no")


def pictures(results: Results) -> Iterator[Picture]:
    """Yield the steps and the values of each rule."""
    part = results[POWER]
    names = list(NAMES.values())

    def line(key: str, text: str, colour: str) -> Line:
        each = np.array([part[f"{name}_{key}"] for name in NAMES])
        low, high = each.min(axis=1), each.max(axis=1)
        return Line(
            names, each.mean(axis=1), text, colour, "none", symbol="circle", size=7,
            low=low, high=high, bars=True,
        )  # fmt: skip

    steps = [line("steps", "steps to 99 %", BLUE)]
    values = [line("start", "at the start", ORANGE), line("end", "at the end", BLUE)]
    categories = Axis("", "categories", order=names)
    yield Picture(
        "learned_initialisation",
        "A learned start halves the steps; half of that is the mean of old solutions",
        "Starts",
        "Power allocation: mean over 200 new instances; bars from the lowest to the highest seed. "
        "The reference is the best of 20 random starts.",
        [
            [Panel("steps to 99 % of the reference", steps, Axis("steps"), categories)],
            [Panel("value over the reference", values, Axis(), categories, legend=True)],
        ],
    )


STUDY = Study(
    name="learned-initialisation",
    title="Starts of descent that are learned",
    paper="Ahuja, Dhurandhar and Varshney, Learning to Initialize Gradient Descent Using Gradient "
    "Descent, 2020, arXiv 2012.12141",
    reads="Starting where a ridge regression predicts the solution halves the steps to 99 % of the "
    "best known value. The mean of earlier solutions, which needs no learning, gives more than "
    "half of that gain. Val-Init gives nothing here, and shuffled labels give nothing.",
    parts=lambda seeds, full: dict.fromkeys((POWER, ADVERSARIAL), 2 * seeds if full else seeds),
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=3,
)
