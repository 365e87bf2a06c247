"""The loss that a model was pretrained to lower, on the tokens given: what all else is set beside.

In nats, the mean over predicted tokens of −ln p(token); see `objective` for what is predicted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saturation.measures.base import ActivationMeasure, Found, Rule, Statistics
from saturation.measures.loss.objective import describe, own_tokens
from saturation.measures.means import mean_and_error, sum_names, sums_over_sequences
from saturation.models.base import Needs

if TYPE_CHECKING:
    from jax import Array

    from saturation.models.outputs import StageOutputs

TOTAL = "total"
STATISTICS: dict[str, Rule] = dict.fromkeys(sum_names("loss"), "sum")


def observe(outputs: StageOutputs) -> Found:
    """Return the sums of the losses of all predicted tokens, of the output head's stage alone."""
    import jax
    import jax.numpy as jnp

    if outputs.logits is None:
        return {}
    targets = _targets(outputs)
    predicted = targets >= 0
    chosen = jnp.maximum(targets, 0)[..., None]
    wide = outputs.logits.astype(jnp.result_type(float))
    normaliser = jax.nn.logsumexp(wide, axis=-1)
    losses = normaliser - jnp.take_along_axis(wide, chosen, axis=-1)[..., 0]
    return {TOTAL: sums_over_sequences("loss", losses, predicted)}


def _targets(outputs: StageOutputs) -> Array:
    """What each position has to say, −1 where nothing: what was given, or else the next token."""
    import jax.numpy as jnp

    tokens = outputs.asked.tokens
    if "targets" in tokens:
        return jnp.asarray(tokens["targets"])
    stack = outputs.asked.config.stacks[-1].name
    ids, valid = (jnp.asarray(each[stack]) for each in (tokens, outputs.asked.valid))
    following = jnp.where(valid[:, :-1] & valid[:, 1:], ids[:, 1:], -1)
    return jnp.pad(following, ((0, 0), (0, 1)), constant_values=-1)


def metrics(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return loss = mean over predicted tokens of −ln p (nats), and what goes with it.

    loss_stderr is its standard error over sequences, perplexity = e^loss, tokens the number of
    predicted tokens.
    """
    found = mean_and_error("loss", statistics)
    if not found:
        return {}
    with np.errstate(over="ignore"):
        perplexity = np.exp(found["loss"])
    return found | {"perplexity": perplexity, "tokens": statistics["loss_tokens"]}


LOSS = ActivationMeasure(
    name="loss",
    definition="mean of −ln p over the next tokens of a decoder, hidden ones of an encoder, "
    "cut-out spans of a T5; its standard error, perplexity and the number of tokens",
    source="Radford et al. 2019; Devlin et al. 2019; Raffel et al. 2020",
    statistics=STATISTICS,
    observe=observe,
    metrics=metrics,
    needs=lambda limits, scale: Needs(logits=True),
    own_tokens=own_tokens,
    describe=describe,
)
