"""A random T5-base's saturation at c = 1000, by this package and by Hugging Face's torch model.

Two environments, since this package never needs torch:

    python benchmarks/saturation_against_torch.py write /tmp/t5_base      # with saturation-jax
    python benchmarks/saturation_against_torch.py compare /tmp/t5_base    # with torch, transformers

`write` initialises T5-base, draws Zipf tokens, measures, and stores weights, tokens and cosines
(0.9 GB). `compare` loads the weights into `T5Model`, in float64, and prints both programs' cosines.
The decoder reads the encoder's tokens unshifted, as Merrill et al. 2021 did. In torch's float64
model softmax and root mean square stay float32: that is how transformers computes them.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np

SCALE = 1000.0
SEQUENCES, LENGTH = 16, 64


def zipf_tokens(vocab_size: int, seed: int = 0) -> np.ndarray:
    """Tokens whose frequency falls as 1/rank, in sequences of 33 to 64, padded with 0."""
    generator = np.random.default_rng(seed)
    weight = 1 / np.arange(1, vocab_size)
    tokens = generator.choice(
        np.arange(1, vocab_size), (SEQUENCES, LENGTH), p=weight / weight.sum()
    )
    lengths = generator.integers(LENGTH // 2 + 1, LENGTH + 1, SEQUENCES)
    return np.where(np.arange(LENGTH) < lengths[:, None], tokens, 0).astype(np.int32)


def write(folder: Path, size: str, seed: int) -> None:
    import jax
    from flax.linen import unbox
    from flax.traverse_util import flatten_dict

    from saturation.measures.saturation.measure import SATURATION
    from saturation.models import T5, T5Config
    from saturation.runs.activations import observe_arrays
    from saturation.runs.settings import ActivationSettings
    from saturation.text.sequences import TokenBatch

    config = T5Config.published(size)
    tokens = zipf_tokens(32_000)
    start = tokens[:1, :4]
    params = jax.jit(T5(config).init)(jax.random.key(seed), start, start)["params"]
    params = unbox(params)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "weights.npz", **flatten_dict(jax.device_get(params), sep="/"))

    with jax.enable_x64(True):
        wide = {
            name: leaf.astype("float64") for name, leaf in flatten_dict(params, sep="/").items()
        }
    settings = ActivationSettings(TokenBatch(tokens, tokens, "Zipf"), batch_size=4, scale=SCALE)
    observed = observe_arrays(config, wide, (SATURATION,), settings)()[SATURATION.name]
    total = {scope: sums for scope, sums in observed.items() if "/head_" not in scope}
    table = {
        scope: {
            name: float(value[0])
            for name, value in SATURATION.metrics(
                {name: np.array([value]) for name, value in sums.items()}
            ).items()
        }
        for scope, sums in total.items()
    }
    facts = {"size": size, "seed": seed, "tokens": tokens.tolist(), "metrics": table}
    (folder / "ours.json").write_text(json.dumps(facts), encoding="utf-8")
    print(f"{folder}: weights.npz, ours.json")


def compare(folder: Path) -> None:
    import torch
    from transformers import T5Config, T5Model

    ours = json.loads((folder / "ours.json").read_text(encoding="utf-8"))
    config = T5Config(
        d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128,
        decoder_start_token_id=0, dropout_rate=0.0, attn_implementation="eager",
    )  # fmt: skip
    model = T5Model(config).eval()
    weights = np.load(folder / "weights.npz")
    state = {hugging_face_name(name): torch.from_numpy(oriented(name, weights[name]).copy())
             for name in weights.files}  # fmt: skip
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("embed_tokens.weight")]
    if missing or unexpected:
        raise SystemExit(f"weights do not fit T5Model: missing {missing}, unexpected {unexpected}")
    model.double()
    tokens = torch.tensor(ours["tokens"])
    soft = states(model, tokens)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(SCALE)
    scaled = states(model, tokens)
    valid = tokens > 0
    print(f"{'layer':20s} {'torch':>9s} {'ours':>9s} {'difference':>10s}")
    worst = 0.0
    for scope in soft:
        metrics = ours["metrics"][scope]
        cosine = torch.nn.functional.cosine_similarity(soft[scope], scaled[scope], dim=-1)
        theirs, value = cosine[valid].mean().item(), metrics["cosine_scaled"]
        worst = max(worst, abs(theirs - value))
        print(f"{scope:20s} {theirs:9.5f} {value:9.5f} {abs(theirs - value):10.1e}")
    print(f"largest difference {worst:.1e}")


def states(model, tokens) -> dict:
    """Every block's residual stream and both final norms, by our scopes."""
    import torch

    found, handles = {}, []

    def keep(scope):
        def hook(module, inputs, output):
            found[scope] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return hook

    for stack in ("encoder", "decoder"):
        part = getattr(model, stack)
        for number, block in enumerate(part.block):
            handles.append(block.register_forward_hook(keep(f"{stack}/layers_{number}")))
        handles.append(part.final_layer_norm.register_forward_hook(keep(f"{stack}/final")))
    with torch.no_grad():
        model(input_ids=tokens, attention_mask=(tokens > 0).long(), decoder_input_ids=tokens)
    for handle in handles:
        handle.remove()
    return found


def oriented(name: str, array: np.ndarray) -> np.ndarray:
    return array.T if array.ndim == 2 and name != "token_embedder/embedding" else array


def hugging_face_name(name: str) -> str:
    fixed = {
        "token_embedder/embedding": "shared.weight",
        "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
        "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    }
    if name in fixed:
        return fixed[name]
    bias = re.fullmatch(r"(\w+)/relpos_bias/rel_embedding", name)
    if bias:
        inner = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return f"{bias[1]}.{inner}"
    stack, layer, rest = re.fullmatch(r"(\w+)/layers_(\d+)/(.+)", name).groups()
    order = ["attention", "mlp"] if stack == "encoder" else [
        "self_attention", "encoder_decoder_attention", "mlp"]  # fmt: skip
    modules = {
        "attention": "SelfAttention",
        "self_attention": "SelfAttention",
        "encoder_decoder_attention": "EncDecAttention",
        "mlp": "DenseReluDense",
    }
    norm = re.fullmatch(r"pre_(\w+)_layer_norm/scale", rest)
    if norm:
        index = order.index(norm[1].replace("cross_", "encoder_decoder_"))
        return f"{stack}.block.{layer}.layer.{index}.layer_norm.weight"
    kind, kernel, _ = rest.split("/")
    letter = {"query": "q", "key": "k", "value": "v", "out": "o"}.get(kernel, kernel)
    return f"{stack}.block.{layer}.layer.{order.index(kind)}.{modules[kind]}.{letter}.weight"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("write", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.command == "write":
        write(arguments.folder, "t5-base", arguments.seed)
    else:
        compare(arguments.folder)
