"""What one layer learns is of low rank, and few of its neurons carry it.

Li, Wang, Zhang, Liu and Chen 2024 (arXiv 2406.17167): a layer of attention and ReLU neurons learns
which of two patterns most of a sample's relevant tokens carry. The changes of its matrices have the
rank of what tells the labels apart, and neurons that stayed small can be pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float64, Int

from saturation.plots.colours import BLUE, GREEN, VERMILION
from saturation.plots.panels import Axis, Histogram, Line, Panel, Picture
from saturation.studies.base import Part, Results, Row, Study, claim, control

WIDTH, PATTERNS, TOKENS, NEURONS = 24, 12, 20, 60
RELEVANT, CONFUSING = 6, 2  # of the tokens: the sample's own pattern, the other label's
NOISE = 0.05
STEPS, BATCH = 300, 64
RATE, OUTPUT_RATE = 0.1, 1.0
TESTED = 1000
PRUNED = (0.1, 0.25, 0.5, 0.6, 0.8)  # shares of the neurons
KINDS = ("smallest", "random", "largest")
MATRICES = ("query", "key", "value", "output")
SHARE = 0.95  # of ‖ΔW‖² that a rank must hold

Matrix = Float64[np.ndarray, "rows columns"]


class Weights(NamedTuple):
    """F(X) = 1/L Σ_l aᵀ ReLU(W_O W_V X softmax(Xᵀ W_Kᵀ W_Q x_l)), a fixed at ±1/√m."""

    query: Float[Array | np.ndarray, "width width"]
    key: Float[Array | np.ndarray, "width width"]
    value: Float[Array | np.ndarray, "width width"]
    output: Float[Array | np.ndarray, "neurons width"]


@dataclass(frozen=True)
class Setting:
    """One kind of training.

    Attributes:
      start: of W_Q, W_K and W_V: the identity; "sharp" has 2·I for queries and keys, so that tokens
        of one pattern attend to each other from the start; "random" is N(0, 1/d).
      relevant: patterns that decide labels, half of them for each.
      labels: by the patterns, or drawn apart from them.
    """

    start: Literal["identity", "random", "sharp"] = "identity"
    relevant: int = 2
    labels: Literal["pattern", "random"] = "pattern"


class Samples(NamedTuple):
    """Tokens and labels ±1."""

    tokens: Float[Array | np.ndarray, "samples tokens width"]
    labels: Float[Array | np.ndarray, " samples"]


def signs() -> Float64[np.ndarray, " neurons"]:
    """Return a: half of the neurons vote for each label."""
    return np.where(np.arange(NEURONS) % 2, -1.0, 1.0) / np.sqrt(NEURONS)


def draw_samples(
    setting: Setting,
    patterns: Float64[np.ndarray, "patterns width"],
    count: int,
    generator: np.random.Generator,
) -> Samples:
    """Return samples whose tokens are patterns with noise; their order plays no part.

    30 % of the tokens carry a pattern of the label, 10 % one of the other label, 60 % others.
    """
    labels = np.where(generator.random(count) < 0.5, -1.0, 1.0)
    of_label = (labels < 0).astype(int)
    half = setting.relevant // 2
    own, other = 2 * generator.integers(half, size=(2, count))
    chosen = np.concatenate(
        [
            np.repeat((own + of_label)[:, None], RELEVANT, axis=1),
            np.repeat((other + 1 - of_label)[:, None], CONFUSING, axis=1),
            generator.integers(
                setting.relevant, PATTERNS, size=(count, TOKENS - RELEVANT - CONFUSING)
            ),
        ],
        axis=1,
    )
    tokens = patterns[chosen] + NOISE * generator.standard_normal((count, TOKENS, WIDTH))
    if setting.labels == "random":
        labels = generator.permutation(labels)
    return Samples(tokens, labels)


def draw_weights(setting: Setting, generator: np.random.Generator) -> Weights:
    """Return the weights at the start."""
    output = 0.1 / np.sqrt(WIDTH) * generator.standard_normal((NEURONS, WIDTH))
    identity = np.eye(WIDTH)
    match setting.start:
        case "identity":
            return Weights(identity, identity, identity, output)
        case "sharp":
            return Weights(2 * identity, 2 * identity, identity, output)
        case "random":
            query, key, value = generator.standard_normal((3, WIDTH, WIDTH)) / np.sqrt(WIDTH)
            return Weights(query, key, value, output)


def outputs(
    weights: Weights, tokens: Float[Array | np.ndarray, "samples tokens width"]
) -> Float[Array, " samples"]:
    """Return F of each sample."""
    import jax
    import jax.numpy as jnp

    queries, keys = tokens @ weights.query.T, tokens @ weights.key.T
    attention = jax.nn.softmax(queries @ jnp.swapaxes(keys, -1, -2), axis=-1)
    hidden = jax.nn.relu(attention @ tokens @ (weights.output @ weights.value).T)
    return (hidden @ jnp.asarray(signs(), hidden.dtype)).mean(axis=-1)


def hinge(weights: Weights, samples: Samples) -> Float[Array, ""]:
    """Return the mean of max(0, 1 − y F)."""
    import jax
    import jax.numpy as jnp

    margins = 1 - jnp.asarray(samples.labels) * outputs(weights, jnp.asarray(samples.tokens))
    return jax.nn.relu(margins).mean()


def simulate(setting: Setting, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield what of each seed's training is judged: ranks, spans, norms and pruned losses."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def step(weights: Weights, samples: Samples) -> Weights:
        slope = jax.grad(hinge)(weights, samples)
        moved = jax.tree.map(lambda w, g: w - RATE * g, weights, slope)
        return moved._replace(output=weights.output - OUTPUT_RATE * slope.output)

    loss = jax.jit(hinge)
    for seed in seeds:
        generator = np.random.default_rng(seed)
        patterns = np.linalg.qr(generator.standard_normal((WIDTH, WIDTH)))[0][:PATTERNS]
        first = draw_weights(setting, generator)
        weights = jax.tree.map(lambda each: jnp.asarray(each, jnp.float32), first)
        for _ in range(STEPS):
            drawn = draw_samples(setting, patterns, BATCH, generator)
            weights = step(weights, Samples(*(each.astype(np.float32) for each in drawn)))
        last = Weights(*(np.asarray(each, np.float64) for each in weights))
        tested = draw_samples(setting, patterns, TESTED, generator)
        yield {
            **_changes(first, last, patterns[: setting.relevant]),
            **_neurons(last, patterns[: setting.relevant]),
            **_pruned(loss, last, tested, generator),
            "accuracy": float((np.asarray(outputs(last, tested[0])) * tested[1] > 0).mean()),
        }


def _changes(first: Weights, last: Weights, relevant: Matrix) -> dict[str, float]:
    found = {}
    for name in MATRICES:
        change = getattr(last, name) - getattr(first, name)
        found[f"{name}_rank"] = rank_of(change)
        found[f"{name}_span"] = float(np.sum((change @ relevant.T) ** 2) / np.sum(change**2))
    return found


def rank_of(change: Matrix) -> int:
    """Return the least number of singular values that hold 95 % of ‖ΔW‖².

    >>> rank_of(np.diag([3.0, 2.0, 0.1]))
    2
    """
    energy = np.cumsum(np.linalg.svd(change, compute_uv=False) ** 2)
    return int(np.searchsorted(energy, SHARE * energy[-1])) + 1


def _neurons(last: Weights, relevant: Matrix) -> dict[str, Any]:
    """Return the norms of W_O's rows, and how those above half the largest point to their label."""
    norms = np.linalg.norm(last.output, axis=1)
    rows = last.output @ last.value
    toward = rows @ np.array([relevant[::2].mean(axis=0), relevant[1::2].mean(axis=0)]).T
    toward /= np.linalg.norm(rows, axis=1)[:, None] / np.sqrt(len(relevant) / 2)
    own = np.where(signs() > 0, toward[:, 0], toward[:, 1])
    large = norms >= norms.max() / 2
    return {
        "norms": norms,
        "aligned_large": own[large].mean(),
        "aligned_small": own[~large].mean() if not large.all() else np.nan,
    }


def _pruned(
    loss: Any, last: Weights, tested: Samples, generator: np.random.Generator
) -> dict[str, float]:
    """Return the hinge loss after each way of pruning rows of W_O."""
    norms = np.linalg.norm(last.output, axis=1)
    order = np.argsort(norms)
    small = int((norms < norms.max() / 2).sum())
    counts = {"gap": small, **{f"{share:g}": round(share * NEURONS) for share in PRUNED}}
    found = {"hinge": float(loss(last, tested)), "small_neurons": float(small)}
    for name, count in counts.items():
        chosen = (order[:count], generator.permutation(order)[:count], order[NEURONS - count :])
        for kind, rows in zip(KINDS, chosen, strict=True):
            found[f"{kind}_{name}"] = float(loss(_without(last, rows), tested))
    return found


def _without(weights: Weights, rows: Int[np.ndarray, " rows"]) -> Weights:
    output = weights.output.copy()
    output[rows] = 0
    return weights._replace(output=output)


# --- the study ----------------------------------------------------------------------------------

PLAIN = Setting()
STARTS = (PLAIN, Setting("random"))
SHARP = Setting("sharp")
MORE = tuple(replace(one, relevant=count) for one in STARTS for count in (4, 6))
RANDOM = Setting(labels="random")
SHARP_RANDOM = replace(SHARP, labels="random")
NAMES = {"query": "W_Q", "key": "W_K", "value": "W_V", "output": "W_O"}
SPANS = {"value": 0.9, "query": 0.6, "key": 0.75}


def _where(setting: Setting) -> str:
    labels = "" if setting.labels == "pattern" else ", labels apart from the patterns"
    return f"{setting.relevant} relevant patterns, {setting.start} start{labels}"


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows: ranks, spans, neurons, pruning, and what must not pass."""
    for setting in (*STARTS, SHARP):
        part, where = results[setting], _where(setting)
        yield claim("accuracy on new samples", where, part["accuracy"], (0.99, 1), "1")
        firm = MATRICES if setting is not SHARP else ("value", "output")
        for name in MATRICES:
            claimed = "yes" if name in firm else "conditional"
            what = f"rank of Δ{NAMES[name]}, 95 % of its square"
            yield claim(what, where, part[f"{name}_rank"], (2, 2), "2", claimed)
        for name, least in SPANS.items():
            claimed = "yes" if name in firm else "conditional"
            what = f"share of Δ{NAMES[name]} in the relevant patterns' span"
            yield claim(what, where, part[f"{name}_span"], (least, 1), claimed=claimed)
    yield from _judge_more(results)
    yield from _judge_neurons(results[PLAIN])
    yield from _judge_pruning(results[PLAIN])
    yield from _judge_random(results)


def _judge_more(results: Results) -> Iterator[Row]:
    """Yield the rows of more than two patterns: rank counts labels' directions, not patterns."""
    for setting in MORE:
        count = setting.relevant
        for name in ("value", "output"):
            measured, what = results[setting][f"{name}_rank"], f"rank of Δ{NAMES[name]}"
            where = _where(setting)
            yield claim(f"{what}: of patterns", where, measured, (count, count), f"{count}", "no")
            yield claim(f"{what}: of label directions", where, measured, (2, 2), "2", "no")


def _judge_neurons(part: Mapping[str, Any]) -> Iterator[Row]:
    where = _where(PLAIN)
    what = "cosine of neurons with their label's pattern"
    yield claim(what, f"{where}: large neurons", part["aligned_large"], (0.8, 1))
    yield control(what, f"{where}: small neurons", part["aligned_small"], (0.8, 1))
    largest = part["norms"].max(axis=1)
    yield claim("largest norm of a neuron", where, largest, (0.5, np.inf))
    share = np.quantile(part["norms"], 0.1, axis=1) / largest
    yield claim("norm of the 10 % smallest over the largest", where, share, (0, 0.5))


def _judge_pruning(part: Mapping[str, Any]) -> Iterator[Row]:
    where = _where(PLAIN)
    yield claim("hinge loss on new samples", where, part["hinge"], (0, 0.001))
    small = f"{where}: as many as have less than half the largest norm"
    what = "hinge loss, {} neurons pruned"
    yield claim(what.format("smallest"), small, part["smallest_gap"], (0, 0.005))
    yield claim(what.format("largest"), small, part["largest_gap"], (0.1, np.inf))
    for kind in ("random", "largest"):
        yield control(what.format(kind), small, part[f"{kind}_gap"], (0, 0.005))
    quarter = f"{where}: 25 %"
    yield claim(what.format("smallest"), quarter, part["smallest_0.25"], (0, 0.05))
    for kind in ("random", "largest"):
        yield control(what.format(kind), quarter, part[f"{kind}_0.25"], (0, 0.05))
    half = f"{where}: 50 %"
    yield claim(what.format("smallest"), half, part["smallest_0.5"], (0, 0.05), claimed="no")
    rises = np.array([part[f"largest_{share:g}"] for share in PRUNED])
    least = np.diff(rises, axis=0).min(axis=0)
    shares = ", ".join(f"{share:.0%}" for share in PRUNED)
    what = "least rise of the hinge loss with the share of largest neurons pruned"
    yield claim(what, f"{where}: {shares}", least, (0, np.inf))


def _judge_random(results: Results) -> Iterator[Row]:
    """Yield the controls: labels that no pattern explains.

    With the identity start every neuron's noise points the same way, so that the rank stays at two
    or three though nothing is learned: the rank is compared from the sharp start.
    """
    part, where = results[SHARP_RANDOM], _where(SHARP_RANDOM)
    for name in ("value", "output"):
        what = f"rank of Δ{NAMES[name]}, 95 % of its square"
        yield control(what, where, part[f"{name}_rank"], (2, 2), "2")
    part, where = results[RANDOM], _where(RANDOM)
    what = "share of ΔW_V in the relevant patterns' span"
    yield control(what, where, part["value_span"], (SPANS["value"], 1))
    largest = part["norms"].max(axis=1)
    yield control("largest norm of a neuron", where, largest, (0.5, np.inf))
    yield control("accuracy on new samples", where, part["accuracy"], (0.99, 1), "1")


def pictures(results: Results) -> Iterator[Picture]:
    """Yield the neurons' norms, and what pruning costs."""
    plain, random = results[PLAIN]["norms"][0], results[RANDOM]["norms"][0]
    edges = np.linspace(0, 1.05 * max(plain.max(), random.max()), 25)
    norms = [
        Histogram(plain, edges, "labels by the patterns", BLUE),
        Histogram(random, edges, "labels apart from them", VERMILION, filled=False),
    ]
    shares = np.array([0, *PRUNED])
    costs = []
    for kind, colour in zip(KINDS, (BLUE, GREEN, VERMILION), strict=True):
        names = ["hinge", *(f"{kind}_{share:g}" for share in PRUNED)]
        each = np.array([results[PLAIN][name] for name in names])
        low, high = each.min(axis=1), each.max(axis=1)
        mean = each.mean(axis=1)
        costs.append(
            Line(100 * shares, mean, kind, colour, symbol="circle", low=low, high=high, bars=True)
        )
    yield Picture(
        "low_rank_sparse",
        "Few neurons carry what was learned: small ones can go",
        "Neurons and pruning",
        "Left: norms of the rows of W_O after training, of the first seed. Right: hinge loss on "
        "new samples after rows of W_O are set to 0; bars from the lowest to the highest seed.",
        [
            [
                Panel("norms of neurons", norms, Axis("neurons"), Axis("norm"), legend=True),
                Panel(
                    "pruning", costs, Axis("hinge loss"), Axis("neurons pruned (%)"), legend=True
                ),
            ]
        ],
    )


STUDY = Study(
    name="low-rank-sparse",
    title="What is learned has low rank, and few neurons carry it",
    paper="Li, Wang, Zhang, Liu and Chen, Learning on Transformers is Provable Low-Rank and "
    "Sparse: A One-layer Analysis, 2024, arXiv 2406.17167",
    reads="A layer of attention and 60 neurons learns to tell two patterns apart. The changes of "
    "its matrices have rank two, and neurons below half the largest norm can be pruned. The rank "
    "is the number of label directions, not of patterns: four or six patterns leave it at two. "
    "With sharp attention at the start the changes of queries and keys are of higher rank.",
    parts=lambda seeds, full: dict.fromkeys(
        (*STARTS, SHARP, *MORE, RANDOM, SHARP_RANDOM), 2 * seeds if full else seeds
    ),
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=4,
)
