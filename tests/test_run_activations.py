"""The driver of activation measures: whatever the batch size, one checkpoint has one answer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from activation_cases import case

from saturation.batches import TokenBatch
from saturation.checkpoints.base import Parameter
from saturation.errors import MeasureError
from saturation.measures.heads import HEADS
from saturation.run_activations import ActivationSettings, observe_checkpoint


def checkpoint_and_tokens():
    """What the driver reads of a checkpoint, and three sequences for it."""
    config, _, params, (encoder, decoder) = case(encoder_length=8, decoder_length=6)
    float32 = np.dtype(np.float32)
    parameters = {name: Parameter(s, float32) for name, s in config.parameter_shapes().items()}
    checkpoint = SimpleNamespace(parameters=parameters, path="made", load=lambda: params)
    return checkpoint, TokenBatch(encoder, decoder, "made")


def test_the_batch_size_does_not_matter_and_sums_are_float64():
    checkpoint, tokens = checkpoint_and_tokens()
    found = [
        observe_checkpoint(checkpoint, (HEADS,), ActivationSettings(tokens, batch_size=size))
        for size in (1, 3)
    ]
    for scope, statistics in found[1]["heads"].items():
        for name, value in statistics.items():
            assert value.dtype == np.float64
            np.testing.assert_allclose(found[0]["heads"][scope][name], value, rtol=1e-5, atol=1e-5)
    assert found[1]["heads"]["encoder/layers_0/attention/head_0"]["tokens"] == 15


def test_tokens_outside_the_vocabulary_are_refused():
    checkpoint, tokens = checkpoint_and_tokens()
    tokens.encoder_input_tokens[0, 0] = 12
    with pytest.raises(
        MeasureError, match=r"token 12, and the model in made has a vocabulary of 12"
    ):
        ActivationSettings(tokens).refuse_other_models(checkpoint.parameters, checkpoint.path)
