"""Attention and feed-forward layers as steps that lower an energy.

Yang, Huang and Wipf 2022 (arXiv 2205.13891). E_attn(Y) = −Σ exp(−|Aᵀ(y_i − y_j)|²/2) over all
pairs. With γ_ij that exponential and D its row sums, softmax(YWYᵀ − ½|Aᵀy_j|²) Y, W = AAᵀ, is
exactly Y − D⁻¹(D − Γ)Y: a gradient step preconditioned by Jacobi. Γ is positive semidefinite, so
that Y + a (softmax·Y − Y) lowers the energy for every 0 < a < 2 (our derivation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize
from scipy.special import softmax

from saturation.plots.colours import BLUE, GREEN, ORANGE, VERMILION
from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.studies.base import Part, Results, Row, Stacked, Study, claim, control

TOKENS, WIDTH, LAYERS = 24, 8, 12
SCALES = (0.5, 1.0, 1.5)  # of tokens; their norms differ by factors of 0.5 to 2 besides
DRAWS = 20  # networks a seed and scale
RESIDUALS = (0.1, 0.5, 1.0, 1.5, 1.9, 1.99)
ROUNDING = 1e-9  # relative rise that counts as none

State = Float64[np.ndarray, "tokens width"]
Matrix = Float64[np.ndarray, "width width"]
Energy = Callable[[State], float]


@dataclass(frozen=True)
class Setting:
    """Which layers are tried."""

    layers: Literal["attention", "feed-forward", "both"]


def kernel(state: State, root: Matrix) -> Float64[np.ndarray, "tokens tokens"]:
    """Return Γ, γ_ij = exp(−|Aᵀ(y_i − y_j)|²/2)."""
    seen = state @ root
    squares = (seen**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * seen @ seen.T
    return np.exp(-np.maximum(distances, 0) / 2)


def attention_energy(state: State, root: Matrix) -> float:
    """Return E_attn = −Σ γ_ij, from −n² of equal tokens to −n of tokens far apart."""
    return float(-kernel(state, root).sum())


def attend(state: State, root: Matrix) -> State:
    """Return softmax(YWYᵀ − ½|Aᵀy_j|²) Y."""
    seen = state @ root
    return softmax(seen @ seen.T - (seen**2).sum(axis=1) / 2, axis=-1) @ state


def attend_plainly(state: State, root: Matrix) -> State:
    """Return softmax(YWYᵀ) Y, the step for tokens of equal norms alone."""
    seen = state @ root
    return softmax(seen @ seen.T, axis=-1) @ state


def draw_tokens(scale: float, generator: np.random.Generator) -> State:
    """Return normal tokens, whose norms differ on purpose."""
    factor = generator.uniform(0.5, 2, size=(TOKENS, 1))
    return scale * factor * generator.standard_normal((TOKENS, WIDTH))


def falls(energy: Energy, before: State, after: State) -> bool:
    """Say whether an energy does not rise."""
    first = energy(before)
    return bool(energy(after) <= first + ROUNDING * abs(first))


def share_falling(energy: Energy, step: Callable[[State], State], state: State) -> float:
    """Return the share of `LAYERS` tied layers after which the energy is no higher than before."""
    found = []
    for _ in range(LAYERS):
        after = step(state)
        found.append(falls(energy, state, after))
        state = after
    return float(np.mean(found))


def try_attention(scale: float, generator: np.random.Generator) -> dict[str, float]:
    """Return the shares of falling layers of one network, of its own steps and of wrong ones."""
    root, other, values = generator.standard_normal((3, WIDTH, WIDTH)) / np.sqrt(WIDTH)
    start = draw_tokens(scale, generator)
    energy = lambda state: attention_energy(state, root)
    held = lambda state: energy(state) + (state**2).sum() / 2
    found: dict[str, float] = {}
    for residual in RESIDUALS:
        step = lambda state, a=residual: state + a * (attend(state, root) - state)
        found[f"step_{residual:g}"] = share_falling(energy, step, start)
    found["held"] = share_falling(held, lambda state: attend(state, root), start)
    found["plain"] = share_falling(energy, lambda state: attend_plainly(state, root), start)
    skewed = lambda state: softmax(state @ root @ other.T @ state.T, axis=-1) @ state
    found["asymmetric"] = share_falling(energy, skewed, start)
    found |= _compare_steps(start, root, values, generator)
    return found


def _compare_steps(
    state: State, root: Matrix, values: Matrix, generator: np.random.Generator
) -> dict[str, float]:
    """Return how steps other than the energy's do from the states that it passes through."""
    energy = lambda one: attention_energy(one, root)
    shares: dict[str, list[float]] = {}
    identity = []
    for _ in range(LAYERS):
        after, plain = attend(state, root), attend_plainly(state, root)
        step = after - state
        of_kernel = kernel(state, root)
        jacobi = state - (state - of_kernel @ state / of_kernel.sum(axis=1, keepdims=True))
        identity.append(np.abs(jacobi - after).max() / np.abs(after).max())
        random = generator.standard_normal(step.shape)
        steps = {
            "own": step,
            "minus": -step,
            "permuted": generator.permutation(step),
            "random": random * np.linalg.norm(step) / np.linalg.norm(random),
            "residual": after,
            "residual_random": after @ values,
            "plain_step": plain - state,
        }
        down = of_kernel @ state - of_kernel.sum(axis=1, keepdims=True) * state
        down = down @ root @ root.T  # −∇E/2
        for name, each in steps.items():
            size = np.linalg.norm(each) * np.linalg.norm(down)
            cosine = float((each * down).sum() / size) if size > 0 else np.nan
            shares.setdefault(f"cosine_{name}", []).append(cosine)
            shares.setdefault(f"falls_{name}", []).append(falls(energy, state, state + each))
        shares.setdefault("deviation_plain", []).append(
            float(np.abs(plain - after).max() / np.abs(after).max())
        )
        state = after
    return {name: float(np.nanmean(each)) for name, each in shares.items()} | {
        "deviation": max(identity)
    }


def draw_symmetric(generator: np.random.Generator) -> Matrix:
    """Return S = QQᵀ with a largest eigenvalue of 0.95."""
    drawn = generator.standard_normal((WIDTH, WIDTH))
    product = drawn @ drawn.T
    return 0.95 * product / np.linalg.eigvalsh(product)[-1]


def feed_energy(state: State, matrix: Matrix, bias: Any) -> float:
    """Return E_ffn = tr(YSYᵀ)/2 + |Y − B|²/2, of Y ≥ 0."""
    return float((state @ matrix * state).sum() / 2 + ((state - bias) ** 2).sum() / 2)


def try_feed_forward(scale: float, generator: np.random.Generator) -> dict[str, float]:
    """Return the shares of layers Y ← ReLU(Y − a(YS + Y − B)) after which E_ffn is no higher."""
    matrix, bias = draw_symmetric(generator), generator.standard_normal(WIDTH)
    start = np.maximum(draw_tokens(scale, generator), 0)
    energy = lambda state: feed_energy(state, matrix, bias)
    slope = lambda state: state @ matrix + state - bias
    found = {}
    for name, rate in (("one", 1.0), ("half", 0.5), ("minus", -1.0)):
        step = lambda state, a=rate: np.maximum(state - a * slope(state), 0)
        found[f"feed_{name}"] = share_falling(energy, step, start)
    return found


def try_both(scale: float, generator: np.random.Generator) -> dict[str, Any]:
    """Return how attention and feed-forward in turn lower E_attn + E_ffn, with two kinds of B."""
    root = generator.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
    matrix = draw_symmetric(generator)
    start = draw_tokens(scale, generator)
    biases = {"constant": generator.standard_normal(WIDTH), "token": start}
    found: dict[str, Any] = {}
    for name, bias in biases.items():
        energy = lambda state, b=bias: attention_energy(state, root) + feed_energy(state, matrix, b)
        state, energies = np.maximum(start, 0), []
        energies.append(energy(state))
        for _ in range(LAYERS):
            state = np.maximum(bias - attend(state, root) @ matrix, 0)
            energies.append(energy(state))
        fell = np.diff(energies) <= ROUNDING * np.abs(energies[:-1])
        least = minimize(
            lambda packed, e=energy: e(packed.reshape(start.shape)),
            state.ravel(),
            jac=lambda packed, b=bias: _slope(packed.reshape(start.shape), root, matrix, b),
            method="L-BFGS-B",
            bounds=[(0, None)] * start.size,
        )
        found[f"{name}_first"] = float(fell[0])
        found[f"{name}_falls"] = fell.mean()
        found[f"{name}_excess"] = (energies[-1] - least.fun) / (energies[0] - least.fun)
        found[f"{name}_energies"] = (np.array(energies) - least.fun) / (energies[0] - least.fun)
    return found


def _slope(state: State, root: Matrix, matrix: Matrix, bias: Any) -> np.ndarray:
    of_kernel = kernel(state, root)
    up = of_kernel.sum(axis=1, keepdims=True) * state - of_kernel @ state
    return (2 * up @ root @ root.T + state @ matrix + state - bias).ravel()


_TRY = {"attention": try_attention, "feed-forward": try_feed_forward, "both": try_both}


def simulate(setting: Setting, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield the mean over `DRAWS` networks of each scale, {quantity: (scales, …)}."""
    for seed in seeds:
        generator = np.random.default_rng(seed)
        by_scale = []
        for scale in SCALES:
            draws = [_TRY[setting.layers](scale, generator) for _ in range(DRAWS)]
            by_scale.append({name: np.mean([d[name] for d in draws], axis=0) for name in draws[0]})
        yield {name: np.stack([one[name] for one in by_scale]) for name in by_scale[0]}


# --- the study ----------------------------------------------------------------------------------

ATTENTION, FEED_FORWARD, BOTH = (Setting(name) for name in ("attention", "feed-forward", "both"))
ALL = (1 - 1e-12, 1.0)
WRONG = {
    "minus": ("the step backwards", 0.3),
    "permuted": ("the step's rows permuted", 0.4),
    "random": ("a random step of the same norm", 0.4),
    "residual": ("Y + attention, V = I: the standard residual", 0.3),
    "residual_random": ("Y + attention, V random", 0.7),
}


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows: the identity, falling energies, wrong steps, and both layers in turn."""
    yield from _judge_attention(results[ATTENTION])
    feed, says = results[FEED_FORWARD], "share of layers after which E_ffn is no higher"
    for name, where in (("one", "step 1"), ("half", "step ½")):
        yield claim(says, f"ReLU(B − YS), {where}", _mean(feed, f"feed_{name}"), ALL, "1")
    yield control(says, "the step backwards", _mean(feed, "feed_minus"), ALL, "1")
    yield from _judge_both(results[BOTH])


def _mean(part: Stacked, name: str) -> np.ndarray:
    """Return the mean over scales, of each seed."""
    return part[name].reshape(len(part[name]), -1).mean(axis=1)


def _judge_attention(part: Stacked) -> Iterator[Row]:
    what = "largest relative deviation from Y − D⁻¹(D − Γ)Y"
    yield claim(what, "softmax with −½|Aᵀy_j|²", part["deviation"].max(axis=1), (0, 1e-12), "0")
    plain = _mean(part, "deviation_plain")
    yield control("relative deviation from Y − D⁻¹(D − Γ)Y", "plain softmax", plain, (0, 1e-12))
    says = "share of layers after which E_attn is no higher"
    for residual in RESIDUALS:
        where = f"Y + {residual:g} (softmax·Y − Y)"
        yield claim(says, where, _mean(part, f"step_{residual:g}"), ALL, "1")
    yield claim(f"{says}, + ½|Y|²", "softmax·Y", _mean(part, "held"), ALL, "1")
    where = "plain softmax, unequal norms"
    yield claim(says, where, _mean(part, "plain"), ALL, "1", "conditional")
    where = "W_Q W_Kᵀ not symmetric"
    yield claim(says, where, _mean(part, "asymmetric"), ALL, "1", "no")
    says = "share of steps from the same states that do not raise E_attn"
    for name, (where, most) in WRONG.items():
        measured = _mean(part, f"falls_{name}")
        yield control(says, where, measured, ALL, "1")
        yield claim(f"{says}: few", where, measured, (0, most))
    what = "cosine of the step with −∇E"
    yield claim(what, "softmax with −½|Aᵀy_j|²", _mean(part, "cosine_own"), (0.4, 1))
    for name in ("permuted", "random", "residual_random"):
        yield control(what, WRONG[name][0], _mean(part, f"cosine_{name}"), (0.4, 1))
    yield claim(what, "plain softmax", _mean(part, "cosine_plain_step"), (0.4, 1), claimed="no")


def _judge_both(part: Stacked) -> Iterator[Row]:
    says, where = "share of layers after which E_attn + E_ffn is no higher", "B the same for all"
    yield claim(says, f"{where} tokens", _mean(part, "constant_falls"), ALL, "1")
    where = "B of each token"
    yield claim(says, where, _mean(part, "token_falls"), ALL, "1", "conditional")
    yield claim(f"{says}: first layer", where, _mean(part, "token_first"), ALL, "1")
    yield claim(f"{says}: not all", where, _mean(part, "token_falls"), (0, 0.8), claimed="no")
    what = "excess over the minimum after the last layer, over that before the first"
    yield claim(what, where, _mean(part, "token_excess"), (0.05, np.inf), claimed="no")
    yield control(f"{what}: reached", where, _mean(part, "token_excess"), (0, 0.01), "0")


def pictures(results: Results) -> Iterator[Picture]:
    """Yield the shares of steps that fall, and the energies of both layers in turn."""
    part = results[ATTENTION]
    names = {"own": "the energy's own step"} | {name: text for name, (text, _) in WRONG.items()}
    shares = np.array([_mean(part, f"falls_{name}").mean() for name in names])
    cosines = np.array([_mean(part, f"cosine_{name}").mean() for name in names])
    texts = [text.split(":")[0].removeprefix("the ") for text in names.values()]
    marks = [
        Line(texts, shares, "share that does not rise", BLUE, "none", symbol="circle", size=7),
        Line(texts, cosines, "cosine with −∇E", ORANGE, "none", symbol="diamond", size=7),
    ]
    layers = np.arange(LAYERS + 1.0)
    energies = [
        Line(layers, results[BOTH][f"{name}_energies"].mean(axis=(0, 1)), text, colour)
        for name, text, colour in (
            ("constant", "B the same for all tokens", GREEN),
            ("token", "B of each token", VERMILION),
        )
    ]
    yield Picture(
        "energy_view",
        "Attention descends its energy exactly; in turn with feed-forward layers it need not",
        "Energies",
        "Left: steps from the same states. Right: excess of E_attn + E_ffn over its minimum, over "
        "that at the start.",
        [
            [
                Panel(
                    "which steps lower E",
                    marks,
                    Axis(),
                    Axis("", "categories", order=texts),
                    legend=True,
                ),
                Panel("both in turn", energies, Axis("excess"), Axis("layer"), legend=True),
            ]
        ],
    )


STUDY = Study(
    name="energy-view",
    title="Layers as steps that lower an energy",
    paper="Yang, Huang and Wipf, Transformers from an Optimization Perspective, NeurIPS 2022, "
    "arXiv 2205.13891",
    reads="Softmax attention with W = AAᵀ and a term for the keys' norms is a preconditioned "
    "gradient step of an energy, which it lowers exactly; feed-forward layers lower another. In "
    "turn they lower the sum where the feed-forward's B is the same for all tokens, not where it "
    "is each token's own. The standard residual Y + attention raises the energy.",
    parts=lambda seeds, full: dict.fromkeys(
        (ATTENTION, FEED_FORWARD, BOTH), 3 * seeds if full else seeds
    ),
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=3,
)
