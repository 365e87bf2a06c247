"""A spectrum is planted in H, another in A, and X′ = X + A X H is iterated (MEASURES §11).

Every regime of Dovonon et al. 2025 (arXiv 2401.04301): the pair of eigenvalues that grows most
decides whether tokens become equal or part, and the rank goes to one either way. The states are
judged by the functions that measure real models, so that this is a test of them as well.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Complex128, Float64

from saturation.demos import Shown
from saturation.measures.reduce import enable_x64
from saturation.runfolder import RunFolder

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

    from saturation.measures.similarity import similarity

    with enable_x64(True):
        valid = jnp.ones(states.shape[:2], bool)
        return jax.device_get(jax.jit(similarity)(jnp.asarray(states), valid))


def compare(case: Case, panel: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return a row of the table: the prediction, the last layer's panel, and the verdict."""
    predicted = predict(case)
    ratio = np.log(panel["hfc_lfc"])
    measured = {
        "cosine": panel["token_cosine"][-1],
        "cosine_abs": panel["token_cosine_abs"][-1],
        "effective_rank": panel["effective_rank"][-1],
        "change": (ratio[-1] - ratio[-1 - LATE]) / LATE,
    }
    row: dict[str, Any] = {"case": case.name, "shows": case.says, **predicted}
    row |= {f"measured_{name}": float(value) for name, value in measured.items()}
    row["agrees"] = all(
        abs(measured[name] - predicted[name]) <= tolerance for name, tolerance in TOLERANCE.items()
    )
    return row


def run(out: str | None = None) -> tuple[Shown, list[Path]]:
    """Iterate every case, and with a folder write table and picture (see `demos.demo`)."""
    panels = {case.name: measure(iterate(case)) for case in CASES}
    rows = [compare(case, panels[case.name]) for case in CASES]
    agrees = all(row["agrees"] for row in rows)
    paths: list[Path] = []
    if out is not None:
        from saturation.report.oversmoothing_demo import write_figure

        folder = Path(out)
        paths = [_write_csv(folder, rows), *write_figure(rows, panels, folder)]
    return Shown(_text(rows), agrees, rows), paths


_READING = """\
X′ = X + A X H on 12 tokens, 40 layers. λ^H, λ^A: the pair of eigenvalues with the largest
|1 + λ^H λ^A| (without residual |λ^H λ^A|). λ^A = 1: tokens become equal; the smallest λ^A: they
part. cos, |cos|: mean over pairs of tokens; rank: effective rank; Δ: change of ln(HFC/LFC) a
layer; each as predicted → measured. The rank goes to one in every case, and cos alone, near the 0
of random tokens where they part, does not say so: |cos| and HFC/LFC do."""


def _text(rows: Sequence[dict[str, Any]]) -> str:
    table = [["case", "dominating λ^H", "λ^A", "regime", "cos", "|cos|", "rank", "Δ", "agrees"]]
    for row in rows:
        pairs = (
            f"{row[name]:.2f} → {row[f'measured_{name}']:.2f}"
            for name in ("cosine", "cosine_abs", "effective_rank", "change")
        )
        value = row["dominating_h"]
        shown = f"{value.real:.2f}" + (f" ± {abs(value.imag):.2f}i" if value.imag else "")
        verdict = "yes" if row["agrees"] else "NO"
        pair = (shown, f"{row['dominating_a']:.2f}", row["regime"])
        table.append([row["case"], *pair, *pairs, verdict])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )
    return "\n".join([*lines, "", _READING])


def _write_csv(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.6g}" if isinstance(v, float | complex) else v for k, v in row.items()}
        for row in rows
    )
    RunFolder(folder).write("oversmoothing.csv", text.getvalue().encode())
    return folder / "oversmoothing.csv"
