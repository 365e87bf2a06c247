"""Scopes hold the arrays that MEASURES §1 says, for T5's names and for a foreign model's."""

from __future__ import annotations

from saturation.scopes import is_embedding, kind_of, layer_of, scopes

T5_NAMES = (
    "token_embedder/embedding",
    "encoder/relpos_bias/rel_embedding",
    "encoder/layers_0/attention/query/kernel",
    "encoder/layers_0/pre_mlp_layer_norm/scale",
    "encoder/layers_11/attention/query/kernel",
    "encoder/encoder_norm/scale",
    "decoder/layers_0/encoder_decoder_attention/out/kernel",
    "decoder/layers_1/relpos_bias/rel_embedding",
    "decoder/decoder_norm/scale",
    "decoder/logits_dense/kernel",
)


def test_t5_scopes_hold_what_the_definition_says() -> None:
    found = scopes(T5_NAMES)
    assert found["total"] == T5_NAMES
    assert found["embedding"] == ("token_embedder/embedding",)
    assert found["encoder"] == T5_NAMES[1:6]
    assert found["decoder"] == T5_NAMES[6:], "the head belongs to the decoder"
    assert found["encoder/attention/query"] == (T5_NAMES[2], T5_NAMES[4])
    assert found["encoder/layers_0"] == T5_NAMES[2:4]
    assert found["encoder/layers_11"] == (T5_NAMES[4],)
    # Neither a stack's shared bias nor its final norm nor the head lies in a block.
    assert found["blocks"] == (*T5_NAMES[2:5], *T5_NAMES[6:8])
    assert found["encoder/pre_mlp_layer_norm"] == (T5_NAMES[3],)
    assert found["decoder/relpos_bias"] == (T5_NAMES[7],)
    assert all(found[name] == (name,) for name in T5_NAMES)


def test_each_array_is_counted_once_in_a_scope() -> None:
    for scope, members in scopes(T5_NAMES).items():
        assert len(set(members)) == len(members), scope


def test_unshared_embeddings_belong_to_embedding_and_to_their_stack() -> None:
    found = scopes(("encoder/token_embedder/embedding", "decoder/token_embedder/embedding"))
    assert found["embedding"] == found["total"]
    assert found["encoder"] == ("encoder/token_embedder/embedding",)


def test_foreign_models_are_grouped_by_their_own_names() -> None:
    names = (
        "gpt_neox/embed_in/weight",
        "gpt_neox/layers/0/attention/query_key_value/weight",
        "gpt_neox/layers/10/attention/query_key_value/weight",
        "gpt_neox/final_layer_norm/weight",
    )
    found = scopes(names)
    assert found["gpt_neox/layers/10"] == (names[2],)
    assert found["gpt_neox/attention/query_key_value"] == names[1:3]
    assert found["blocks"] == names[1:3]
    assert found["embedding"] == names[:1]
    assert layer_of("transformer/h/7/ln_1/weight") == "transformer/h/7"
    assert kind_of("transformer/h/7/ln_1/weight") == "transformer/ln_1"
    assert layer_of("mlp/wi_0/kernel") is None
    assert layer_of("layers_2/mlp/wi_0/kernel") == "layers_2"
    assert is_embedding("transformer/wte/weight")
    assert not is_embedding("encoder/relpos_bias/rel_embedding")
