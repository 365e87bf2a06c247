"""What one head would do to its tokens by the spectra of its attention and its own (MEASURES §10).

The stream's part of the eigenvalues λ^A and λ^H grows by |1 + λ^A λ^H/r| in a layer. λ^A = 1
belongs to what all tokens share, every other one to what sets them apart. A head of rank
d_kv < d has the eigenvalue 0 besides its λ^H: along it nothing grows or shrinks, whatever A is.

r is the mean over tokens of the root mean square, while the norm divides each token by its own:
that, and all heads together, is `operator`. This explains head by head.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Shaped

from saturation.measures.spectrum.measure import CLEAR
from saturation.models.linalg import finite_eigenvalues

# What a padded position's eigenvalue is set to, outside of the unit disk that holds all of A's.
_PADDING = 2.0


def attention_block(
    weights: Float[Array, "batch heads query query"],
    valid: Bool[Array, "batch query"],
    causal: bool,
) -> Float[Array, "batch heads query *query"]:
    """Return self-attention between valid tokens, whose eigenvalues are asked for.

    Args:
      weights: of the attention, rows of valid queries summing to 1 over valid keys.
      valid: which positions hold a token.
      causal: no query attends to a later key: A is triangular, its eigenvalues are its diagonal,
        and that alone is returned.
    """
    wide = jnp.result_type(float)
    if causal:
        return jnp.diagonal(weights, axis1=-2, axis2=-1).astype(wide)
    both = valid[:, None, :, None] & valid[:, None, None, :]
    outside = jnp.eye(weights.shape[-1], dtype=bool) & ~valid[:, None, :, None]
    return jnp.where(outside, _PADDING, jnp.where(both, weights.astype(wide), 0))


def block_eigenvalues(
    block: Float[np.ndarray, "batch heads query *query"],
    valid: Bool[np.ndarray, "batch query"],
    causal: bool,
) -> tuple[Complex[np.ndarray, "batch heads query"], Bool[np.ndarray, "batch heads query"]]:
    """Return the eigenvalues of an `attention_block`, by NumPy, and which of them count."""
    if causal:
        return block.astype(np.result_type(block, np.complex64)), np.broadcast_to(
            valid[:, None, :], block.shape
        )
    found = finite_eigenvalues(block.astype(np.float64))
    return found, ~(np.abs(found) > (1 + _PADDING) / 2)


def forecast_sums(
    block: Float[np.ndarray, "batch heads query *query"],
    products: Float[np.ndarray, "heads head_dim head_dim"],
    rms: Float[np.ndarray, " batch"],
    valid: Bool[np.ndarray, "batch query"],
    causal: Bool[np.ndarray, ""],
    null_space: Bool[np.ndarray, ""],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the sums over sequences of what `forecast` says, averaged over heads, and by head.

    Args:
      block: as `attention_block` returns it.
      products: W_O^h diag(g) W_V^h of every head, whose eigenvalues are the λ^H that need not be 0.
      rms: r of the layer's input.
      valid: which positions hold a token.
      causal: whether the attention is.
      null_space: whether d_kv < d.
    """
    values, tokens = block_eigenvalues(block, valid, bool(causal))
    of_heads = finite_eigenvalues(products.astype(np.float64))
    counted = valid.sum(axis=-1) > 1
    found = _compiled()(of_heads, values, tokens, rms, counted, bool(null_space))
    mean, each = jax.device_get(found)
    return mean, each


@cache
def _compiled() -> Any:
    return jax.jit(_forecast_sums, static_argnums=5)


def _forecast_sums(
    of_heads: Complex[Array, "heads head_dim"],
    of_attention: Complex[Array, "batch heads query"],
    tokens: Bool[Array, "batch heads query"],
    rms: Float[Array, " batch"],
    counted: Bool[Array, " batch"],
    null_space: bool,
) -> tuple[dict[str, Array], dict[str, Array]]:
    said = forecast(of_heads, of_attention, tokens, rms, null_space)
    number = counted.sum().astype(jnp.result_type(float))

    def sums(values: dict[str, Array], counted: Array) -> dict[str, Array]:
        found = {}
        for name, each in values.items():
            kept = jnp.where(counted, each, 0)
            found |= {f"{name}_sum": kept.sum(axis=0), f"{name}_squares": (kept * kept).sum(axis=0)}
        return found

    mean = sums({name: of_head.mean(axis=-1) for name, of_head in said.items()}, counted)
    by_head = sums(said, counted[:, None])
    return mean | {"forecasts": number}, by_head | {"forecasts": jnp.full(len(of_heads), number)}


def forecast(
    of_heads: Complex[Array, "heads head_dim"],
    of_attention: Complex[Array, "batch heads query"],
    counted: Bool[Array, "batch heads query"],
    rms: Float[Array, " batch"],
    null_space: bool = True,
) -> dict[str, Float[Array, "batch heads"]]:
    """Return what the two spectra say of each sequence and head alone, {metric: …}.

    attention_min = min Re λ^A; attention_second = the largest |λ^A| but for the simple 1 of equal
    tokens; growth_shared s = max(1, max_j |1 + λ^H_j/r|), growth_apart p = max(1, max_{i, j}
    |1 + λ^H_j λ^A_i/r|) over all other λ^A, complex ones too (without the "1," where H has no null
    space); apart_over_shared = ln(p/s), by which ln(HFC/LFC) moves in a layer once those two
    dominate, and dominance_rate its absolute value; smooths, sharpens, neither = 1 where that is
    below −`CLEAR`, above `CLEAR`, or between; dominating_h and dominating_a: λ^H/r and λ^A of the
    pair that grows most, their real and absolute imaginary parts, λ^H = 0 for the null space. Of
    fewer than two tokens the numbers mean nothing.

    Args:
      of_heads: λ^H, the d_kv that need not be 0.
      of_attention: λ^A.
      counted: which of the λ^A belong to tokens.
      rms: r of the layer's input.
      null_space: whether d_kv < d.
    """
    if null_space:
        of_heads = jnp.concatenate([of_heads, jnp.zeros_like(of_heads[:, :1])], axis=-1)
    from_one = jnp.where(counted, jnp.abs(of_attention - 1), jnp.inf)
    shared = jnp.argmin(from_one, axis=-1)[..., None] == jnp.arange(of_attention.shape[-1])
    others = counted & ~shared
    scaled = of_heads / jax.lax.complex(rms, jnp.zeros_like(rms))[:, None, None]
    alone = jnp.abs(1 + scaled)
    pairs = jnp.abs(1 + scaled[..., :, None] * of_attention[..., None, :])
    pairs = jnp.where(others[..., None, :], pairs, -jnp.inf)  # (batch, heads, head_dim, query)
    growth_shared, growth_apart = alone.max(axis=-1), pairs.max(axis=(-2, -1))
    change = jnp.log(growth_apart / growth_shared)
    h_apart, a_apart = _largest(pairs)
    apart = growth_apart > growth_shared
    h_at = jnp.where(apart, h_apart, jnp.argmax(alone, axis=-1))
    of_h = jnp.take_along_axis(scaled, h_at[..., None], axis=-1)[..., 0]
    of_a = jnp.take_along_axis(of_attention, a_apart[..., None], axis=-1)[..., 0]
    of_a = jnp.where(apart, of_a, jnp.ones_like(of_a))
    return {
        "attention_min": jnp.where(counted, of_attention.real, jnp.inf).min(axis=-1),
        "attention_second": jnp.where(others, jnp.abs(of_attention), 0).max(axis=-1),
        "growth_shared": growth_shared,
        "growth_apart": growth_apart,
        "apart_over_shared": change,
        "dominance_rate": jnp.abs(change),
        **_regimes(change),
        "dominating_h_real": of_h.real,
        "dominating_h_imaginary": jnp.abs(of_h.imag),
        "dominating_a_real": of_a.real,
        "dominating_a_imaginary": jnp.abs(of_a.imag),
    }


def _regimes(change: Float[Array, "batch heads"]) -> dict[str, Float[Array, "batch heads"]]:
    """Return 1 for the one of three regimes that ln(p/s) is in, and NaN where there is none."""
    regimes = {
        "smooths": change < -CLEAR,
        "sharpens": change > CLEAR,
        "neither": jnp.abs(change) <= CLEAR,
    }
    return {
        name: jnp.where(jnp.isnan(change), jnp.nan, holds.astype(change.dtype))
        for name, holds in regimes.items()
    }


def _largest(
    pairs: Float[Array, "batch heads head_dim query"],
) -> tuple[Shaped[Array, "batch heads"], Shaped[Array, "batch heads"]]:
    """Return where the largest entry of each head's table lies: its row and its column."""
    flat = jnp.argmax(pairs.reshape(*pairs.shape[:-2], -1), axis=-1)
    return jnp.divmod(flat, pairs.shape[-1])
