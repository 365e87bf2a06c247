"""A model is the list of its stages: their composition, and what they say of themselves."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import FORMS, case

from saturation.errors import ArgumentError
from saturation.models import T5, T5Config
from saturation.models.base import (
    Stack,
    config_of_parameters,
    describe_model,
    model_config,
    recorded_model,
)


def composed(config, flat, tokens):
    """The streams behind the last stage but the head, logits, and taps by the names of `T5`'s."""
    streams, taps = {}, {}
    named = {
        name: jnp.asarray(ids) for name, ids in zip(("encoder", "decoder"), tokens, strict=True)
    }
    for stage in config.stages():
        parameters = {ours: flat[name] for ours, name in stage.parameters.items()}
        moved = {**streams}
        streams, inner = stage.step(parameters, streams, named)
        assert {*moved} - {*stage.reads} <= {*streams}
        for scope, path in stage.scopes.items():
            state = streams
            for key in path:
                state = state[key]
            taps[scope] = state
        if stage.attention is not None:
            taps |= {f"{stage.attention.path}/{name}": tap for name, tap in inner.items()}
    return streams, inner["logits"], taps


@pytest.mark.parametrize("form", FORMS)
def test_a_model_is_the_composition_of_its_stages(form):
    config, flat, params, tokens = case(form, encoder_length=8, decoder_length=6)
    flat = {name: array.astype(np.float32) for name, array in flat.items()}
    logits, taps = T5(config).apply({"params": params}, *tokens, attention_weights=True)
    _, found, ours = composed(config, flat, tokens)
    np.testing.assert_array_equal(found, logits)
    assert ours.keys() == taps.keys()
    for name, tap in taps.items():
        np.testing.assert_array_equal(ours[name], tap, err_msg=name)


@pytest.mark.parametrize("name", ["t5-small", "t5-v1_1-base", "umt5-small"])
def test_stages_read_every_parameter_and_their_functions_do_not_grow_in_number(name):
    config = T5Config.published(name)
    stages, shapes = config.stages(), config.parameter_shapes()
    assert {each for stage in stages for each in stage.parameters.values()} == {*shapes}
    assert len({stage.key for stage in stages}) == 8
    by_key = {}
    for stage in stages:
        ours = {local: shapes[there] for local, there in stage.parameters.items()}
        assert by_key.setdefault(stage.key, ours) == ours
    assert [a.path for a in config.attentions] == [s.attention.path for s in stages if s.attention]
    states = [scope for stage in stages for scope in stage.scopes]
    assert sorted(states) == sorted(
        scope for stack in config.stacks for scope in (stack.embedding, *stack.scopes)
    )


def test_an_attention_says_what_it_is():
    config = FORMS["v1_0"]
    [own, causal, cross] = config.attentions
    assert (own.path, own.kind, own.causal) == ("encoder/layers_0/attention", "self", False)
    assert (causal.kind, causal.causal, causal.layer) == ("self", True, "decoder/layers_0")
    assert (cross.kind, cross.keys_stack, cross.norm) == (
        "cross", "encoder", "encoder/encoder_norm/scale")  # fmt: skip
    assert {a.norm for a in config.attentions} <= {*config.parameter_shapes()}


def test_one_stack_needs_no_name():
    assert Stack.of("", 1).scopes == ("layers_0", "final")
    assert Stack.of("decoder", 2, final=False).scopes == ("decoder/layers_0", "decoder/layers_1")


def test_what_a_run_records_of_a_model_is_read_back():
    config = FORMS["umt5"]
    described = json.loads(json.dumps(describe_model(config)))
    stacks, attentions = recorded_model(described)
    assert (tuple(stacks), tuple(attentions)) == (config.stacks, config.attentions)
    del described["attentions"][0]["causal"]
    with pytest.raises(ArgumentError, match=r"model in run.json cannot be read"):
        recorded_model(described)


def test_the_family_is_told_by_the_names():
    config = FORMS["umt5"]
    assert config_of_parameters(config.parameter_shapes()) == config
    with pytest.raises(ArgumentError, match="A T5 has an array token_embedder/embedding"):
        config_of_parameters({"wte": (3, 4)})

    class Made:
        path, settings, parameters = "made", {}, config.parameter_shapes()

    assert model_config(Made()) == config
