"""Influence in a small T5, step by step: how large an update may be for the first order to hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from saturation.studies.tracin.effects import explained

STEPS, JUDGED_EVERY = 150, 12  # of which the effects of each twelfth are measured
SCALES = (1.0, 0.3, 0.1, 0.01)  # parts of an update


@dataclass(frozen=True)
class SmallT5:
    """The same of a small T5 under Adafactor, at a relative rate, and of parts of its update."""

    rate: float


def train_t5(case: SmallT5, seed: int) -> dict[str, Any]:
    """Return R² of first-order and trapezoid effects of a T5's Adafactor steps, and of parts."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax.core import meta
    from jax.flatten_util import ravel_pytree

    from saturation.models import T5, T5Config
    from saturation.text.corpus import read_corpus
    from saturation.text.span_corruption import lengths_to_fill
    from saturation.text.vocabulary import ByteVocabulary, embedding_rows
    from saturation.training.data import SpanCorruptionBatches
    from saturation.training.step import cross_entropy

    vocabulary = ByteVocabulary()
    tokens = vocabulary.encode(read_corpus().text[:200_000])
    batches = SpanCorruptionBatches(tokens, vocabulary, lengths_to_fill(32, 0.15, 3.0), 4, seed)
    model = T5(T5Config(embedding_rows(vocabulary), 32, 2, 8, 64, 1, 1))
    held = batches(10**6)
    boxed = model.init(jax.random.key(seed), held.encoder_input_tokens, held.decoder_input_tokens)
    weights, unravel = ravel_pytree(meta.unbox(boxed["params"]))
    optimizer = optax.adafactor(case.rate, momentum=None)

    def loss(weights: Any, batch: Any) -> Any:
        inputs = batch.encoder_input_tokens, batch.decoder_input_tokens
        logits, _ = model.apply({"params": unravel(weights)}, *inputs)
        return cross_entropy(logits, batch.decoder_target_tokens)

    one_by_one = jax.tree.map(lambda leaf: leaf[:, None], held)
    tested = jax.vmap(jax.grad(loss), (None, 0))
    of_tests = jax.vmap(loss, (None, 0))

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        weights, _ = ravel_pytree(params)
        slope = unravel(jax.grad(loss)(weights, batch))
        update, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, update), state, ravel_pytree(update)[0]

    @jax.jit
    def judge(weights: Any, update: Any) -> Any:
        slopes, before = tested(weights, one_by_one), of_tests(weights, one_by_one)
        rows = []
        for scale in SCALES:
            moved = weights + scale * update
            after = tested(moved, one_by_one)
            first, middle = -slopes @ (scale * update), -(slopes + after) @ (scale * update) / 2
            rows.append(jnp.stack([first, middle, before - of_tests(moved, one_by_one)]))
        return jnp.stack(rows)

    params, effects = unravel(weights), []
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for number in range(STEPS):
            before = ravel_pytree(params)[0]
            params, state, update = step(params, state, batches(number))
            if number % JUDGED_EVERY == JUDGED_EVERY - 1:
                with jax.enable_x64(True):
                    wide = jnp.asarray(before, jnp.float64), jnp.asarray(update, jnp.float64)
                    effects.append(np.asarray(judge(*wide)))
    effects_of = np.concatenate(effects, axis=-1)
    found = {}
    for scale, (first, middle, actual) in zip(SCALES, effects_of, strict=True):
        found[f"first {scale:g}"] = explained(first, actual)["r2"]
        found[f"trapezoid {scale:g}"] = explained(middle, actual)["r2"]
    return found
