"""How alike the tokens of a sequence are (MEASURES §11), by several measures at once.

The cosine alone misreads a collapse: where rows are ±v in equal numbers its mean is −1/(n − 1),
though |cos| = 1 and the state has rank one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saturation.models.linalg import singular_values, symmetric_eigenvalues

State = Float[Array, "batch length embed"]
Valid = Bool[Array, "batch length"]
PerSequence = Float[Array, " batch"]


def similarity(state: State, valid: Valid) -> dict[str, PerSequence]:
    """Return the panel of each sequence, {metric: (batch,)} in the widest float there is.

    With X the n × d matrix of a sequence's valid tokens, x̄ their mean and σ its singular values:
    token_cosine and token_cosine_abs = mean of cos(x_i, x_j) and of its absolute value over pairs
    i < j; token_cosine_centred, the same cosine of x_i − x̄; effective_rank = exp(H(σ/Σσ)), H the
    entropy in nats; stable_rank = ‖X‖_F²/σ₁²; hfc_lfc = ‖X − 1x̄ᵀ‖_F/‖1x̄ᵀ‖_F;
    rank_one_distance = √(1 − σ₁²/‖X‖_F²); token_rms = mean over tokens of √(mean of x_i²). Cosines
    of a zero vector are 0. Of a sequence of fewer than two tokens the numbers mean nothing.
    """
    x = _tokens(state, valid)
    centred, _ = _centred(x, valid)
    squares = singular_squares(x)
    total = squares.sum(axis=-1)
    share = jnp.sqrt(squares) / jnp.sqrt(squares).sum(axis=-1, keepdims=True)
    cosine, cosine_abs = _pairs(x, valid)
    return {
        "token_cosine": cosine,
        "token_cosine_abs": cosine_abs,
        "token_cosine_centred": _pairs(centred, valid)[0],
        "effective_rank": jnp.exp(jax.scipy.special.entr(share).sum(axis=-1)),
        "stable_rank": total / squares.max(axis=-1),
        "hfc_lfc": hfc_lfc(state, valid),
        # Of the smaller ones' sum, not as 1 − σ₁²/total: near rank one that would be rounding.
        "rank_one_distance": jnp.sqrt(jnp.sort(squares, axis=-1)[..., :-1].sum(axis=-1) / total),
        "token_rms": token_rms(state, valid),
    }


def hfc_lfc(state: State, valid: Valid) -> PerSequence:
    """Return ‖X − 1x̄ᵀ‖_F/‖1x̄ᵀ‖_F of each sequence, x̄ the mean of its tokens."""
    centred, mean = _centred(_tokens(state, valid), valid)
    count = jnp.maximum(valid.sum(axis=-1), 1).astype(mean.dtype)
    high = jnp.sqrt(jnp.square(centred).sum(axis=(-2, -1)))
    return high / (jnp.sqrt(count) * jnp.linalg.norm(mean, axis=-1))


def hfc_lfc_stationary(state: State, valid: Valid) -> PerSequence:
    """Return ‖X − 1x_f‖_F/(√n ‖x_f‖) of each sequence, x_f its first token.

    Of causal self-attention, whose first token attends to itself alone: with rows of A that sum to
    1, e₁ᵀA = e₁ᵀ for every head, and tokens become alike by becoming the first.
    """
    x = _tokens(state, valid)
    place = jnp.argmax(valid, axis=-1)[:, None, None]
    first = jnp.take_along_axis(x, place, axis=-2)
    apart = jnp.where(valid[..., None], x - first, 0)
    count = jnp.maximum(valid.sum(axis=-1), 1).astype(x.dtype)
    shared = jnp.sqrt(count) * jnp.linalg.norm(first[..., 0, :], axis=-1)
    return jnp.linalg.norm(apart, axis=(-2, -1)) / shared


def token_cosine(state: State, valid: Valid) -> PerSequence:
    """Return the mean of cos(x_i, x_j) over pairs i < j, from ‖Σ x_i/‖x_i‖‖² and no table of pairs.

    It loses what lies below rounding of the number of tokens, and takes a hundredth of the time.
    """
    x = _tokens(state, valid)
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    unit = x / jnp.where(norm == 0, 1, norm)
    count = valid.sum(axis=-1).astype(x.dtype)
    themselves = (norm[..., 0] > 0).sum(axis=-1).astype(x.dtype)
    pairs = jnp.maximum(count * (count - 1), 1)
    return (jnp.square(unit.sum(axis=-2)).sum(axis=-1) - themselves) / pairs


def token_rms(state: State, valid: Valid) -> PerSequence:
    """Return the mean over a sequence's tokens of √(mean of x²).

    The norm divides each token by its own; this is their mean (MEASURES §11 has the exact map).
    """
    x = _tokens(state, valid)
    rms = jnp.sqrt(jnp.square(x).mean(axis=-1))
    return rms.sum(axis=-1) / jnp.maximum(valid.sum(axis=-1), 1).astype(x.dtype)


def singular_squares(x: State) -> Float[Array, "batch rank"]:
    """Return σ² of each matrix, in any order.

    In float64 they are the eigenvalues of the smaller Gram matrix, for a fraction of what singular
    values cost. That loses what lies below 1e-8 σ₁, and states were computed in float32, whose
    rounding is larger. Where there is no float64 that would be 3e-4 σ₁, and σ is taken itself.
    """
    if x.dtype != jnp.float64:
        return jnp.square(singular_values(x))
    transposed = jnp.swapaxes(x, -1, -2)
    gram = x @ transposed if x.shape[-2] <= x.shape[-1] else transposed @ x
    return jnp.maximum(symmetric_eigenvalues(gram), 0)


def _tokens(state: State, valid: Valid) -> State:
    """Return the state in the widest float there is, 0 where there is no token."""
    return jnp.where(valid[..., None], state.astype(jnp.result_type(float)), 0)


def _centred(x: State, valid: Valid) -> tuple[State, Float[Array, "batch embed"]]:
    """Return x − x̄ over the valid tokens, exactly 0 where that is rounding, and x̄."""
    count = jnp.maximum(valid.sum(axis=-1), 1).astype(x.dtype)
    mean = x.sum(axis=-2) / count[:, None]
    centred = jnp.where(valid[..., None], x - mean[:, None, :], 0)
    rounding = x.shape[-2] * jnp.finfo(x.dtype).eps * jnp.linalg.norm(x, axis=-1, keepdims=True)
    apart = jnp.linalg.norm(centred, axis=-1, keepdims=True)
    return jnp.where(apart <= rounding, 0, centred), mean


def _pairs(x: State, valid: Valid) -> tuple[PerSequence, PerSequence]:
    """Return the mean over pairs of tokens of the cosine, and of its absolute value."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    unit = x / jnp.where(norm == 0, 1, norm)
    cosines = unit @ jnp.swapaxes(unit, -1, -2)
    itself = jnp.eye(x.shape[-2], dtype=bool)
    cosines = jnp.where(itself, 0, cosines)
    count = valid.sum(axis=-1).astype(x.dtype)
    pairs = jnp.maximum(count * (count - 1), 1)
    return cosines.sum(axis=(-2, -1)) / pairs, jnp.abs(cosines).sum(axis=(-2, -1)) / pairs
