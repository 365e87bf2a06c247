"""The one layer, in the form the theory is about and as an ordinary transformer.

Attention of the last token m over the tokens before it, in terms of their counts:

    b_l ∝ count_l · e^{z_ml},   f = b/‖b‖₂,   logits = Yᵀ f,   p = softmax(logits)

Z = U W_Q W_Kᵀ Uᵀ/√d and Y = U W_V W_O Uᵀ of an ordinary layer with embedding U. Source: arXiv
2305.16380, section 2 and equations (2) and (4).

Products of matrices are float32's own on every device: what an accelerator takes for float32 by
default has three digits, of which theory and training would differ visibly.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saturation.attention import attend, attention_scores, tempered_softmax

exact_products = partial(jax.default_matmul_precision, "highest")


class Parameters(NamedTuple):
    """The layer's two matrices.

    Attributes:
        y: row l says what token l speaks for.
        z: row m holds the scores that last token m gives each key.
    """

    y: Float[Array, "vocab vocab"]
    z: Float[Array, "vocab vocab"]


class Sequences(NamedTuple):
    """What the layer sees of sequences: it has no positions, so that counts are enough.

    Attributes:
        last: the last token of each.
        tokens: ids that may occur before it, each once.
        counts: how often each does; or probabilities, for sequences without end.
        following: the token to predict.
    """

    last: Int[Array, " batch"]
    tokens: Int[Array, "batch support"]
    counts: Float[Array, "batch support"]
    following: Int[Array, " batch"]


def attended(z: Float[Array, "vocab vocab"], sequences: Sequences) -> Float[Array, "batch support"]:
    """b: the share of the attention that each token gets, all its occurrences together."""
    present = sequences.counts > 0
    scores = z[sequences.last[:, None], sequences.tokens]
    scores = scores + jnp.log(jnp.where(present, sequences.counts, 1.0))
    return tempered_softmax(scores, 1.0, where=present)


def logits(parameters: Parameters, sequences: Sequences) -> Float[Array, "batch vocab"]:
    """Yᵀ b/‖b‖₂."""
    b = attended(parameters.z, sequences)
    f = b / jnp.linalg.norm(b, axis=1, keepdims=True)
    rows = jnp.arange(len(f))[:, None]
    on_every_process = jnp.zeros((len(f), len(parameters.y)), f.dtype)
    rows_of_y = on_every_process.at[rows, sequences.tokens].set(f, unique_indices=True)
    with exact_products():
        return rows_of_y @ parameters.y


def log_probabilities(parameters: Parameters, sequences: Sequences) -> Float[Array, " batch"]:
    """ln p(next token) of each sequence."""
    log_p = jax.nn.log_softmax(logits(parameters, sequences))
    return jnp.take_along_axis(log_p, sequences.following[:, None], axis=1)[:, 0]


def loss(parameters: Parameters, sequences: Sequences) -> Float[Array, ""]:
    """Mean of −ln p(next token), in nats."""
    return -jnp.mean(log_probabilities(parameters, sequences))


def lemma_1(
    parameters: Parameters,
    tokens: Int[Array, " context"],
    last: int | Int[Array, ""],
    following: int | Int[Array, ""],
) -> Parameters:
    """The directions in which one sequence moves Y and Z, in closed form (Lemma 1).

    Ẏ = f (e − α)ᵀ and Ż = x_T (e − α)ᵀ Yᵀ (P⊥_f/‖Xᵀb‖) Xᵀ diag(b) X, for learning rates of 1, with
    X the one-hot context, e the one-hot next token, α the predicted distribution and P⊥_f the
    projection away from f.

    Args:
        parameters: where.
        tokens: ids before the last one.
        last: the last token.
        following: the one to predict.
    """
    vocab = len(parameters.y)
    x = jax.nn.one_hot(tokens, vocab)
    with exact_products():
        b = jax.nn.softmax(x @ parameters.z[last])
        norm = jnp.linalg.norm(x.T @ b)
        f = x.T @ b / norm
        error = jax.nn.one_hot(following, vocab) - jax.nn.softmax(f @ parameters.y)
        projection = (jnp.eye(vocab) - jnp.outer(f, f)) / norm
        row = error @ parameters.y.T @ projection @ (x.T * b) @ x
    return Parameters(y=jnp.outer(f, error), z=jnp.outer(jax.nn.one_hot(last, vocab), row))


class OneLayer(nn.Module):
    """The same layer as a transformer is written: embeddings, heads, products of matrices.

    Attributes:
        vocab_size: M.
        embed: width of the embedding U.
    """

    vocab_size: int
    embed: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch vocab"]:
        """Logits of the token after `tokens`; the last one attends to all before it."""
        with exact_products():
            return self._logits(tokens)

    def _logits(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch vocab"]:
        embedding = nn.Embed(self.vocab_size, self.embed, name="token_embedder")
        context, last = tokens[:, :-1], tokens[:, -1:]
        query = nn.Dense(self.embed, use_bias=False, name="query")(embedding(last))
        key = nn.Dense(self.embed, use_bias=False, name="key")(embedding(context))
        # f is normalised over the vocabulary, before values and output project it.
        one_hot = jax.nn.one_hot(context, self.vocab_size)[:, :, None]
        scores = attention_scores(query[:, :, None] * self.embed**-0.5, key[:, :, None])
        b = attend(tempered_softmax(scores, 1.0), one_hot)[:, 0, 0]
        f = b / jnp.linalg.norm(b, axis=1, keepdims=True)
        value = nn.Dense(self.embed, use_bias=False, name="value")(f @ embedding.embedding)
        out = nn.Dense(self.embed, use_bias=False, name="out")(value)
        return out @ embedding.embedding.T


def as_parameters(params: dict) -> Parameters:
    """Y = U W_V W_O Uᵀ and Z = U W_Q W_Kᵀ Uᵀ/√d of the parameters of a `OneLayer`."""
    u = params["token_embedder"]["embedding"]
    query, key, value, out = (params[name]["kernel"] for name in ("query", "key", "value", "out"))
    scale = u.shape[1] ** -0.5
    with exact_products():
        return Parameters(y=u @ value @ out @ u.T, z=(u @ query * scale) @ (u @ key).T)
