"""A decoder learns the posterior mean of a mixture of linear regressions.

Pathak, Sen, Kong and Das 2024 (arXiv 2311.08362): y = ⟨w, x⟩ + N(0, σ²), w one of m fixed vectors a
prompt. The best prediction weighs every component by its likelihood so far; a decoder trained on
prompts comes nearest to it, and not to the likeliest component, ridge or least squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.special import softmax

from saturation.plots.colours import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.studies.base import Part, Results, Row, Study, claim, control

WIDTH, COMPONENTS, EXAMPLES = 3, 4, 10
NOISE = 0.5
STEPS, BATCH, JUDGED = 3000, 128, 8192
STRETCHES = (0.5, 1.0, 1.5, 2.0)  # of x at test time

Components = Float64[np.ndarray, "components width"]
Predictions = Float64[np.ndarray, "prompts examples"]


@dataclass(frozen=True)
class Training:
    """What w is drawn from in training: the mixture, or N(0, I)."""

    weights: Literal["mixture", "normal"] = "mixture"


class Prompts(NamedTuple):
    """Inputs and targets of prompts."""

    x: Float64[np.ndarray, "prompts examples width"]
    y: Predictions


def draw_components(generator: np.random.Generator) -> Components:
    """Return random directions of norm √d."""
    drawn = generator.standard_normal((COMPONENTS, WIDTH))
    return np.sqrt(WIDTH) * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def draw_prompts(
    components: Components | None, count: int, generator: np.random.Generator, stretch: float = 1.0
) -> Prompts:
    """Return prompts whose w is one of the components, or N(0, I) for None."""
    if components is None:
        w = generator.standard_normal((count, WIDTH))
    else:
        w = components[generator.integers(COMPONENTS, size=count)]
    x = stretch * generator.standard_normal((count, EXAMPLES, WIDTH))
    noise = NOISE * generator.standard_normal((count, EXAMPLES))
    return Prompts(x, np.einsum("pnd,pd->pn", x, w) + noise)


def as_tokens(prompts: Prompts) -> np.ndarray:
    """Return (x_i, x_{i−1}, y_{i−1}) of each example, float32: one token a pair."""
    before = np.concatenate([prompts.x, prompts.y[..., None]], axis=-1)[:, :-1]
    before = np.pad(before, [(0, 0), (1, 0), (0, 0)])
    return np.concatenate([prompts.x, before], axis=-1).astype(np.float32)


def bayes(prompts: Prompts, components: Components) -> tuple[Predictions, Predictions]:
    """Return the posterior mean Σ p_j ⟨w_j, x⟩, and what the likeliest component predicts."""
    each = np.einsum("pnd,jd->pnj", prompts.x, components)
    squares = np.cumsum((prompts.y[..., None] - each) ** 2, axis=1)
    seen = np.pad(squares, [(0, 0), (1, 0), (0, 0)])[:, :-1]
    posterior = softmax(-seen / (2 * NOISE**2), axis=-1)
    likeliest = np.take_along_axis(each, posterior.argmax(axis=-1)[..., None], axis=-1)
    return (posterior * each).sum(axis=-1), likeliest[..., 0]


def ridge(prompts: Prompts, penalty: float) -> Predictions:
    """Return ridge regression's prediction at each example from those before it."""
    squares = np.cumsum(np.einsum("pni,pnj->pnij", prompts.x, prompts.x), axis=1)
    right = np.cumsum(prompts.y[..., None] * prompts.x, axis=1)
    seen = [np.pad(a, [(0, 0), (1, 0)] + [(0, 0)] * (a.ndim - 2))[:, :-1] for a in (squares, right)]
    weights = np.linalg.solve(seen[0] + penalty * np.eye(WIDTH), seen[1][..., None])[..., 0]
    return (weights * prompts.x).sum(axis=-1)


def simulate(setting: Training, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield the errors of a trained decoder and its distances to other predictors, by example."""
    import jax
    import optax

    from saturation.studies.decoder import Decoder, train

    model = Decoder(outputs=1)
    predict = jax.jit(model.apply)
    schedule = optax.warmup_cosine_decay_schedule(0, 5e-3, 100, STEPS)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def loss(outputs: Any, _: Any, targets: Any) -> Any:
        return ((outputs[..., 0] - targets) ** 2).mean()

    for seed in seeds:
        generator = np.random.default_rng(seed)
        components = draw_components(generator)
        trained_on = components if setting.weights == "mixture" else None

        def batches(chance: np.random.Generator, of: Components | None) -> Iterator[Any]:
            while True:
                prompts = draw_prompts(of, BATCH, chance)
                yield as_tokens(prompts), prompts.y.astype(np.float32)

        drawn = batches(generator, trained_on)
        untrained = train(model, loss, drawn, 1, optimizer, seed)
        params = train(model, loss, drawn, STEPS, optimizer, seed)
        found: dict[str, Any] = {}
        for stretch in STRETCHES:
            prompts = draw_prompts(components, JUDGED, generator, stretch)
            by_model = np.asarray(predict(params, as_tokens(prompts)), np.float64)[..., 0]
            best = bayes(prompts, components)[0]
            error = lambda predicted: ((predicted - prompts.y) ** 2).mean()  # noqa: B023
            found[f"ratio_{stretch:g}"] = error(by_model) / error(best)
            if stretch == 1:
                at_start = np.asarray(predict(untrained, as_tokens(prompts)), np.float64)[..., 0]
                found |= _compare(prompts, components, by_model, at_start)
        yield found


def _compare(
    prompts: Prompts, components: Components, by_model: Predictions, at_start: Predictions
) -> dict[str, Any]:
    best, likeliest = bayes(prompts, components)
    predictors = {
        "bayes": best,
        "argmax": likeliest,
        "ridge": ridge(prompts, NOISE**2),
        "ols": ridge(prompts, 1e-9),
        "model": by_model,
        "untrained": at_start,
    }
    found = {}
    for name, predicted in predictors.items():
        # Least squares has an answer from d examples on.
        taken = slice(WIDTH + 1, None) if name == "ols" else slice(None)
        found[f"error_{name}"] = ((predicted - prompts.y) ** 2).mean(axis=0)
        found[f"distance_{name}"] = ((by_model - predicted)[:, taken] ** 2).mean()
    return found


# --- the study ----------------------------------------------------------------------------------

MIXTURE, NORMAL = Training(), Training("normal")
NAMES = {
    "argmax": "the likeliest component",
    "ridge": "ridge regression",
    "ols": "least squares, from the fifth example on",
}
TIMES_FURTHER = {"argmax": 3.0, "ridge": 5.0, "ols": 5.0}


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows: errors, distances, shift of x, and the decoder of no mixture."""
    part, normal = results[MIXTURE], results[NORMAL]
    of = lambda name: part[f"error_{name}"].mean(axis=1) / part["error_bayes"].mean(axis=1)
    what = "mean squared error over the posterior mean's"
    yield claim(what, "decoder", of("model"), (0.95, 1.2), "1")
    for name, says in (("ridge", NAMES["ridge"]), ("untrained", "after one step of training")):
        yield control(what, says, of(name), (0.95, 1.2), "1")
    what = "mean squared distance of the decoder's predictions"
    yield claim(what, "to the posterior mean", part["distance_bayes"], (0, 0.12), "0")
    what = "distance to the other over that to the posterior mean"
    for name, times in TIMES_FURTHER.items():
        further = part[f"distance_{name}"] / part["distance_bayes"]
        yield claim(what, f"the other: {NAMES[name]}", further, (times, np.inf))
    other = normal["distance_ridge"] / normal["distance_bayes"]
    where = f"the other: {NAMES['ridge']}; decoder trained on w ~ N(0, I)"
    yield control(what, where, other, (TIMES_FURTHER["ridge"], np.inf))
    what = "mean squared distance of the decoder's predictions"
    where = "to the posterior mean; decoder trained on w ~ N(0, I)"
    yield control(what, where, normal["distance_bayes"], (0, 0.12), "0")
    what = "mean squared error over the posterior mean's"
    for stretch in (0.5, 1.5):
        claimed = "yes" if stretch == 0.5 else "conditional"
        where = f"decoder, x times {stretch:g} at test time"
        yield claim(what, where, part[f"ratio_{stretch:g}"], (0.95, 1.2), "1", claimed)
    yield claim(what, "decoder, x times 2 at test time", part["ratio_2"], (1.3, np.inf))


def pictures(results: Results) -> Iterator[Picture]:
    """Yield the errors by example, and the loss of accuracy with the inputs' size."""
    part = results[MIXTURE]
    examples = np.arange(1.0, EXAMPLES + 1)
    lines = [
        Line(examples, part[f"error_{name}"].mean(axis=0), text, colour, symbol="circle")
        for name, text, colour in (
            ("model", "decoder", BLUE),
            ("bayes", "posterior mean", VERMILION),
            ("argmax", "likeliest component", PURPLE),
            ("ridge", "ridge regression", GREEN),
        )
    ]
    ratios = np.array([part[f"ratio_{stretch:g}"] for stretch in STRETCHES])
    shift = Line(
        np.array(STRETCHES), ratios.mean(axis=1), "decoder", ORANGE, symbol="circle",
        low=ratios.min(axis=1), high=ratios.max(axis=1), bars=True,
    )  # fmt: skip
    yield Picture(
        "regression_mixtures",
        "A decoder predicts nearly as the posterior mean of the mixture does",
        "Errors",
        "Left: mean squared error at each example, which holds σ² = 0.25. Right: error over the "
        "posterior mean's where x is larger or smaller than in training; bars over the seeds.",
        [
            [
                Panel(
                    "error by example", lines, Axis("squared error"), Axis("example"), legend=True
                ),
                Panel("x of another size", [shift], Axis("over the best"), Axis("x times")),
            ]
        ],
    )


STUDY = Study(
    name="regression-mixtures",
    title="A decoder learns a mixture's posterior mean",
    paper="Pathak, Sen, Kong and Das, Transformers Can Optimally Learn Regression Mixture Models, "
    "ICLR 2024, arXiv 2311.08362",
    reads="A decoder is trained on prompts of a mixture of four linear regressions. Its error is "
    "near that of the posterior mean, 3 to 13 % above it after 3,000 steps, and its predictions "
    "are nearer to it than to any other predictor. A decoder trained on w ~ N(0, I) is nearest to "
    "ridge regression: what is learned is the distribution. Larger inputs than in training spoil "
    "it.",
    parts=lambda seeds, full: {MIXTURE: 2 * seeds if full else seeds, NORMAL: -(-seeds // 3)},
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=3,
)
