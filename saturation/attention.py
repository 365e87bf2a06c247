"""Attention with a temperature: the only place where one is applied.

weights = softmax(scores/τ) over the allowed keys, for every τ >= 0 with one formula and one trace.
τ = 1 is the model; τ = 0 is exactly the limit τ → 0+, where the keys whose score equals the maximum
share the weight equally and all others have 0: saturated attention (Merrill et al. 2021, arXiv
2010.09697, section 2).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from saturation.errors import ArgumentError


def tempered_softmax(
    scores: Float[ArrayLike, "*shape"],
    temperature: ArrayLike,
    axis: int = -1,
    where: Bool[ArrayLike, "*broadcast"] | None = None,
) -> Float[Array, "*shape"]:
    """Softmax of `scores`/`temperature`, exact at temperature 0.

    weights_k = exp((s_k - m)/τ) / Σ_j exp((s_j - m)/τ), m = max_j s_j, with 0/0 defined as 0 in the
    exponent, over the keys j that `where` allows. Scores are compared in their own precision (two
    bfloat16 scores that rounded to the same number are a tie); the arithmetic is in float32, or in
    float64 where the scores are. Gradients are those of the formula for τ >= 1e-30, and 0 at τ = 0,
    where the weights are constant almost everywhere; for float16 scores the slope 1/τ in them (not
    the one in τ) is bounded by 4,094, which float16 has room for.

    Ties are those of the scores given. Equal tokens do not always have equal scores: sums of the
    same products in another order differ by roundings, on CPUs too. Whoever counts ties of
    computed scores compares them by `saturation.limit.ties`.

    Args:
      scores: an array of any real dtype. A score of -inf counts as a key that is not allowed.
      temperature: τ, a number or an array that broadcasts to the shape of `scores`. It may be
        traced: no value of it compiles anew. Where it varies along `axis` the formula above is
        meant literally, with one τ_k for each key.
      axis: the axis of the keys.
      where: boolean, broadcasts to the shape of `scores`; False removes a key before the maximum.

    Returns:
      Weights of the shape and dtype of `scores`; a row without any allowed key is all 0.
      Rows whose temperature is negative or NaN, where that is only known in a trace, are NaN.

    Raises:
      ArgumentError: a temperature known to be negative or NaN, shapes that do not broadcast,
        complex scores, or a `where` of numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> print(tempered_softmax(jnp.array([3.0, 1.0, 3.0]), 0))
      [0.5 0.  0.5]
    """
    scores = jnp.asarray(scores)
    if jnp.issubdtype(scores.dtype, jnp.complexfloating):
        raise ArgumentError(
            f"Scores must be real, to have a largest one; these are {scores.dtype}. Take their "
            "real part or their magnitude."
        )
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        scores = scores.astype(jnp.result_type(float))
    _check_temperature(temperature, scores.shape)
    _check_where(where, scores.shape)
    # Half precision holds the scores exactly inside float32, so ties are still those of the scores.
    wide = scores.astype(at_least_float32(scores.dtype))
    allowed = wide != -jnp.inf
    if where is not None:
        allowed &= where
    tau = jnp.asarray(temperature).astype(wide.dtype)
    tau = tau.reshape((1,) * (scores.ndim - tau.ndim) + tau.shape)
    # float16 holds no slope of 1/τ for τ < 1.5e-5: bounded, with room for a sum, it stays finite.
    steepest = float(jnp.finfo(scores.dtype).max) / 16
    return _weights(wide, tau, allowed, axis, steepest).astype(scores.dtype)


def attention(
    query: Float[Array, "*batch query heads head_dim"],
    key: Float[Array, "*batch key heads head_dim"],
    value: Float[Array, "*batch key heads head_dim"],
    *,
    bias: Float[Array, "*broadcast_bias"] | None = None,
    mask: Bool[Array, "*broadcast_mask"] | None = None,
    temperature: ArrayLike = 1.0,
) -> tuple[Float[Array, "*batch query heads head_dim"], Float[Array, "*batch heads query key"]]:
    """Multi-head attention, softmax((q·k + bias)/τ) v, as T5 does it: no 1/√head_dim.

    Args:
      query: (..., query, heads, head_dim).
      key: (..., key, heads, head_dim).
      value: (..., key, heads, head_dim).
      bias: added to the scores before the temperature; broadcasts to (..., heads, query, key).
      mask: boolean, True where the query may attend to the key; broadcasts as `bias` does.
      temperature: τ >= 0; see `tempered_softmax`.

    Returns:
      The attended values (..., query, heads, head_dim) and the weights (..., heads, query, key).
      Scores and weights have the dtype of `query`. The precision of the products is the caller's
      `jax.default_matmul_precision`.
    """
    weights = tempered_softmax(attention_scores(query, key, bias), temperature, where=mask)
    return attend(weights, value), weights


def attention_scores(
    query: Float[Array, "*batch query heads head_dim"],
    key: Float[Array, "*batch key heads head_dim"],
    bias: Float[Array, "*broadcast_bias"] | None = None,
) -> Float[Array, "*batch heads query key"]:
    """The scores q·k + bias of `attention`, before any mask and temperature."""
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key)
    return scores if bias is None else scores + bias.astype(scores.dtype)


def attend(
    weights: Float[Array, "*batch heads query key"],
    value: Float[Array, "*batch key heads head_dim"],
) -> Float[Array, "*batch query heads head_dim"]:
    """The mean of the values under `attention`'s weights."""
    return jnp.einsum("...hqk,...khd->...qhd", weights, value)


def at_least_float32(dtype: np.dtype) -> np.dtype:
    """The dtype that norms and softmax of `dtype` are computed in: float32, or wider if it is."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _weights(
    scores: Array, temperature: Array, allowed: Array, axis: int, steepest: float
) -> Array:
    del steepest  # only the derivative needs it
    maximum, difference = _from_maximum(scores, allowed, axis)
    # `scores < maximum` is asked of the scores, not of their difference: compiled code flushes
    # subnormal differences to zero, and 0/0 would then make a tie (or a NaN) of unequal scores.
    below = jnp.where((temperature == 0) & (scores < maximum), -jnp.inf, difference / temperature)
    exponents = jnp.where(allowed, jnp.where(scores == maximum, 0.0, below), -jnp.inf)
    exponential = jnp.exp(exponents)
    total = jnp.sum(exponential, axis=axis, keepdims=True)
    # A row with no allowed key has total 0; dividing by 1 there keeps its weights 0 and not NaN.
    weights = exponential / jnp.where(total == 0, 1.0, total)
    return jnp.where(temperature >= 0, weights, jnp.nan)


def _from_maximum(scores: Array, allowed: Array, axis: int) -> tuple[Array, Array]:
    """The maximum m over the allowed keys, and s - m (0 for the others)."""
    maximum = jnp.max(scores, axis=axis, keepdims=True, where=allowed, initial=-jnp.inf)
    return maximum, jnp.where(allowed, scores - maximum, 0.0)


@_weights.defjvp
def _weights_jvp(
    axis: int, steepest: float, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    """d weights = w (r - Σ w r), r = (ds - u dτ)/τ, u the exponent.

    Written out, because differentiating through (s - m)/τ multiplies weights of 0 by infinite
    slopes. Keys of weight 0 contribute 0. Below the τ where 1/τ has no room left in the dtype
    (1e-31 in float32) the derivative is that of the limit, 0.
    """
    scores, temperature, allowed = primals
    scores_dot, temperature_dot, _ = tangents
    weights = _weights(scores, temperature, allowed, axis, steepest)
    attended = weights > 0
    info = jnp.finfo(temperature.dtype)
    usable = temperature >= float(info.tiny) / float(info.eps)
    inverse = jnp.where(usable, 1 / jnp.where(usable, temperature, 1.0), 0.0)
    maximum, difference = _from_maximum(scores, allowed, axis)
    # The difference of a score of +inf from itself is NaN, and stands for 0.
    exponents = jnp.where(attended & jnp.isfinite(difference), difference, 0.0) * inverse
    # The maximum's own slope is one number a row. Left in, it cancels between `slope` and `mean`,
    # which costs the gradient at a dominating key its digits; where τ differs between keys it
    # does not cancel at all.
    scores_dot = scores_dot - _mean(scores_dot, allowed & (scores == maximum), axis)
    of_scores = scores_dot * jnp.minimum(inverse, steepest)
    of_temperature = exponents * temperature_dot * inverse
    slope = jnp.where(attended, of_scores - of_temperature, 0.0)
    mean = jnp.sum(weights * slope, axis=axis, keepdims=True)
    return weights, weights * (slope - mean)


def _mean(x: Array, where: Array, axis: int) -> Array:
    """The mean of `x` along an axis; 0 where there is nothing to take it of."""
    count = jnp.sum(where, axis=axis, keepdims=True, dtype=x.dtype)
    total = jnp.sum(jnp.where(where, x, 0.0), axis=axis, keepdims=True)
    return total / jnp.maximum(count, 1.0)


def _check_temperature(temperature: ArrayLike, shape: tuple[int, ...]) -> None:
    _check_broadcast("temperature", jnp.shape(temperature), shape)
    if isinstance(temperature, jax.core.Tracer):
        return
    value = np.asarray(temperature, dtype=np.float64)
    if not (value >= 0).all():
        bad = value[~(value >= 0)].flat[0]
        raise ArgumentError(f"A temperature must be 0 or more, and not NaN; this one is {bad}.")


def _check_where(where: ArrayLike | None, shape: tuple[int, ...]) -> None:
    if where is None:
        return
    dtype = jnp.result_type(where)
    if dtype != jnp.bool_:
        raise ArgumentError(
            f"`where` must be boolean, True for the keys that count; its dtype is {dtype}. Of a "
            "mask of 0 and 1 take `mask > 0`, and add a mask of 0 and -inf to the scores."
        )
    _check_broadcast("where", jnp.shape(where), shape)


def _check_broadcast(name: str, given: tuple[int, ...], shape: tuple[int, ...]) -> None:
    padded = (1,) * (len(shape) - len(given)) + tuple(given)
    if len(given) > len(shape) or any(a not in (1, b) for a, b in zip(padded, shape, strict=True)):
        raise ArgumentError(
            f"`{name}` must broadcast to the shape of the scores, {shape}; its shape is {given}."
        )
