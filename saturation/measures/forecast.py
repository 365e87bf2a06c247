"""What a layer does to its tokens by the spectra of its own attention and heads (MEASURES §10).

The stream's part of the eigenvalues λ^A and λ^H grows by |1 + λ^A λ^H/r| in a layer, where r, the
mean root mean square of the layer's input, is what its norm divides by. λ^A = 1 belongs to what all
tokens share, every other one to what sets them apart.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Shaped

from saturation.linalg import eigenvalues

# What a padded position's eigenvalue is set to, outside of the unit disk that holds all of A's.
_PADDING = 2.0


def attention_eigenvalues(
    weights: Float[Array, "batch heads query query"],
    valid: Bool[Array, "batch query"],
    causal: bool,
) -> tuple[Complex[Array, "batch heads query"], Bool[Array, "batch heads query"]]:
    """Return the eigenvalues of self-attention between valid tokens, and which of them count.

    Args:
      weights: of the attention, rows of valid queries summing to 1 over valid keys.
      valid: which positions hold a token.
      causal: no query attends to a later key: A is triangular, its eigenvalues are its diagonal.
    """
    wide = jnp.result_type(float)
    identity = jnp.eye(weights.shape[-1], dtype=bool)
    if causal:
        diagonal = jnp.diagonal(weights, axis1=-2, axis2=-1).astype(wide)
        counted = jnp.broadcast_to(valid[:, None, :], diagonal.shape)
        return jax.lax.complex(diagonal, jnp.zeros_like(diagonal)), counted
    both = valid[:, None, :, None] & valid[:, None, None, :]
    outside = identity & ~valid[:, None, :, None]
    block = jnp.where(outside, _PADDING, jnp.where(both, weights.astype(wide), 0))
    found = eigenvalues(block)
    return found, ~(jnp.abs(found) > (1 + _PADDING) / 2)


def forecast(
    of_heads: Complex[Array, "heads head_dim"],
    of_attention: Complex[Array, "batch heads query"],
    counted: Bool[Array, "batch heads query"],
    rms: Float[Array, " batch"],
) -> dict[str, Float[Array, "batch heads"]]:
    """Return what the two spectra forecast for each sequence and head, {metric: …}.

    attention_min = min Re λ^A; attention_second = the largest |λ^A| but for the 1 of equal tokens;
    growth_shared = max_j |1 + λ^H_j/r|, growth_apart = max_{i, j} |1 + λ^H_j λ^A_i/r| over the
    other λ^A; forecast_change = ln(growth_apart/growth_shared), by which ln(HFC/LFC) moves in a
    layer once those two pairs dominate, and forecast_rate its absolute value; sharpening = 1 where
    it is above 0; dominating_h and dominating_a: λ^H/r and λ^A of the pair that grows most, their
    real and absolute imaginary parts. Of fewer than two tokens the numbers mean nothing.

    Args:
      of_heads: λ^H.
      of_attention: λ^A.
      counted: which of the λ^A belong to tokens.
      rms: r of the layer's input.
    """
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
        "forecast_change": change,
        "forecast_rate": jnp.abs(change),
        "sharpening": jnp.where(jnp.isnan(change), jnp.nan, apart.astype(change.dtype)),
        "dominating_h_real": of_h.real,
        "dominating_h_imaginary": jnp.abs(of_h.imag),
        "dominating_a_real": of_a.real,
        "dominating_a_imaginary": jnp.abs(of_a.imag),
    }


def _largest(
    pairs: Float[Array, "batch heads head_dim query"],
) -> tuple[Shaped[Array, "batch heads"], Shaped[Array, "batch heads"]]:
    """Return where the largest entry of each head's table lies: its row and its column."""
    flat = jnp.argmax(pairs.reshape(*pairs.shape[:-2], -1), axis=-1)
    return jnp.divmod(flat, pairs.shape[-1])
