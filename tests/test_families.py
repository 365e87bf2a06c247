"""Scopes and fans-in of every family: the embedding, the head, the blocks, the contracted axes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from saturation.checkpoints import open_checkpoint
from saturation.checkpoints.kernels import Kernels
from saturation.scopes import is_embedding, is_head, scopes

V, D, F, L, P, H = 37, 8, 20, 2, 16, 2
Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, into: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (D,)} | ({f"{name}.bias": (D,)} if bias else {})


def gpt2(conv1d: bool = True) -> Shapes:
    shapes: Shapes = {"transformer.wte.weight": (V, D), "transformer.wpe.weight": (P, D)}
    for i in range(L):
        at = f"transformer.h.{i}"
        shapes |= norm(f"{at}.ln_1") | norm(f"{at}.ln_2")
        for name, out, into in (
            ("attn.c_attn", 3 * D, D),
            ("attn.c_proj", D, D),
            ("mlp.c_fc", F, D),
            ("mlp.c_proj", D, F),
        ):
            shape = (into, out) if conv1d else (out, into)
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": (out,)}
    return shapes | norm("transformer.ln_f")


def neox() -> Shapes:
    shapes: Shapes = {"gpt_neox.embed_in.weight": (V, D), "embed_out.weight": (V, D)}
    for i in range(L):
        at = f"gpt_neox.layers.{i}"
        shapes |= norm(f"{at}.input_layernorm") | norm(f"{at}.post_attention_layernorm")
        shapes |= linear(f"{at}.attention.query_key_value", 3 * D, D)
        shapes |= linear(f"{at}.attention.dense", D, D)
        shapes |= linear(f"{at}.mlp.dense_h_to_4h", F, D) | linear(f"{at}.mlp.dense_4h_to_h", D, F)
    return shapes | norm("gpt_neox.final_layer_norm")


def llama(norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (V, D), "lm_head.weight": (V, D)}
    for i in range(L):
        at = f"model.layers.{i}"
        for name in norms:
            shapes |= norm(f"{at}.{name}", bias=False)
        for name in ("q", "k", "v", "o"):
            shapes |= linear(f"{at}.self_attn.{name}_proj", D, D, bias=False)
        for name, out, into in (("gate", F, D), ("up", F, D), ("down", D, F)):
            shapes |= linear(f"{at}.mlp.{name}_proj", out, into, bias=False)
    return shapes | norm("model.norm", bias=False)


def olmo2() -> Shapes:
    return llama(
        (
            *("post_attention_layernorm", "post_feedforward_layernorm"),
            *("self_attn.q_norm", "self_attn.k_norm"),
        )
    )


def bert() -> Shapes:
    at = "bert.embeddings"
    shapes: Shapes = {
        f"{at}.word_embeddings.weight": (V, D),
        f"{at}.position_embeddings.weight": (P, D),
        f"{at}.token_type_embeddings.weight": (2, D),
        "cls.predictions.bias": (V,),
    }
    shapes |= norm(f"{at}.LayerNorm")
    for i in range(L):
        at = f"bert.encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{at}.attention.{name}", D, D)
        shapes |= linear(f"{at}.intermediate.dense", F, D) | linear(f"{at}.output.dense", D, F)
        shapes |= norm(f"{at}.attention.output.LayerNorm") | norm(f"{at}.output.LayerNorm")
    return (
        shapes
        | linear("cls.predictions.transform.dense", D, D)
        | norm("cls.predictions.transform.LayerNorm")
    )


ATTENTION = 4 * D * D
# family: (shapes, elements of a block, elements that lie in no scope but `total`)
FAMILIES = {
    "gpt2": (gpt2(), ATTENTION + 4 * D + 2 * D * F + F + D + 4 * D, P * D + 2 * D),
    "nanogpt": (gpt2(False), ATTENTION + 4 * D + 2 * D * F + F + D + 4 * D, P * D + 2 * D),
    "gpt_neox": (neox(), ATTENTION + 4 * D + 2 * D * F + F + D + 4 * D, V * D + 2 * D),
    "llama": (llama(), ATTENTION + 3 * D * F + 2 * D, V * D + D),
    "olmo2": (olmo2(), ATTENTION + 3 * D * F + 4 * D, V * D + D),
    "bert": (
        bert(),
        ATTENTION + 4 * D + 2 * D * F + F + D + 4 * D,
        (P + 2) * D + 2 * D + V + D * D + D + 2 * D,
    ),
}


def written(path: Path, shapes: Shapes) -> Path:
    path.mkdir(parents=True)
    generator = np.random.default_rng(0)
    arrays = {name: generator.random(shape, np.float32) for name, shape in shapes.items()}
    save_file(arrays, path / "model.safetensors")
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scopes_of_a_family_hold_what_they_should(tmp_path, family):
    shapes, block, rest = FAMILIES[family]
    parameters = open_checkpoint(written(tmp_path / "step_1", shapes)).parameters
    sizes = {
        scope: sum(parameters[name].size for name in members)
        for scope, members in scopes(parameters).items()
    }
    assert sizes["embedding"] == V * D
    assert sizes["blocks"] == L * block
    assert sizes["total"] == V * D + L * block + rest == sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_of_a_family_has_the_fan_in_of_its_product(tmp_path, family):
    shapes, *_ = FAMILIES[family]
    for name, parameter in open_checkpoint(written(tmp_path / "a", shapes)).parameters.items():
        table = name.endswith(("embeddings/weight", "wte/weight", "wpe/weight")) or any(
            part in name for part in ("embed_in", "embed_tokens")
        )
        outward = ("mlp/c_proj/", "dense_4h_to_h/", "down_proj/")
        into = F if any(part in name for part in outward) else D
        if "/attention/" not in name and name.endswith("/output/dense/weight"):
            into = F
        assert parameter.fan_in == (None if table or len(parameter.shape) < 2 else into), name


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "olmo2", "bert"])
def test_real_checkpoints_of_the_families_have_one_table_of_tokens_and_no_head_in_it(
    fixtures, family
):
    folder = fixtures / "families" / family / "hf"
    if not folder.is_dir():
        pytest.skip(f"no fixtures of {family} here")
    parameters = open_checkpoint(folder / "step_10").parameters
    (table,) = scopes(parameters)["embedding"]
    assert parameters[table].shape == (97, 32)
    assert sum(map(is_head, parameters)) == (family != "gpt2")  # BERT's has a bias of its own
    config = json.loads((folder / "step_10" / "config.json").read_text())
    layers = {name for name in scopes(parameters) if re.fullmatch(r"layers_\d+", name)}
    assert len(layers) == config.get("num_hidden_layers", config.get("n_layer"))
    assert {p.fan_in for p in parameters.values() if p.fan_in} <= {32, 128, 72}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_embedder/embedding", True),
        ("transformer/wte/weight", True),
        ("model/tok_embeddings/weight", True),
        ("embed/embedding/value", True),
        ("embed/W_E", True),
        ("transformer/embedder/input_embedding", True),
        ("backbone/embedding/weight", True),
        ("embedding", True),
        ("model.embed", True),
        ("token_embedding_table/weight", True),
        ("transformer/wpe/weight", False),
        ("embeddings/position_embeddings/weight", False),
        ("embeddings/token_type_embeddings/weight", False),
        ("embeddings/LayerNorm/weight", False),
        ("embed_out/weight", False),
        ("unembed/W_U", False),
        ("pos_embed/W_pos", False),
        ("decoder/embed_positions/weight", False),
        ("word_embeddings_layernorm/weight", False),
        ("encoder/relpos_bias/rel_embedding", False),
        ("patch_embed/proj/weight", False),
    ],
)
def test_what_is_the_embedding_of_tokens(name, expected):
    assert is_embedding(name) is expected


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("layers_0/attention/query/kernel", (D, H, 4), (0,)),
        ("layers_0/attention/out/kernel", (H, 4, D), (0, 1)),
        ("layers_0/attention/qkv/kernel", (D, 3, H, 4), (0,)),
        ("layers/0/attn/query/kernel/value", (D, H, 4), (0,)),
        ("layers/0/attn/out/kernel/value", (H, 4, D), (0, 1)),
        ("head/kernel/value", (D, V), (0,)),
        ("conv/kernel", (3, D, F), (0, 1)),
        ("conv/weight", (F, D, 3), (1, 2)),
        ("transformer/layer_0/linear/w", (D, F), (0,)),
        ("transformer/layer_0/linear/b", (F,), None),
        ("transformer/layer_0/attn/q_einsum/w", (H, D, 4), (1,)),
        ("transformer/layer_0/attn/kv_einsum/w", (2, 1, D, 4), (2,)),
        ("transformer/layer_0/attn/attn_vec_einsum/w", (H, 4, D), (0, 1)),
        ("transformer/layer_0/mlp/gating_einsum", (2, D, F), (1,)),
        ("transformer/layer_0/mlp/linear", (F, D), (0,)),
        ("model/layers/0/mlp/experts/gate_up_proj", (4, 2 * F, D), (2,)),
        ("model/layers/0/mlp/experts/gate_up_proj", (4, D, 2 * F), (1,)),
        ("model/layers/0/mlp/experts/down_proj", (4, D, F), (2,)),
        ("model/layers/0/mlp/experts/down_proj", (4, F, D), (1,)),
        ("embeddings_project/weight", (F, D), (1,)),
        ("relative_attention_bias/weight", (32, H), None),
        ("pos_embedding", (1, P, D), None),
    ],
)
def test_the_contracted_axes(name, shape, axes):
    assert Kernels({"embed/embedding": (V, D), name: shape}).axes(name) == axes


def test_the_contracted_axes_are_those_that_flax_contracts():
    """A kernel's fan-in is how often a one comes together in what it makes of ones."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.MultiHeadDotProductAttention(num_heads=H, qkv_features=F, name="attn")(x, x)
            return nn.Dense(V, name="head")(x)

    variables = jax.eval_shape(Model().init, jax.random.key(0), np.ones((1, 3, D), np.float32))
    shapes = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    }
    kernels = Kernels(shapes)
    found = {
        name: math.prod(shapes[name][axis] for axis in axes)
        for name in shapes
        if (axes := kernels.axes(name))
    }
    assert found == {
        **{f"attn/{part}/kernel": D for part in ("query", "key", "value")},
        "attn/out/kernel": F,
        "head/kernel": D,
    }
