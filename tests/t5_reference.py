"""A T5 written in float64 numpy for the tests, from the paper and apart from the package.

It loops over layers, batch rows, and heads; nothing is shared with the code it checks.
"""

from __future__ import annotations

import re

import numpy as np
from safetensors.numpy import load_file


def random_parameters(config, seed=0, scale=0.5):
    """Float64 arrays of every name the configuration has, large enough to make attention uneven."""
    rng = np.random.default_rng(seed)
    parameters = {}
    for name, shape in config.parameter_shapes().items():
        array = rng.normal(size=shape) * scale
        parameters[name] = array + 1 if name.endswith("scale") else array
    return parameters


def nested(parameters):
    tree = {}
    for name, array in parameters.items():
        *path, leaf = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = array
    return tree


def random_tokens(config, seed=0, batch=3, encoder_length=11, decoder_length=7):
    """Padded encoder rows and shifted decoder rows, with tokens that repeat."""
    rng = np.random.default_rng(seed)
    highest = min(config.vocab_size, 6)
    encoder = rng.integers(1, highest, (batch, encoder_length)).astype(np.int32)
    decoder = rng.integers(1, highest, (batch, decoder_length)).astype(np.int32)
    decoder[:, 0] = 0
    for row in range(1, batch):
        encoder[row, encoder_length - 3 * row :] = 0
        decoder[row, decoder_length - 2 * row :] = 0
    return encoder, decoder


def reference_t5(config, parameters, encoder_tokens, decoder_tokens, temperature=1.0):
    """Logits, and residual streams and weights under the names of the package's taps."""
    taps = {}
    embedding = parameters["token_embedder/embedding"]

    def norm(x, name):
        root = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x / root * parameters[f"{name}/scale"]

    def attend(name, x, y, allowed, bias):
        weights = np.zeros((len(x), config.num_heads, x.shape[1], y.shape[1]))
        out = np.zeros_like(x)
        kernel = {k: parameters[f"{name}/{k}/kernel"] for k in ("query", "key", "value", "out")}
        for b, h in np.ndindex(len(x), config.num_heads):
            columns = slice(h * config.head_dim, (h + 1) * config.head_dim)
            scores = (x[b] @ kernel["query"][:, columns]) @ (y[b] @ kernel["key"][:, columns]).T
            scores = np.where(allowed[b], scores + (0 if bias is None else bias[h]), -np.inf)
            top = scores.max(-1, keepdims=True)
            if temperature:
                power = np.exp((scores - top) / temperature)
            else:  # a tie, but for the rounding of two sums in another order
                power = (scores >= top - 1e-9 * np.abs(top)).astype(float)
            weights[b, h] = power / power.sum(-1, keepdims=True)
            out[b] += weights[b, h] @ (y[b] @ kernel["value"][:, columns]) @ kernel["out"][columns]
        taps[f"{name}/weights"], taps[f"{name}/output"] = weights, out
        return out

    def feed_forward(x, name):
        if config.gated:
            gate, linear = (x @ parameters[f"{name}/wi_{i}/kernel"] for i in (0, 1))
            cubic = gate + 0.044715 * gate**3
            hidden = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * cubic)) * linear
        else:
            hidden = np.maximum(x @ parameters[f"{name}/wi/kernel"], 0)
        return hidden @ parameters[f"{name}/wo/kernel"]

    def bias_of(stack, layer, length):
        prefix = f"{stack}/layers_{layer}" if config.per_layer_relative_bias else stack
        table = parameters[f"{prefix}/relpos_bias/rel_embedding"]
        offsets = [[k - q for k in range(length)] for q in range(length)]
        return table[:, [[bucket(o, stack == "encoder") for o in row] for row in offsets]]

    x = embedding[encoder_tokens]
    keys = np.broadcast_to(encoder_tokens[:, None] > 0, (*x.shape[:2], x.shape[1]))
    taps["encoder/embedding"] = x
    for i in range(config.num_encoder_layers):
        name = f"encoder/layers_{i}"
        y = norm(x, f"{name}/pre_attention_layer_norm")
        x = x + attend(f"{name}/attention", y, y, keys, bias_of("encoder", i, x.shape[1]))
        x = x + feed_forward(norm(x, f"{name}/pre_mlp_layer_norm"), f"{name}/mlp")
        taps[name] = x
    encoded = taps["encoder/final"] = norm(x, "encoder/encoder_norm")

    x = embedding[decoder_tokens]
    causal = np.broadcast_to(np.tri(x.shape[1], dtype=bool), (len(x), x.shape[1], x.shape[1]))
    keys = np.broadcast_to(encoder_tokens[:, None] > 0, (*x.shape[:2], encoded.shape[1]))
    taps["decoder/embedding"] = x
    for i in range(config.num_decoder_layers):
        name = f"decoder/layers_{i}"
        y = norm(x, f"{name}/pre_self_attention_layer_norm")
        x = x + attend(f"{name}/self_attention", y, y, causal, bias_of("decoder", i, x.shape[1]))
        y = norm(x, f"{name}/pre_cross_attention_layer_norm")
        x = x + attend(f"{name}/encoder_decoder_attention", y, encoded, keys, None)
        x = x + feed_forward(norm(x, f"{name}/pre_mlp_layer_norm"), f"{name}/mlp")
        taps[name] = x
    final = taps["decoder/final"] = norm(x, "decoder/decoder_norm")
    if config.logits_via_embedding:
        return final @ embedding.T / np.sqrt(config.emb_dim), taps
    return final @ parameters["decoder/logits_dense/kernel"], taps


def bucket(offset, bidirectional, num_buckets=32, max_distance=128):
    """T5's relative position bucket by logarithms, one offset at a time."""
    first, distance = 0, max(-offset, 0)
    if bidirectional:
        num_buckets //= 2
        first, distance = (num_buckets if offset > 0 else 0), abs(offset)
    exact = num_buckets // 2
    if distance < exact:
        return first + distance
    log = np.log(np.float32(distance / exact) + np.finfo(np.float32).eps)
    ranges = np.float32(log / np.log(max_distance / exact) * (num_buckets - exact))
    return first + min(exact + int(ranges), num_buckets - 1)


def read_hugging_face(path):
    """The fixtures' safetensors under T5X's names, by a mapping of the tests' own."""
    parameters = {}
    for name, array in load_file(path).items():
        canonical = _t5x_name(name)
        is_matrix = array.ndim == 2 and canonical != "token_embedder/embedding"
        parameters[canonical] = array.T if is_matrix else array
    for stack in ("encoder", "decoder"):
        shared = f"{stack}/layers_0/relpos_bias/rel_embedding"
        if f"{stack}/layers_1/relpos_bias/rel_embedding" not in parameters:
            parameters[f"{stack}/relpos_bias/rel_embedding"] = parameters.pop(shared)
    return parameters


def _t5x_name(name):
    whole = {"shared": "token_embedder/embedding", "lm_head": "decoder/logits_dense/kernel"}
    whole |= {f"{s}.final_layer_norm": f"{s}/{s}_norm/scale" for s in ("encoder", "decoder")}
    name = name.removesuffix(".weight")
    if name in whole:
        return whole[name]
    stack, layer, part, leaf = re.fullmatch(
        r"(\w+)\.block\.(\d+)\.layer\.(\d)\.(?:.*\.)?(\w+)", name
    ).groups()
    parts = {
        "encoder": ["attention", "mlp"],
        "decoder": ["self_attention", "encoder_decoder_attention", "mlp"],
    }
    kind = parts[stack][int(part)]
    if leaf == "layer_norm":
        rest = f"pre_{kind.replace('encoder_decoder', 'cross')}_layer_norm/scale"
    elif leaf == "relative_attention_bias":
        rest = "relpos_bias/rel_embedding"
    else:
        joined = {"q": "query", "k": "key", "v": "value", "o": "out"}
        rest = f"{kind}/{joined.get(leaf, leaf)}/kernel"
    return f"{stack}/layers_{layer}/{rest}"
