"""A spectrum is planted in H, another in A, and X′ = X + A X H is iterated (MEASURES §11).

Every regime of Dovonon et al. 2025 (arXiv 2401.04301): the pair of eigenvalues that grows most
decides whether tokens become equal or part, and the rank goes to one either way. The states are
judged by the functions that measure real models, so that this is a test of them as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Complex128, Float64

from saturation.plots.colours import RUN_COLOURS
from saturation.plots.panels import Axis, Line, Panel, Picture, Table
from saturation.studies.base import Part, Results, Row, Study, claim, control
from saturation.studies.output import write_csv, write_pictures

TOKENS, WIDTH, LAYERS, SEED = 12, 6, 40, 0
OTHERS = 0.03  # all λ^A but 1 and λ^A_min lie within this of 0
LATE = 10  # layers at the end over which the change of HFC/LFC is taken
TOLERANCE = {"cosine": 1e-3, "cosine_abs": 1e-3, "effective_rank": 1e-2, "change": 0.05}

Spectrum = Complex128[np.ndarray, " size"]
Matrix = Float64[np.ndarray, "rows columns"]


@dataclass(frozen=True)
class Case:
    """One planted example.

    Attributes:
      name: a word or two.
      says: what it shows.
      low, high: the ends of λ^H, evenly spaced in between, or of its real part.
      attention_min: λ^A_min.
      residual: whether X itself is kept: X′ = X + A X H, else X′ = A X H.
      imaginary: of the λ^H, as pairs of conjugates.
    """

    name: str
    says: str
    low: float
    high: float
    attention_min: float
    residual: bool = True
    imaginary: float = 0.0

    @property
    def of_heads(self) -> Spectrum:
        """λ^H."""
        if not self.imaginary:
            return np.linspace(self.low, self.high, WIDTH) + 0j
        real = np.linspace(self.low, self.high, WIDTH // 2)
        return np.concatenate([real + 1j * self.imaginary, real - 1j * self.imaginary])

    @property
    def of_attention(self) -> Spectrum:
        """λ^A: 1, the smallest, and pairs near 0."""
        near = OTHERS * np.linspace(-1, 1, TOKENS // 2 - 1)
        return np.concatenate([[1, self.attention_min], near, near]) + 0j


CASES = (
    Case("H ⪰ 0", "rows become equal", 0.1, 1.0, -0.6),
    Case("H in [−1, 0)", "tokens part, in rank one", -1.0, -0.1, -0.6),
    Case("H below −2", "equal again", -3.0, -0.1, -0.1),
    Case("H below −2, other A", "the same H parts tokens", -3.0, -0.1, -0.6),
    Case("no residual", "equal whatever H", -1.0, -0.1, -0.6, residual=False),
    Case("H complex", "tokens part, and turn", -0.8, -0.2, -0.6, imaginary=0.4),
)


def plant_h(case: Case, generator: np.random.Generator) -> Matrix:
    """Return V Λ V⁻¹ (WIDTH, WIDTH), V a random orthogonal matrix, Λ real or of 2 × 2 blocks."""
    values = case.of_heads
    blocks = np.diag(np.real(values))
    half = WIDTH // 2
    for one in range(half if case.imaginary else 0):
        blocks[one, half + one], blocks[half + one, one] = case.imaginary, -case.imaginary
    basis = np.linalg.qr(generator.standard_normal((WIDTH, WIDTH)))[0]
    return basis @ blocks @ basis.T


def plant_a(case: Case) -> Matrix:
    """Return a row-stochastic matrix (TOKENS, TOKENS) with λ^A: circulant, by real Fourier modes.

    λ^A_min belongs to signs that alternate from token to token.
    """
    position = np.arange(TOKENS)
    apart = position[:, None] - position
    values = np.real(case.of_attention)
    weights = (1 + values[1] * (-1.0) ** apart) / TOKENS
    for mode, value in enumerate(values[2 : TOKENS // 2 + 1], start=1):
        weights += 2 * value * np.cos(2 * np.pi * mode * apart / TOKENS) / TOKENS
    return weights


def iterate(case: Case, seed: int = SEED) -> Float64[np.ndarray, "layers tokens width"]:
    """Return X at each of the LAYERS + 1 layers, each divided by its norm, from normal noise."""
    generator = np.random.default_rng(seed)
    of_tokens, of_width = plant_a(case), plant_h(case, generator)
    state = generator.standard_normal((TOKENS, WIDTH))
    states = [state / np.linalg.norm(state)]
    for _ in range(LAYERS):
        state = of_tokens @ states[-1] @ of_width + (states[-1] if case.residual else 0)
        states.append(state / np.linalg.norm(state))
    return np.stack(states)


def predict(case: Case) -> dict[str, Any]:
    """Return the dominating pair, the regime, and what the panel must become.

    Tokens ±v that alternate have a mean cosine of −1/(n − 1) and a mean |cos| of 1.
    """
    growth = np.multiply.outer(case.of_attention, case.of_heads)
    growth = np.abs(growth + 1 if case.residual else growth)
    shared, apart = growth[0].max(), growth[1:].max()
    sharpens = bool(apart > shared)
    at = np.unravel_index(np.argmax(growth), growth.shape)
    return {
        "regime": "sharpens" if sharpens else "smooths",
        "dominating_h": case.of_heads[at[1]],
        "dominating_a": float(case.of_attention[at[0]].real),
        "cosine": -1 / (TOKENS - 1) if sharpens else 1.0,
        "cosine_abs": 1.0,
        "effective_rank": 1.0,
        "change": float(np.log(apart / shared)),
    }


def measure(states: Float64[np.ndarray, "layers tokens width"]) -> dict[str, np.ndarray]:
    """Return the panel of `measures.similarity` at every layer, (layers,) each."""
    import jax
    import jax.numpy as jnp

    from saturation.measures.smoothing.similarity import similarity

    with jax.enable_x64(True):
        valid = jnp.ones(states.shape[:2], bool)
        return jax.device_get(jax.jit(similarity)(jnp.asarray(states), valid))


def at_the_end(panel: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what of a panel is predicted, by the names of `TOLERANCE`; layers are the last axis.

    The change is that of ln(HFC/LFC) a layer over the last layers.
    """
    ratio = np.log(panel["hfc_lfc"])
    return {
        "cosine": panel["token_cosine"][..., -1],
        "cosine_abs": panel["token_cosine_abs"][..., -1],
        "effective_rank": panel["effective_rank"][..., -1],
        "change": (ratio[..., -1] - ratio[..., -1 - LATE]) / LATE,
    }


def compare(case: Case, panel: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return a row of the demo's table: the prediction, the last layer's panel, and the verdict."""
    predicted, measured = predict(case), at_the_end(panel)
    row: dict[str, Any] = {"case": case.name, "shows": case.says, **predicted}
    row |= {f"measured_{name}": float(value) for name, value in measured.items()}
    row["agrees"] = all(
        abs(measured[name] - predicted[name]) <= tolerance for name, tolerance in TOLERANCE.items()
    )
    return row


# --- the demo -----------------------------------------------------------------------------------


def demo(out: str | None = None) -> tuple[str, bool, list[Path]]:
    """Iterate every case once, and with a folder write oversmoothing.csv, .png and .pdf.

    Returns:
        A table of predictions and measurements, whether all agree, and the paths written.

    Raises:
        ResultsError: the folder cannot be written.
    """
    panels = {case: measure(iterate(case)) for case in CASES}
    rows = [compare(case, panel) for case, panel in panels.items()]
    paths: list[Path] = []
    if out is not None:
        paths = [write_csv(Path(out) / "oversmoothing.csv", rows)]
        paths += write_pictures([picture(panels)], Path(out), "planted spectra")
    return _text(rows), all(row["agrees"] for row in rows), paths


_READING = """\
X′ = X + A X H on 12 tokens, 40 layers. λ^H, λ^A: the pair of eigenvalues with the largest
|1 + λ^H λ^A| (without residual |λ^H λ^A|). λ^A = 1: tokens become equal; the smallest λ^A: they
part. cos, |cos|: mean over pairs of tokens; rank: effective rank; Δ: change of ln(HFC/LFC) a
layer; each as predicted → measured. The rank goes to one in every case, and cos alone, near the 0
of random tokens where they part, does not say so: |cos| and HFC/LFC do."""


def _text(rows: Sequence[dict[str, Any]]) -> str:
    columns = ("case", "dominating λ^H", "λ^A", "regime", "cos", "|cos|", "rank", "Δ", "agrees")
    cells = []
    for row in rows:
        pairs = [f"{row[name]:.2f} → {row[f'measured_{name}']:.2f}" for name in TOLERANCE]
        value, verdict = row["dominating_h"], "yes" if row["agrees"] else "NO"
        shown = f"{value.real:.2f}" + (f" ± {abs(value.imag):.2f}i" if value.imag else "")
        of_tokens = f"{row['dominating_a']:.2f}"
        cells.append([row["case"], shown, of_tokens, row["regime"], *pairs, verdict])
    return "\n".join([*Table(columns, cells).lines(), "", _READING])


# --- the study ----------------------------------------------------------------------------------

_WORDS = {
    "cosine": "mean cosine of the last layer's tokens",
    "cosine_abs": "mean |cos| of the last layer's tokens",
    "effective_rank": "effective rank of the last layer's tokens",
    "change": "change of ln(HFC/LFC) a layer",
}
# What decides a case is left out of its prediction.
_WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "H below −2, other A": ("predicted from H alone", {"attention_min": -0.1}),
    "no residual": ("predicted with a residual", {"residual": True}),
}


def _simulate(case: Case, seeds: Sequence[int]) -> Iterator[Part]:
    return (measure(iterate(case, seed)) for seed in seeds)


def _judge(results: Results) -> Iterator[Row]:
    for case, panel in results.items():
        for name, measured in at_the_end(panel).items():
            yield claim(_WORDS[name], f"{case.name}: {case.says}", measured, **_near(case, name))
    for case, panel in results.items():
        start = panel["token_cosine_abs"][:, 0]
        where = f"{case.name}: before the first layer"
        yield control(_WORDS["cosine_abs"], where, start, **_near(case, "cosine_abs"))
        if case.name in _WRONG:
            says, wrong = _WRONG[case.name]
            near = _near(replace(case, **wrong), "change")
            measured = at_the_end(panel)["change"]
            yield control(_WORDS["change"], f"{case.name}: {says}", measured, **near)


def _near(case: Case, name: str) -> dict[str, Any]:
    value, tolerance = predict(case)[name], TOLERANCE[name]
    return {"bounds": (value - tolerance, value + tolerance), "predicted": f"{value:.3g}"}


def picture(panels: Mapping[Case, Mapping[str, np.ndarray]]) -> Picture:
    """Return what becomes of the tokens, layer by layer, a line a case."""
    lines: dict[str, list[Line]] = {}
    for (case, panel), colour in zip(panels.items(), RUN_COLOURS, strict=False):
        layers, ratio = np.arange(LAYERS + 1), panel["hfc_lfc"]
        for name in ("token_cosine", "token_cosine_abs", "effective_rank", "hfc_lfc"):
            lines.setdefault(name, []).append(Line(layers, panel[name], case.name, colour))
        forecast = ratio[-1] * np.exp(predict(case)["change"] * (layers - LAYERS))
        lines["hfc_lfc"].append(Line(layers, forecast, "", colour, "dot"))
    rows = [
        [
            _panel("cosine of tokens, mean", lines["token_cosine"]),
            _panel("|cos| of tokens, mean", lines["token_cosine_abs"]),
        ],
        [
            _panel("effective rank", lines["effective_rank"]),
            _panel("HFC/LFC; dotted: the forecast slope", lines["hfc_lfc"], "log"),
        ],
    ]
    return Picture(
        "oversmoothing",
        "Spectra decide whether tokens become equal or part, in rank one either way",
        "Layer by layer",
        "X′ = X + A X H with planted spectra, a line a case.",
        rows,
    )


def _panel(title: str, lines: Sequence[Line], scale: Literal["linear", "log"] = "linear") -> Panel:
    return Panel(title, lines, Axis(scale=scale), Axis("layer"))


STUDY = Study(
    name="oversmoothing",
    title="When tokens grow alike with depth",
    paper="Dovonon, Bronstein and Kusner, Setting the Record Straight on Transformer "
    "Oversmoothing, TMLR 2025, arXiv 2401.04301",
    reads="A spectrum is planted in H, another in A, and X′ = X + A X H is iterated. The pair of "
    "eigenvalues that grows most decides whether tokens become equal or part, and the rank goes to "
    "one either way. A control leaves out of the prediction what decides.",
    parts=lambda seeds, full: dict.fromkeys(CASES, seeds),
    simulate=_simulate,
    judge=_judge,
    pictures=lambda results: [
        picture({case: {k: v[0] for k, v in panel.items()} for case, panel in results.items()})
    ],
    seeds=5,
)
