"""Logits of T5s as transformers computes them, and the settings that its config.json decides."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_writers import hugging_face, t5_parameters, write_hugging_face
from t5_reference import nested
from transformers_models import KINDS

from saturation.checkpoints import open_checkpoint
from saturation.errors import ArgumentError, CheckpointFormatError
from saturation.models import T5, T5Config

VARIABLE = "SATURATION_TRANSFORMERS_PYTHON"


def logits_of(checkpoint, encoder, decoder):
    parameters = {name: checkpoint.read(name) for name in checkpoint.parameters}
    model = T5(T5Config.from_checkpoint(checkpoint))
    variables = {"params": nested(parameters)}
    return np.asarray(model.apply(variables, encoder.astype("i4"), decoder.astype("i4"))[0])


def interpreters():
    if VARIABLE in os.environ:
        return os.environ[VARIABLE].split(":")
    here = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    return [sys.executable if here else None]


def written_by(interpreter, script, folder):
    """The folder, in which a script beside this file has written models and what they compute."""
    if interpreter is None:
        pytest.skip(
            f"needs the extra `parity`, or {VARIABLE}: interpreters that have torch and "
            "transformers, with ':' between"
        )
    path = Path(__file__).with_name(script)
    subprocess.run([interpreter, str(path), str(folder)], check=True, timeout=600)
    return folder


@pytest.fixture(scope="module", params=interpreters(), ids=lambda path: str(path).split("/bin")[0])
def by_transformers(request, tmp_path_factory):
    return written_by(request.param, "transformers_models.py", tmp_path_factory.mktemp("t5s"))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(by_transformers, kind):
    saved = np.load(by_transformers / f"{kind}.npz")
    checkpoint = open_checkpoint(by_transformers / kind)
    found = logits_of(checkpoint, saved["encoder"], saved["decoder"])
    largest = np.abs(saved["logits"]).max()
    np.testing.assert_allclose(found / largest, saved["logits"] / largest, rtol=0, atol=1e-5)


V5 = {"transformers_version": "5.24.0", "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("kind", "tied_arrays", "config", "scales"),
    [
        ("t5", True, {}, True),
        ("t5", False, {"tie_word_embeddings": False}, False),
        ("t5", True, {**V5, "scale_decoder_outputs": False}, False),
        ("t5", True, {**V5, "scale_decoder_outputs": True}, True),
        ("umt5", True, {**V5, "scale_decoder_outputs": False}, False),
        ("umt5", False, {"tie_word_embeddings": False}, False),
        ("mt5", True, V5, False),
        ("mt5", False, {"tie_word_embeddings": False, "transformers_version": "4.57.1"}, False),
        ("mt5", True, {"tie_word_embeddings": True, "transformers_version": "4.57.1"}, True),
    ],
)
def test_config_json_decides_the_scale_of_the_logits(tmp_path, kind, tied_arrays, config, scales):
    arrays = t5_parameters(tied=tied_arrays, umt5=kind == "umt5")
    path = write_hugging_face(tmp_path / "a", hugging_face(arrays), model_type=kind, **config)
    checkpoint = open_checkpoint(path)
    settings = T5Config.from_checkpoint(checkpoint)
    assert settings.scales_logits is scales
    encoder, decoder = np.array([[2, 3, 4]]), np.array([[0, 3]])
    parameters = {"params": nested({n: checkpoint.read(n) for n in checkpoint.parameters})}
    model = T5(settings)
    found, taps = model.apply(parameters, encoder.astype("i4"), decoder.astype("i4"))
    head = arrays.get("decoder/logits_dense/kernel", arrays["token_embedder/embedding"].T)
    stream = np.asarray(taps["decoder/final"], np.float64)
    by_hand = stream @ head.astype(np.float64) / (np.sqrt(settings.emb_dim) if scales else 1)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-5 * np.abs(by_hand).max())


def written(tmp_path, **config):
    arrays = t5_parameters(gated=config.pop("gated", True))
    path = write_hugging_face(
        tmp_path / "a", hugging_face(arrays), **{"tie_word_embeddings": False, **config}
    )
    return open_checkpoint(path)


@pytest.mark.parametrize(
    ("projection", "activations"),
    [
        ("gated-gelu", ("gelu", "linear")),
        ("gated-gelu_new", ("gelu", "linear")),
        ("gated-silu", ("silu", "linear")),
        ("gated-swish", ("silu", "linear")),
        ("gated-relu", ("relu", "linear")),
        ("relu", ("relu",)),
        ("silu", ("silu",)),
        ("gelu_new", ("gelu",)),
    ],
)
def test_activations_are_those_that_the_config_names(tmp_path, projection, activations):
    checkpoint = written(tmp_path, gated=len(activations) > 1, feed_forward_proj=projection)
    assert T5Config.from_checkpoint(checkpoint).mlp_activations == activations


def test_epsilon_and_distance_are_those_of_the_config(tmp_path):
    given = {"layer_norm_epsilon": 1e-3, "relative_attention_max_distance": 20}
    config = T5Config.from_checkpoint(written(tmp_path, **given))
    assert (config.layer_norm_epsilon, config.relative_attention_max_distance) == (1e-3, 20)


@pytest.mark.parametrize(
    ("projection", "more", "named"),
    [
        ("gated-quick_gelu", {}, "quick_gelu"),
        ("gated-gelu", {"dense_act_fn": "gelu"}, "gelu with erf"),
        ("gelu", {"gated": False}, "gelu with erf"),
        ("mish", {"gated": False}, "mish"),
    ],
)
def test_an_unknown_activation_is_refused_by_name_where_the_model_runs(
    tmp_path, projection, more, named
):
    checkpoint = written(tmp_path, feed_forward_proj=projection, **more)
    assert checkpoint.parameters  # the weights can be measured all the same
    with pytest.raises(ArgumentError, match=f"a: .*of relu, gelu, silu, linear, not '{named}'"):
        T5Config.from_checkpoint(checkpoint)


def test_activations_that_the_arrays_contradict_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"with 2 input projections, .* said to be relu"):
        T5Config.from_checkpoint(written(tmp_path, feed_forward_proj="relu"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale_decoder_outputs", "yes"),
        ("tie_word_embeddings", [1]),
        ("layer_norm_epsilon", "small"),
        ("relative_attention_max_distance", True),
        ("relative_attention_max_distance", -1),
        ("dense_act_fn", 3),
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_their_key(tmp_path, key, value):
    arrays = hugging_face(t5_parameters())
    path = write_hugging_face(tmp_path / "a", arrays)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointFormatError, match=rf"config\.json: {key} must be "):
        open_checkpoint(path)
