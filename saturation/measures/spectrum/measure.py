"""Whether each head smooths or sharpens, from its weights (MEASURES §10; Dovonon et al. 2025).

A head adds A X H to the stream X, with A its row-stochastic attention and H = diag(g) W_V W_O, g
being the norm scale that its values pass. So the stream's parts grow by 1 + λ^H λ^A: where λ^A = 1
dominates, tokens become equal; where another λ^A does, they part.

A LayerNorm takes the mean off: H = (I − 11ᵀ/d) diag(g) W_V W_O. Where values pass no norm, or one
without a scale, g = 1. Where what a head adds is normalised behind W_O (OLMo 2), H is that of the
kernels alone, without g. Biases move the fixed point, not the spectrum. Of grouped queries several
heads share W_V.

H is d × d and of rank d_kv. Where d_kv < d it has a null space, an eigenvalue 0, along which the
stream neither grows nor shrinks: under it a spectrum in [−1, 0) sharpens only where some λ^A makes
|1 + λ^H λ^A| exceed 1, and else does nothing.

Its non-zero eigenvalues are those of the d_kv × d_kv matrix W_O diag(g) W_V, and so they are taken:
exact, small, in float64 on the host, since accelerators have no solver for nonsymmetric matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Complex128, Float64

from saturation.measures.base import GroupMeasure, Shapes, Statistics
from saturation.models.kernels import (
    _count_heads,
    attention_arrays,
    attention_kernels,
    of_one_stack,
    shared_heads,
    split_heads,
)
from saturation.models.linalg import finite_eigenvalues

UNSCALED = "_unscaled"  # without the norm scale
OF_HEADS = (
    "fraction_negative",
    "fraction_sharpening",
    "spectral_radius",
    "asymmetry",
    "real_min",
    "real_max",
    "imaginary_max",
    "growth_of_shared",
    "sharpens_below",
)
STATISTICS = ("negative_scales", *OF_HEADS, *(f"{name}{UNSCALED}" for name in OF_HEADS))
VECTORS = ("real", "imaginary", f"real{UNSCALED}", f"imaginary{UNSCALED}")

CLEAR = 1e-3  # a layer: |ln(p/s)| up to this is neither smoothing nor sharpening

Heads = Float64[np.ndarray, "heads"]
Eigenvalues = Complex128[np.ndarray, "*batch head_dim"]


def observe(
    group: str, arrays: Mapping[str, np.ndarray], shapes: Shapes
) -> dict[str, dict[str, Any]]:
    """Return the statistics of one attention and of each of its heads; NaN where they have none."""
    wide = {role: array.astype(np.float64) for role, array in arrays.items()}
    value, out = attention_kernels(wide, lambda columns: np.linalg.qr(columns)[0])
    attention = next((each for each in of_one_stack(shapes) if each.path == group), None)
    heads = _count_heads(shapes) if attention is None else attention.num_heads
    if attention is not None:
        value = shared_heads(value, heads, attention.num_key_value_heads)
    ones = np.ones(len(value))
    scales = {"": wide.get("scale", ones), UNSCALED: ones}
    if attention is not None and attention.branch_norm:
        del scales[""]
    per_head: dict[str, np.ndarray] = {}
    for suffix, g in scales.items():
        left, right = split_heads(value, out, g, heads)
        if attention is not None and attention.norm_kind == "layer":
            left = left - left.mean(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # of infinite weights, which are reported as NaN
            found = nonzero_eigenvalues(left, right)
            null_space = left.shape[-1] < left.shape[-2]
            described = spectrum_summary(found, null_space) | {"asymmetry": asymmetry(left, right)}
        described |= {"real": np.real(found), "imaginary": np.imag(found)}
        per_head |= {f"{name}{suffix}": values for name, values in described.items()}
    nothing = dict.fromkeys(STATISTICS, np.nan) | {name: np.empty(0) for name in VECTORS}
    scopes = {}
    if "scale" in wide:
        scopes[group] = nothing | {"negative_scales": float((wide["scale"] < 0).sum())}
    for head in range(heads):
        of_head = {name: values[head] for name, values in per_head.items()}
        scopes[f"{group}/head_{head}"] = nothing | of_head
    return scopes


def nonzero_eigenvalues(
    left: Float64[np.ndarray, "heads embed head_dim"],
    right: Float64[np.ndarray, "heads head_dim embed"],
) -> Complex128[np.ndarray, "heads head_dim"]:
    """Return the eigenvalues of each head's H = left·right, but for the zeros it must have.

    Those of right·left: if left·right v = λv with λ ≠ 0, then right·left (right v) = λ (right v).
    What lies within rounding of 0 is 0. All NaN for a head whose weights are not finite.
    """
    small = right @ left
    found = finite_eigenvalues(small)
    rounding = small.shape[-1] * np.finfo(np.float64).eps * np.linalg.norm(small, axis=(1, 2))
    found[np.abs(found) <= rounding[:, None]] = 0
    return found


def asymmetry(
    left: Float64[np.ndarray, "heads embed head_dim"],
    right: Float64[np.ndarray, "heads head_dim embed"],
) -> Heads:
    """Return ‖H − Hᵀ‖_F/(2‖H‖_F) of each head's H = left·right, to 1e-8; NaN where H is 0.

    0 where H is symmetric, 1 where it is skew, √½ in the mean over random ones. H itself is not
    formed: ‖H − Hᵀ‖² = 2‖H‖² − 2 tr(H²), with ‖H‖² = Σ leftᵀleft ∘ right·rightᵀ and
    tr(H²) = tr((right·left)²).
    """
    transposed = np.swapaxes(left, 1, 2), np.swapaxes(right, 1, 2)
    squares = ((transposed[0] @ left) * (right @ transposed[1])).sum(axis=(1, 2))
    small = right @ left
    trace = (small * np.swapaxes(small, 1, 2)).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(np.maximum(0.5 - 0.5 * trace / squares, 0.0))


def spectrum_summary(
    eigenvalues: Complex128[np.ndarray, "heads head_dim"], null_space: bool = True
) -> dict[str, Heads]:
    """Return what `metrics` says of each head's eigenvalues, but for the asymmetry.

    Args:
      eigenvalues: λ, the d_kv that need not be 0.
      null_space: whether d_kv < d.
    """
    growth = np.abs(1 + eigenvalues).max(axis=-1)
    real = np.real(eigenvalues)
    broken = np.isnan(real).any(axis=-1)
    shares = {
        "fraction_negative": (real < 0).mean(axis=-1),
        "fraction_sharpening": ((real < 0) & (real >= -1)).mean(axis=-1),
    }
    return {name: np.where(broken, np.nan, share) for name, share in shares.items()} | {
        "spectral_radius": np.abs(eigenvalues).max(axis=-1),
        "real_min": real.min(axis=-1),
        "real_max": real.max(axis=-1),
        "imaginary_max": np.abs(np.imag(eigenvalues)).max(axis=-1),
        "growth_of_shared": np.maximum(growth, 1.0) if null_space else growth,
        "sharpens_below": sharpens_below(eigenvalues, null_space),
    }


def sharpens_below(
    eigenvalues: Eigenvalues, null_space: bool = True
) -> Float64[np.ndarray, "*batch"]:
    """Return m: under an attention with real λ^A, the head sharpens where λ^A_min < m.

    With s = max(1, max_j |1 + λ_j|) the growth of what tokens share, it is the largest over
    λ_j ≠ 0 of the smaller root of |1 + λ_j m|² = s²,
    −(Re λ_j + √(Re² λ_j + |λ_j|² (s² − 1)))/|λ_j|². For λ^A from λ^A_min to 1 the growth is convex
    in λ^A, so that the ends alone decide. As |λ^A| ≤ 1, m is cut at −1: the head never sharpens.
    With a null space m is not above 0. Complex λ^A of positive real part can sharpen all the same.

    Args:
      eigenvalues: λ, the d_kv that need not be 0.
      null_space: whether d_kv < d: the head's H has the eigenvalue 0 besides, and s ≥ 1.
    """
    real, squares = np.real(eigenvalues), np.abs(eigenvalues) ** 2
    growth = (np.abs(1 + eigenvalues) ** 2).max(axis=-1, keepdims=True)
    growth = np.maximum(growth, 1.0) if null_space else growth
    # The other root of each is at least 1, so the discriminant is below 0 by rounding alone.
    discriminant = np.maximum(real**2 + squares * (growth - 1), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        roots = (-real - np.sqrt(discriminant)) / squares
    roots = np.where(squares == 0, -np.inf, roots)
    return np.asarray(np.maximum(roots.max(axis=-1), -1.0) + 0.0)  # no −0


def regime(
    eigenvalues: Complex128[np.ndarray, " head_dim"],
    of_attention: complex | Complex128[np.ndarray, " others"] | Float64[np.ndarray, " others"],
    null_space: bool = True,
) -> str:
    """Return "sharpens", "smooths" or "neither": what a head does under this attention.

    By ln(p/s) against ±`CLEAR` a layer, p and s as in `forecast.forecast`.

    Args:
      eigenvalues: λ, the d_kv that need not be 0.
      of_attention: λ^A but for the simple 1, complex ones too; of real ones the smallest may do.
      null_space: whether d_kv < d.
    """
    others = np.atleast_1d(np.asarray(of_attention, np.complex128))
    shared = np.abs(1 + eigenvalues).max()
    apart = np.abs(1 + np.multiply.outer(eigenvalues, others)).max()
    if null_space:
        shared, apart = max(1.0, shared), max(1.0, apart)
    change = np.log(apart / shared)
    return "sharpens" if change > CLEAR else "smooths" if change < -CLEAR else "neither"


def metrics(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return what the eigenvalues λ of one head's H = diag(g) W_V W_O say, or of an attention g.

    Of the d_kv non-zero ones: fraction_negative (Re λ < 0), fraction_sharpening (Re λ in [−1, 0)),
    spectral_radius = max |λ|, real_min, real_max, imaginary_max = max |Im λ|; growth_of_shared =
    max(1, max |1 + λ|), the growth of what all tokens share (max |1 + λ| where d_kv = d);
    sharpens_below = m: under real λ^A the head sharpens where the smallest lies below m (−1:
    never). asymmetry = ‖H−Hᵀ‖_F/(2‖H‖_F). The same with `_unscaled` for g = 1. negative_scales:
    how many entries of g are below 0.
    """
    scales = statistics["negative_scales"]
    if not np.isnan(scales).all():
        return {"negative_scales": scales}
    suffixes = ("", UNSCALED)
    if (
        np.isnan(statistics["asymmetry"]).all()
        and not np.isnan(statistics[f"asymmetry{UNSCALED}"]).all()
    ):
        suffixes = (UNSCALED,)  # what a head adds is normalised behind W_O
    return {
        f"{name}{suffix}": statistics[f"{name}{suffix}"] for suffix in suffixes for name in OF_HEADS
    }


SPECTRUM = GroupMeasure(
    name="spectrum",
    definition="eigenvalues of each head's diag(g) W_V W_O: signs, shares, radius, asymmetry, and "
    "for which attention the head smooths or sharpens",
    source="Dovonon et al. 2025 (arXiv 2401.04301); multi-head form, `asymmetry` and the "
    "threshold ours",
    statistics=STATISTICS,
    vectors=VECTORS,
    groups=attention_arrays,
    observe=observe,
    metrics=metrics,
    version=2,
)
