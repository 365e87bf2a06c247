"""One layer's self-attention with its weights frozen: an exact linear map of the stream (§11).

Its norm divides token by token by r_i = √(mean of x_i² + ε). With D = diag(r), A_h the attention of
head h and H_h = diag(g) W_V^h W_O^h, the layer adds Σ_h A_h D⁻¹ X H_h to the stream X. So
L: X ↦ X + Σ_h A_h D⁻¹ X H_h gives exactly what the self-attention made of X, and what it would make
if it acted again and again. No eigenvectors are taken: L of a causal attention is numerically
defective, and complex modes have no phase of their own.

A LayerNorm takes the mean off first, as H_h then does, and r_i is of what is left; without a norm
r_i = 1; a norm behind the branch (OLMo 2) divides the rows of what is added by their own r_i
instead. Biases add the same to every token and are no part of L, nor is a bound on values (OLMo).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saturation.measures.smoothing.similarity import hfc_lfc, token_cosine

State = Float[Array, "batch query embed"]
PerSequence = Float[Array, " batch"]

ITERATIONS = 400  # K: what is reported is of the second half of them
AGREEMENT = 1e-2  # between the two halves of that half


class Operator(NamedTuple):
    """The frozen layer L, for each sequence of a batch; see `freeze`.

    Attributes:
      weights: A_h, 0 from and to padding.
      divisor: r_i of each token, 1 where there is none.
      value: diag(g) W_V of all heads.
      out: W_O of all heads.
      valid: which positions hold a token.
    """

    weights: Float[Array, "batch heads query query"]
    divisor: Float[Array, "batch query"]
    value: Float[Array, "heads embed head_dim"]
    out: Float[Array, "heads head_dim embed"]
    valid: Bool[Array, "batch query"]

    def __call__(self, state: State) -> State:
        """Return L(X) = X + Σ_h A_h D⁻¹ X H_h; rows of padding stay 0."""
        heads, embed, head_dim = self.value.shape
        value = self.value.transpose(1, 0, 2).reshape(embed, heads * head_dim)
        values = (state / self.divisor[..., None]) @ value
        by_head = values.reshape(*values.shape[:-1], heads, head_dim).transpose(0, 2, 1, 3)
        mixed = (self.weights @ by_head).transpose(0, 2, 1, 3).reshape(values.shape)
        return state + mixed @ self.out.reshape(heads * head_dim, embed)


def freeze(
    weights: Float[Array, "batch heads query query"],
    value: Float[Array, "heads embed head_dim"],
    out: Float[Array, "heads head_dim embed"],
    state: State,
    valid: Bool[Array, "batch query"],
    epsilon: float,
    kind: str | None = "rms",
) -> tuple[Operator, State]:
    """Return L and X₀, with X₀ = 0 where there is no token, in the dtype of the state.

    Args:
      weights: of the attention, rows of valid queries summing to 1 over valid keys.
      value, out: diag(g) W_V^h and W_O^h, as `spectrum.split_heads` returns them.
      state: the layer's input.
      valid: which positions hold a token.
      epsilon: what the norm adds to the mean square.
      kind: of the norm that values are made of: "rms", "layer", or None where there is none.
    """
    start = jnp.where(valid[..., None], state, 0)
    both = valid[:, None, :, None] & valid[:, None, None, :]
    centred = start - start.mean(axis=-1, keepdims=True) if kind == "layer" else start
    divisor = jnp.sqrt(jnp.square(centred).mean(axis=-1) + epsilon)
    divisor = jnp.where(valid, divisor, 1) if kind else jnp.ones_like(divisor)
    kept = jnp.where(both, weights.astype(start.dtype), 0)
    left, right = value.astype(start.dtype), out.astype(start.dtype)
    return Operator(kept, divisor, left, right, valid), start


def behind_norm(
    operator: Operator, start: State, scale: Float[Array, " embed"], epsilon: float
) -> Operator:
    """Return L of an attention whose output an RMSNorm normalises, frozen at X₀.

    Args:
      operator: L without that norm.
      start: X₀.
      scale: g of that norm.
      epsilon: what it adds to the mean square.
    """
    added = operator(start) - start
    divisor = jnp.sqrt(jnp.square(added).mean(axis=-1) + epsilon)
    weights = operator.weights / divisor[:, None, :, None]
    return operator._replace(weights=weights, out=operator.out * scale)


def widened(operator: Operator) -> Operator:
    """Return L in the widest float there is."""
    wide = jnp.result_type(float)
    weights, divisor, value, out = (each.astype(wide) for each in operator[:-1])
    return Operator(weights, divisor, value, out, operator.valid)


def change_ahead(
    operator: Operator, start: State, after: State, layers: Int[Array, ""] | int
) -> PerSequence:
    """Return (ln HFC/LFC(L^m X₀) − ln HFC/LFC(X₀))/m, m the layers left, this one among them.

    For one layer it is what its self-attention did, and no forecast. L is applied in its own
    dtype, which is that of the forward pass: X₀ and the weights are no more precise, and few
    products do not add to that. Only the ratios are taken in the widest float there is.

    Args:
      operator: L.
      start: X₀.
      after: L(X₀), which the forward pass knows.
      layers: m.
    """
    last = jax.lax.fori_loop(1, layers, lambda _, state: _normed(operator(state))[0], after)
    change = jnp.log(hfc_lfc(last, operator.valid) / hfc_lfc(start, operator.valid))
    return change / jnp.asarray(layers, change.dtype)


def iterate(operator: Operator, start: State) -> dict[str, PerSequence]:
    """Return what X_{k+1} = L(X_k)/‖L(X_k)‖ comes to, over the second half of `ITERATIONS`.

    joint_growth = exp of the mean of ln ‖L(X_k)‖; joint_token_cosine, the mean of the mean cosine
    over pairs of tokens; joint_hfc_lfc, the geometric mean of HFC/LFC; joint_converged = 1 where
    the two halves of those iterates agree to `AGREEMENT` in all three (growth and HFC/LFC by their
    logarithms, so relatively). Of a sequence of fewer than two tokens the numbers mean nothing.
    """
    window = ITERATIONS // 2
    state, _ = _normed(start)
    state = jax.lax.fori_loop(0, ITERATIONS - window, lambda _, x: _normed(operator(x))[0], state)

    def observed(state: State, _: None) -> tuple[State, Float[Array, "three batch"]]:
        after, norm = _normed(operator(state))
        cosine = token_cosine(state, operator.valid)
        ratio = hfc_lfc(state, operator.valid)
        return after, jnp.stack([jnp.log(norm), cosine, jnp.log(ratio)])

    _, seen = jax.lax.scan(observed, state, length=window)  # (window, three, batch)
    growth, cosine, ratio = seen.mean(axis=0)
    early, late = seen[: window // 2].mean(axis=0), seen[window // 2 :].mean(axis=0)
    # Where both are −∞, of tokens equal to the last bit, they agree.
    agree = (jnp.abs(early - late) <= AGREEMENT) | (early == late)
    converged = jnp.where(jnp.isnan(growth), jnp.nan, agree.all(axis=0).astype(growth.dtype))
    return {
        "joint_growth": jnp.exp(growth),
        "joint_token_cosine": cosine,
        "joint_hfc_lfc": jnp.exp(ratio),
        "joint_converged": converged,
    }


def iterate_some(
    operator: Operator, start: State, asked: Bool[Array, " batch"]
) -> dict[str, PerSequence]:
    """Return what `iterate` does, one sequence after the other, of those asked for and else 0."""

    def one(row: tuple[Array, Array, Array, Array, Array]) -> dict[str, Array]:
        asked, *ours = row
        weights, divisor, valid, state = (each[None] for each in ours)
        alone = operator._replace(weights=weights, divisor=divisor, valid=valid)
        shapes = jax.eval_shape(iterate, alone, state)
        nothing = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return jax.lax.cond(asked, lambda: iterate(alone, state), lambda: nothing)

    rows = (asked, operator.weights, operator.divisor, operator.valid, start)
    return {name: each[:, 0] for name, each in jax.lax.map(one, rows).items()}


def _normed(state: State) -> tuple[State, PerSequence]:
    """Return X/‖X‖ and ‖X‖ of each sequence; 0 stays 0."""
    norm = jnp.linalg.norm(state, axis=(-2, -1))
    return state / jnp.where(norm == 0, 1, norm)[:, None, None], norm
