"""Tiny decoders and encoders under Hugging Face's names, and what they compute, in NumPy.

The forward passes are written from transformers' modeling files, one way of computing each, on the
arrays as they are stored, so that they share nothing with the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

V, D, F, L, P, H = 23, 12, 20, 2, 16, 3
HEAD = D // H
Arrays = dict[str, np.ndarray]

DECODER = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "max_position_embeddings": P,
}
ENCODER = {**DECODER, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 0.03}


@dataclass(frozen=True)
class Family:
    """A config.json, the shapes of the stored arrays, and the forward pass on them."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    forward: Callable[..., dict[str, np.ndarray]]

    def arrays(self, seed: int = 0, size: float = 0.4) -> Arrays:
        """Random arrays, in which scales lie around 1."""
        generator = np.random.default_rng(seed)
        return {
            name: (
                size * generator.standard_normal(shape)
                + (len(shape) == 1 and name.endswith("weight"))
            ).astype(np.float32)
            for name, shape in self.shapes.items()
        }

    def write(self, path: Path, arrays: Arrays) -> Path:
        """Save them as transformers does."""
        path.mkdir(parents=True)
        save_file(arrays, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(self.config))
        return path

    def run(self, arrays: Arrays, tokens: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
        """Logits, hidden states and attention weights in float64; rows one by one, unpadded."""
        wide = {name: array.astype(np.float64) for name, array in arrays.items()}
        pairs = zip(tokens, valid, strict=True)
        rows = [self.forward(self.config, wide, row[ok]) for row, ok in pairs]
        found: dict[str, np.ndarray] = {}
        length = tokens.shape[1]
        for name in rows[0]:
            shapes = [row[name].shape for row in rows]
            attention = len(shapes[0]) == 3
            full = (shapes[0][0], length, length) if attention else (length, shapes[0][-1])
            found[name] = np.full((len(rows), *full), np.nan)
            for out, row, ok in zip(found[name], rows, valid, strict=True):
                if attention:
                    out[:, ok] = 0
                    out[np.ix_(range(full[0]), ok.nonzero()[0], ok.nonzero()[0])] = row[name]
                else:
                    out[ok] = row[name]
        return found


def linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, bias: bool = True, width: int = D) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if bias else {})


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def gelu_new(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def layer_norm(x: np.ndarray, eps: float, weight: Any = 1.0, bias: Any = 0.0) -> np.ndarray:
    y = x - x.mean(-1, keepdims=True)
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + eps) * weight + bias


def rms_norm(x: np.ndarray, eps: float, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, causal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(length, heads, head_dim) each, fewer heads of k and v repeated: output and weights."""
    groups = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) * scale
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    weights = softmax(scores)
    return np.einsum("hqk,khd->qhd", weights, v).reshape(len(q), -1), weights


def rotated(x: np.ndarray, frequencies: np.ndarray, amplitude: float = 1.0) -> np.ndarray:
    angles = np.concatenate([np.outer(np.arange(len(x)), frequencies)] * 2, axis=-1)[:, None]
    dims = angles.shape[-1]
    turned, rest = x[..., :dims], x[..., dims:]
    half = np.concatenate([-turned[..., dims // 2 :], turned[..., : dims // 2]], axis=-1)
    turned = amplitude * (turned * np.cos(angles) + half * np.sin(angles))
    return np.concatenate([turned, rest], axis=-1)


def inverse(base: float, dims: int) -> np.ndarray:
    return 1 / base ** (np.arange(0, dims, 2) / dims)


def gpt2_forward(config: dict[str, Any], a: Arrays, ids: np.ndarray) -> dict[str, np.ndarray]:
    eps, found = config["layer_norm_epsilon"], {}
    x = a["transformer.wte.weight"][ids] + a["transformer.wpe.weight"][: len(ids)]
    found["embedding"] = x
    for i in range(L):
        p = f"transformer.h.{i}."
        y = layer_norm(x, eps, a[p + "ln_1.weight"], a[p + "ln_1.bias"])
        qkv = y @ a[p + "attn.c_attn.weight"] + a[p + "attn.c_attn.bias"]
        q, k, v = (each.reshape(len(ids), H, HEAD) for each in np.split(qkv, 3, axis=-1))
        scale = HEAD**-0.5 if config.get("scale_attn_weights", True) else 1.0
        scale = scale / (i + 1) if config.get("scale_attn_by_inverse_layer_idx") else scale
        y, found[f"attention_{i}"] = attend(q, k, v, scale, True)
        x = x + y @ a[p + "attn.c_proj.weight"] + a[p + "attn.c_proj.bias"]
        y = layer_norm(x, eps, a[p + "ln_2.weight"], a[p + "ln_2.bias"])
        y = gelu_new(y @ a[p + "mlp.c_fc.weight"] + a[p + "mlp.c_fc.bias"])
        x = x + y @ a[p + "mlp.c_proj.weight"] + a[p + "mlp.c_proj.bias"]
        found[f"layers_{i}"] = x
    x = layer_norm(x, eps, a["transformer.ln_f.weight"], a["transformer.ln_f.bias"])
    return found | {"final": x, "logits": x @ a["transformer.wte.weight"].T}


def gpt2(**changed: Any) -> Family:
    shapes = {"transformer.wte.weight": (V, D), "transformer.wpe.weight": (P, D)}
    for i in range(L):
        at = f"transformer.h.{i}"
        shapes |= norm(f"{at}.ln_1") | norm(f"{at}.ln_2")
        for name, into, out in (
            ("attn.c_attn", D, 3 * D),
            ("attn.c_proj", D, D),
            ("mlp.c_fc", D, F),
            ("mlp.c_proj", F, D),
        ):
            shapes |= {f"{at}.{name}.weight": (into, out), f"{at}.{name}.bias": (out,)}
    config = {
        "model_type": "gpt2",
        "vocab_size": V,
        "n_embd": D,
        "n_layer": L,
        "n_head": H,
        "n_inner": F,
        "n_positions": P,
        "layer_norm_epsilon": 0.02,
        "n_ctx": P,
    }
    return Family(config | changed, shapes | norm("transformer.ln_f"), gpt2_forward)


def neox_forward(config: dict[str, Any], a: Arrays, ids: np.ndarray) -> dict[str, np.ndarray]:
    eps, found = config["layer_norm_eps"], {}
    frequencies = inverse(config["rotary_emb_base"], int(HEAD * config["rotary_pct"]))
    x = a["gpt_neox.embed_in.weight"][ids]
    found["embedding"] = x

    def dense(name: str, y: np.ndarray) -> np.ndarray:
        return y @ a[f"{name}.weight"].T + a.get(f"{name}.bias", 0.0)

    for i in range(L):
        p = f"gpt_neox.layers.{i}."
        names = (f"{p}input_layernorm", f"{p}post_attention_layernorm")
        first, second = ((a[f"{n}.weight"], a[f"{n}.bias"]) for n in names)
        qkv = dense(p + "attention.query_key_value", layer_norm(x, eps, *first))
        q, k, v = np.split(qkv.reshape(len(ids), H, 3 * HEAD), 3, axis=-1)
        q, k = rotated(q, frequencies), rotated(k, frequencies)
        y, found[f"attention_{i}"] = attend(q, k, v, HEAD**-0.5, True)
        attended = dense(p + "attention.dense", y)
        into = x if config["use_parallel_residual"] else x + attended
        y = gelu(dense(p + "mlp.dense_h_to_4h", layer_norm(into, eps, *second)))
        x = x + attended + dense(p + "mlp.dense_4h_to_h", y)
        found[f"layers_{i}"] = x
    last = "gpt_neox.final_layer_norm"
    x = layer_norm(x, eps, a[f"{last}.weight"], a[f"{last}.bias"])
    return found | {"final": x, "logits": x @ a["embed_out.weight"].T}


def gpt_neox(**changed: Any) -> Family:
    config = {
        **DECODER,
        "model_type": "gpt_neox",
        "rotary_pct": 0.5,
        "rotary_emb_base": 100,
        "layer_norm_eps": 0.02,
        "use_parallel_residual": True,
        "attention_bias": True,
        "hidden_act": "gelu",
        "torch_dtype": "float16",
    } | changed
    shapes = {"gpt_neox.embed_in.weight": (V, D), "embed_out.weight": (V, D)}
    for i in range(L):
        at, bias = f"gpt_neox.layers.{i}", config["attention_bias"]
        shapes |= norm(f"{at}.input_layernorm") | norm(f"{at}.post_attention_layernorm")
        shapes |= linear(f"{at}.attention.query_key_value", 3 * D, D, bias)
        shapes |= linear(f"{at}.attention.dense", D, D, bias)
        shapes |= linear(f"{at}.mlp.dense_h_to_4h", F, D) | linear(f"{at}.mlp.dense_4h_to_h", D, F)
    return Family(config, shapes | norm("gpt_neox.final_layer_norm"), neox_forward)


def llama_forward(config: dict[str, Any], a: Arrays, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Llama, OLMo, OLMo 2 and Qwen 2."""
    kind, found = config["model_type"], {}
    eps = config.get("rms_norm_eps", 1e-5)
    frequencies = inverse(config["rope_theta"], HEAD)
    keys = config.get("num_key_value_heads", H)
    x = a["model.embed_tokens.weight"][ids]
    found["embedding"] = x

    def normed(name: str, y: np.ndarray) -> np.ndarray:
        return layer_norm(y, eps) if kind == "olmo" else rms_norm(y, eps, a[f"{name}.weight"])

    def dense(name: str, y: np.ndarray) -> np.ndarray:
        return y @ a[f"{name}.weight"].T + a.get(f"{name}.bias", 0.0)

    for i in range(L):
        p = f"model.layers.{i}."
        y = x if kind == "olmo2" else normed(p + "input_layernorm", x)
        q, k, v = (dense(f"{p}self_attn.{name}_proj", y) for name in "qkv")
        if kind == "olmo2":
            q, k = normed(p + "self_attn.q_norm", q), normed(p + "self_attn.k_norm", k)
        if bound := config.get("clip_qkv"):
            q, k, v = (np.clip(each, -bound, bound) for each in (q, k, v))
        q, k, v = (y.reshape(len(ids), n, HEAD) for y, n in ((q, H), (k, keys), (v, keys)))
        q, k = rotated(q, frequencies), rotated(k, frequencies)
        y, found[f"attention_{i}"] = attend(q, k, v, HEAD**-0.5, True)
        y = dense(p + "self_attn.o_proj", y)
        x = x + (normed(p + "post_attention_layernorm", y) if kind == "olmo2" else y)
        y = x if kind == "olmo2" else normed(p + "post_attention_layernorm", x)
        y = silu(dense(p + "mlp.gate_proj", y)) * dense(p + "mlp.up_proj", y)
        y = dense(p + "mlp.down_proj", y)
        x = x + (normed(p + "post_feedforward_layernorm", y) if kind == "olmo2" else y)
        found[f"layers_{i}"] = x
    x = normed("model.norm", x)
    head = a.get("lm_head.weight", a["model.embed_tokens.weight"])
    return found | {"final": x, "logits": x @ head.T}


def llama(kind: str = "llama", **changed: Any) -> Family:
    config = {
        **DECODER,
        "model_type": kind,
        "rope_theta": 50.0,
        "hidden_act": "silu",
        **({} if kind == "olmo" else {"rms_norm_eps": 0.02}),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    } | changed
    bias = bool(config.get("attention_bias"))
    shapes = {"model.embed_tokens.weight": (V, D)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, D)
    keys = HEAD * config.get("num_key_value_heads", H)
    for i in range(L):
        at = f"model.layers.{i}"
        for name, out, into in (("q", D, D), ("k", keys, D), ("v", keys, D), ("o", D, D)):
            own = bias or (kind == "qwen2" and name != "o")
            shapes |= linear(f"{at}.self_attn.{name}_proj", out, into, own)
        for name, out, into in (("gate", F, D), ("up", F, D), ("down", D, F)):
            shapes |= linear(f"{at}.mlp.{name}_proj", out, into, bool(config.get("mlp_bias")))
        if kind == "olmo2":
            shapes |= norm(f"{at}.post_attention_layernorm", False)
            shapes |= norm(f"{at}.post_feedforward_layernorm", False)
            shapes |= norm(f"{at}.self_attn.q_norm", False)
            shapes |= norm(f"{at}.self_attn.k_norm", False, keys)
        elif kind != "olmo":
            shapes |= norm(f"{at}.input_layernorm", False)
            shapes |= norm(f"{at}.post_attention_layernorm", False)
    if kind != "olmo":
        shapes |= norm("model.norm", False)
    return Family(config, shapes, llama_forward)


def bert_forward(config: dict[str, Any], a: Arrays, ids: np.ndarray) -> dict[str, np.ndarray]:
    """BERT and RoBERTa."""
    kind, eps, found = config["model_type"], config["layer_norm_eps"], {}
    offset = config["pad_token_id"] + 1 if kind == "roberta" else 0

    def dense(name: str, y: np.ndarray) -> np.ndarray:
        return y @ a[f"{name}.weight"].T + a[f"{name}.bias"]

    def normed(name: str, y: np.ndarray) -> np.ndarray:
        return layer_norm(y, eps, a[f"{name}.weight"], a[f"{name}.bias"])

    at = f"{kind}.embeddings"
    x = a[f"{at}.word_embeddings.weight"][ids] + a[f"{at}.token_type_embeddings.weight"][0]
    x = x + a[f"{at}.position_embeddings.weight"][offset : offset + len(ids)]
    x = normed(f"{at}.LayerNorm", x)
    found["embedding"] = x
    for i in range(L):
        p = f"{kind}.encoder.layer.{i}."
        names = ("query", "key", "value")
        q, k, v = (
            dense(f"{p}attention.self.{name}", x).reshape(len(ids), H, HEAD) for name in names
        )
        y, found[f"attention_{i}"] = attend(q, k, v, HEAD**-0.5, False)
        y = dense(p + "attention.output.dense", y)
        x = normed(p + "attention.output.LayerNorm", x + y)
        y = dense(p + "output.dense", gelu(dense(p + "intermediate.dense", x)))
        x = normed(p + "output.LayerNorm", x + y)
        found[f"layers_{i}"] = x
    head = "lm_head" if kind == "roberta" else "cls.predictions"
    first, second = (
        ("dense", "layer_norm") if kind == "roberta" else ("transform.dense", "transform.LayerNorm")
    )
    y = normed(f"{head}.{second}", gelu(dense(f"{head}.{first}", x)))
    table = a[f"{kind}.embeddings.word_embeddings.weight"]
    return found | {"logits": y @ table.T + a[f"{head}.bias"]}


def bert(kind: str = "bert", **changed: Any) -> Family:
    pad = 1 if kind == "roberta" else 0
    config = {**ENCODER, "model_type": kind, "pad_token_id": pad} | changed
    at = f"{kind}.embeddings"
    shapes = {
        f"{at}.word_embeddings.weight": (V, D),
        f"{at}.position_embeddings.weight": (P, D),
        f"{at}.token_type_embeddings.weight": (2, D),
    }
    shapes |= norm(f"{at}.LayerNorm")
    for i in range(L):
        at = f"{kind}.encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{at}.attention.{name}", D, D)
        shapes |= linear(f"{at}.intermediate.dense", F, D) | linear(f"{at}.output.dense", D, F)
        shapes |= norm(f"{at}.attention.output.LayerNorm") | norm(f"{at}.output.LayerNorm")
    if kind == "roberta":
        shapes |= linear("lm_head.dense", D, D) | norm("lm_head.layer_norm")
        return Family(config, shapes | {"lm_head.bias": (V,)}, bert_forward)
    head = "cls.predictions.transform"
    shapes |= linear(f"{head}.dense", D, D) | norm(f"{head}.LayerNorm")
    return Family(config, shapes | {"cls.predictions.bias": (V,)}, bert_forward)


FAMILIES = {
    "gpt2": gpt2(),
    "gpt2-mistral": gpt2(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
    "gpt_neox": gpt_neox(),
    "gpt_neox-sequential": gpt_neox(use_parallel_residual=False, rotary_pct=1.0),
    "gpt_neox-unbiased": gpt_neox(attention_bias=False),
    "llama": llama(num_key_value_heads=1),
    "llama-tied-biased": llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "olmo": llama("olmo", clip_qkv=0.7),
    "olmo2": llama("olmo2"),
    "olmo2-grouped": llama("olmo2", num_key_value_heads=1),
    "qwen2": llama("qwen2", num_key_value_heads=1, use_sliding_window=False, sliding_window=8),
    "bert": bert(),
    "roberta": bert("roberta"),
}


def random_tokens(lengths: tuple[int, ...] = (9, 6, 1), left: bool = False) -> tuple:
    """(tokens, valid), of which no id is 0 or 1, padded on one side with either."""
    generator, length = np.random.default_rng(3), max(lengths)
    tokens = generator.integers(2, V, (len(lengths), length))
    valid = np.arange(length) < np.array(lengths)[:, None]
    if left:
        tokens, valid = tokens[:, ::-1], valid[:, ::-1]
    return np.where(valid, tokens, 1).astype(np.int32), valid
