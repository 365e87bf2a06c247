"""Attention whose heads have the eigenvalues they are told to: H = V Λ V⁻¹ (Dovonon et al. 2025).

For each head V has orthonormal columns, from the QR factors of a free matrix, and Λ = f(ψ) is
diagonal: the head's value kernel is V Λ and its output kernel V⁻¹ = Vᵀ. So H = diag(g) V Λ Vᵀ, and
without the norm scale g its non-zero eigenvalues are Λ, whatever the optimiser does to V and ψ. A
positive g keeps their signs (it is √g V Λ Vᵀ √g up to a change of basis), not their bounds.

Works on NumPy's arrays and JAX's alike, and needs no JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SPECTRA: dict[str, Callable[[Any], Any]] = {
    "sharpen": lambda psi: psi.clip(-1.0, 0.0),
    "smooth": lambda psi: psi * psi,
    "free": lambda psi: psi,
}

# Where ψ starts, uniformly: all three have |Λ| ≤ 1 then, and ψ is inside of what clips it.
STARTS: dict[str, tuple[float, float]] = {
    "sharpen": (-1.0, 0.0),
    "smooth": (0.0, 1.0),
    "free": (-1.0, 1.0),
}


def spectral_kernels(
    kind: str, basis: Any, psi: Any, orthonormal: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """Return the value and the output kernel of an attention, joined over heads, heads major.

    Args:
      kind: one of `SPECTRA`.
      basis: (embed, joined), free; head h has the columns h·head_dim to (h + 1)·head_dim.
      psi: (heads, head_dim).
      orthonormal: (heads, embed, head_dim) -> Q of the QR factors of each, such as
        `linalg.orthonormal_columns`.

    Returns:
      (embed, joined) and (joined, embed).
    """
    heads, head_dim = psi.shape
    embed = basis.shape[0]
    columns = basis.reshape(embed, heads, head_dim).transpose(1, 0, 2)
    vectors = orthonormal(columns)  # (heads, embed, head_dim)
    scaled = vectors * SPECTRA[kind](psi)[:, None, :]
    value = scaled.transpose(1, 0, 2).reshape(embed, heads * head_dim)
    return value, vectors.transpose(0, 2, 1).reshape(heads * head_dim, embed)
