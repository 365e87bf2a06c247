"""Tiny T5s and batches for the tests of activation measures, and their forward passes by numpy."""

from __future__ import annotations

from functools import partial, reduce
from operator import or_

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from t5_reference import nested, random_parameters, random_tokens

from saturation.checkpoints.base import Parameter
from saturation.measures.base import STEP, ActivationMeasure, expand_wildcards
from saturation.models import T5Config
from saturation.models.outputs import Asked, outputs_of_stages
from saturation.text.sequences import TokenBatch

KEY_KINDS = np.array([1, 2, 1, 0, 2, 1, 2, 1, 0, 1, 2, 1], np.int8)  # of FORMS' 12 ids
QUICK = {"xla_backend_optimization_level": 0}  # compiling is most of what these tests take
_SIZES = {"vocab_size": 12, "emb_dim": 8, "num_heads": 2, "mlp_dim": 10}
FORMS = {
    "v1_0": T5Config(**_SIZES, head_dim=4, num_encoder_layers=1, num_decoder_layers=1),
    "umt5": T5Config(
        **_SIZES,
        head_dim=3,
        num_encoder_layers=1,
        num_decoder_layers=1,
        mlp_activations=("gelu", "linear"),
        logits_via_embedding=False,
        per_layer_relative_bias=True,
    ),
}


def case(form="v1_0", seed=0, dtype=np.float32, scale=0.3, positions=True, **sizes):
    """A configuration, flat float64 parameters, nested ones in `dtype`, and padded tokens.

    Without positions the relative bias is 0, and tokens that repeat in the encoder tie. At this
    scale no weight of attention falls below rounding; at a larger one they come so close to each
    other even with positions that rounding decides whether they tie.
    """
    config = FORMS[form]
    flat = random_parameters(config, seed, scale)
    if not positions:
        flat |= {name: 0 * array for name, array in flat.items() if "relpos_bias" in name}
    params = nested({name: array.astype(dtype) for name, array in flat.items()})
    return config, flat, params, random_tokens(config, seed, **sizes)


def asked_of(config, encoder_tokens, decoder_tokens, **settings):
    """What any measure may ask for."""
    tokens = {
        "encoder": jax.numpy.asarray(encoder_tokens),
        "decoder": jax.numpy.asarray(decoder_tokens),
    }
    every = jax.numpy.ones(len(encoder_tokens), bool)
    given = {"key_kinds": KEY_KINDS, "iterated": every} | settings
    return Asked(config, tokens, config.valid_tokens(tokens), **given)


def outputs_of(measures, asked, params):
    """Each stage's outputs, with the forward passes that these measures need."""
    needs = reduce(or_, (measure.needs(asked.limits, asked.scale) for measure in measures))
    flat = flatten_dict(params, sep="/")
    for _, outputs in outputs_of_stages(asked, flat, needs):
        yield outputs


def attentions_of(measures, config, params, tokens):
    """Each attention's outputs, by its path."""
    asked = asked_of(config, *tokens)
    found = (outputs.attention for outputs in outputs_of(measures, asked, params))
    return {each.attention.path: each for each in found if each is not None}


def observe_stages(measures, asked, params):
    """What each measure sees of all stages together: {measure: {scope: {name: array}}}."""
    found = {measure.name: {} for measure in measures}
    for outputs in outputs_of(measures, asked, params):
        for measure in measures:
            scopes = found[measure.name]
            for scope, sums in measure.observe(outputs).items():
                scopes[scope] = scopes.get(scope, {}) | sums
    return found


def completed(measure: ActivationMeasure, found):
    """The statistics, as the driver makes them of what was observed."""
    found = jax.device_get(found)
    for last in (measure.on_host, measure.finish):
        found = found if last is None else last(found)
    return expand_wildcards({scope: measure.filled(sums) for scope, sums in found.items()})


def jitted(measure: ActivationMeasure, config: T5Config, traces: list | None = None, **settings):
    """What the measure sees, compiled in one piece; the driver compiles it stage by stage."""

    @partial(jax.jit, compiler_options=QUICK)
    def observe(params, encoder_tokens, decoder_tokens):
        if traces is not None:
            traces.append(None)
        asked = asked_of(config, encoder_tokens, decoder_tokens, **settings)
        return observe_stages((measure,), asked, params)[measure.name]

    return observe


def table(measure: ActivationMeasure, statistics):
    """{scope: {metric: float}} of one step."""
    return {
        scope: {
            metric: float(values[0])
            for metric, values in measure.metrics(
                {name: np.asarray([value], np.float64) for name, value in sums.items()}
                | {STEP: np.zeros(1)}
            ).items()
        }
        for scope, sums in statistics.items()
    }


def observe_table(measure, config, params, tokens, **settings):
    return table(measure, completed(measure, jitted(measure, config, **settings)(params, *tokens)))


def valid_rows(encoder, decoder):
    """Which positions hold tokens, by the definition."""
    real = encoder > 0
    first = np.arange(decoder.shape[1]) == 0
    return real, ((decoder > 0) | first) & real.any(1, keepdims=True)


class MadeCheckpoint:
    """What the driver reads of a checkpoint; keeps count of the elements read."""

    path = "made"

    def __init__(self, config, flat):
        self.settings = {}
        float32 = np.dtype(np.float32)
        self.parameters = {n: Parameter(s, float32) for n, s in config.parameter_shapes().items()}
        self.flat, self.elements = flat, 0

    def read(self, name, index):
        self.elements += self.flat[name][index].size
        return self.flat[name][index]


def checkpoint_and_tokens():
    """A checkpoint and three sequences for it."""
    config, flat, _, (encoder, decoder) = case(encoder_length=8, decoder_length=6)
    return MadeCheckpoint(config, flat), TokenBatch(encoder, decoder, "made")
