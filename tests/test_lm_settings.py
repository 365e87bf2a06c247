"""What a config.json says of a decoder's or encoder's computation, and what of it is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lm_families import FAMILIES

from saturation.errors import ArgumentError
from saturation.models.lm_config import LMConfig
from saturation.models.rotary import Rotary


def config_of(name, **changed):
    config = {**FAMILIES[name].config, **changed}
    return LMConfig.from_settings(
        {key: value for key, value in config.items() if value is not ...}, "here/config.json"
    )


@pytest.mark.parametrize("name", ["llama", "olmo", "olmo2", "qwen2"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_type": "default"}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0},
        ),
        (
            {
                "rope_theta": 1e4,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8,
                },
            },
            {
                "rope_theta": 1e4,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            },
        ),
    ],
)
def test_versions_4_and_5_say_the_same_rotary_positions(name, old, new):
    by_four = config_of(name, **old, torch_dtype="float16", transformers_version="4.40.0")
    by_five = config_of(name, rope_theta=..., rope_parameters=new, torch_dtype=..., dtype="float16")
    assert by_four == by_five
    assert by_four.rotary is not None
    assert by_four.rotary.base == old["rope_theta"]


def test_both_versions_of_gpt_neox():
    five = {"rope_theta": 100, "partial_rotary_factor": 0.5, "rope_type": "default"}
    by_five = config_of("gpt_neox", rotary_pct=..., rotary_emb_base=..., rope_parameters=five)
    assert by_five == config_of("gpt_neox")
    wide = config_of("gpt_neox", rotary_pct=..., rotary_emb_base=..., hidden_size=24)
    assert wide.rotary == Rotary(2, 10_000.0, original_max_positions=16)


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("llama", {"hidden_act": "mish"}, "hidden_act must be an activation of relu, gelu,"),
        ("llama", {"sliding_window": 128}, r"the key 'sliding_window' \(128\) is not known here"),
        ("llama", {"residual_multiplier": 0.2}, "the key 'residual_multiplier'"),
        ("llama", {"num_key_value_heads": 2}, "num_key_value_heads must divide the 3 heads"),
        ("llama", {"hidden_size": "wide"}, "hidden_size must be a whole number > 0, but is 'wide'"),
        ("llama", {"rope_scaling": {"type": "su", "factor": 2}}, "rope_type must be of default,"),
        ("llama", {"rope_scaling": {"type": "linear", "twist": 2}}, "parameter 'twist' is not"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        ("llama", {"rms_norm_eps": -1}, "rms_norm_eps must be a number > 0"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window must be False"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "layer_types must be"),
        ("bert", {"is_decoder": True}, "is_decoder must be False"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type must be"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention must be False"),
        ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads must be"),
        ("gpt2", {"n_embd": ...}, "n_embd must be a whole number > 0, but is None"),
        ("gpt2", {"model_type": "mamba"}, "models of the type 'mamba' are not run here"),
    ],
)
def test_what_changes_the_computation_is_refused_by_name(name, changed, says):
    with pytest.raises(ArgumentError, match=says) as found:
        config_of(name, **changed)
    assert str(found.value).startswith("here/config.json")


def test_what_is_of_training_and_sampling_alone_is_let_be():
    assert config_of(
        "gpt2",
        task_specific_params={"text-generation": {"max_length": 50}},
        embd_pdrop=0.1,
        summary_first_dropout=0.1,
        gradient_checkpointing=False,
        use_cache=True,
        some_new_key=None,
    ) == config_of("gpt2")


def test_padding_is_no_token_unless_it_ends_texts_too():
    assert config_of("olmo", pad_token_id=1, eos_token_id=2).pad_token_id == 1
    assert config_of("qwen2", pad_token_id=2, eos_token_id=[2, 3]).pad_token_id is None
    assert config_of("bert", pad_token_id=...).pad_token_id == 0
    assert config_of("gpt2").pad_token_id is None
    valid = config_of("olmo", pad_token_id=1).valid_tokens({"": np.array([[3, 1, 0, -1]])})
    assert valid[""].tolist() == [[True, False, True, False]]


def test_the_frequencies_of_each_scaling():
    plain = Rotary(8).frequencies(4)
    np.testing.assert_allclose(plain, [1, 0.1, 0.01, 0.001], rtol=1e-12)
    np.testing.assert_allclose(Rotary(8, scaling="linear", factor=4).frequencies(4), plain / 4)
    # What turns more than 4 times in 64 positions stays, less than once is divided by 8.
    llama = Rotary(8, scaling="llama3", factor=8.0, original_max_positions=64).frequencies(4)
    turns = 64 * plain / (2 * math.pi)
    between = (turns[1] - 1) / 3
    assert turns[0] > 4 > turns[1] > 1 > turns[2]
    np.testing.assert_allclose(llama[[0, 2, 3]], plain[[0, 2, 3]] / [1, 8, 8])
    np.testing.assert_allclose(llama[1], plain[1] * (between + (1 - between) / 8))
    # NTK: the same up to the original length, a larger base beyond.
    dynamic = Rotary(8, scaling="dynamic", factor=2.0, original_max_positions=16)
    np.testing.assert_allclose(dynamic.frequencies(16), plain)
    base = 10_000 * 3 ** (8 / 6)
    np.testing.assert_allclose(dynamic.frequencies(32), base ** -(np.arange(0, 8, 2) / 8))
    short, long = (1.0, 2.0, 3.0, 4.0), (2.0, 2.0, 2.0, 2.0)
    rope = Rotary(
        8,
        scaling="longrope",
        factor=4.0,
        original_max_positions=16,
        short_factors=short,
        long_factors=long,
    )
    np.testing.assert_allclose(rope.frequencies(16), plain / short)
    np.testing.assert_allclose(rope.frequencies(17), plain / long)
    assert rope.amplitude == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    assert Rotary(8).amplitude == 1.0


def test_rotary_positions_that_cannot_be_are_refused():
    for wrong, says in (
        ({"dims": 3}, "must be even"),
        ({"dims": 8, "scaling": "twist"}, "must be of default, linear"),
        ({"dims": 8, "scaling": "yarn"}, "needs original_max_positions > 0"),
        ({"dims": 8, "scaling": "longrope", "original_max_positions": 4}, "needs 4 short"),
    ):
        with pytest.raises(ArgumentError, match=says):
            Rotary(**wrong)
