"""T5-base's forward pass: this package's, T5X's own network under the same JAX, and torch's.

    git clone https://github.com/google-research/t5x /tmp/t5x     # nothing of it is committed here
    python benchmarks/forward.py --t5x /tmp/t5x [--torch] [--rounds 5]

Batch 8, 128 + 128 tokens, float32 at the highest matmul precision, logits out, which stay on the
device. All three get the same weights (T5X's initialisers, seed 0) and must agree before they are
timed; they take turns in one process, on the GPU where JAX and torch have one. Torch needs torch
and transformers, which the package does not. Prints JSON, then a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.linen import unbox
from flax.traverse_util import flatten_dict
from interleaved import interleaved, ratio
from saturation_against_torch import hugging_face_name, oriented

from saturation.models import T5, T5Config

BATCH, LENGTH, SIZE = 8, 128, "t5-base"
Forward = Callable[[], Any]  # logits, on the device


def ours(config: T5Config, params, tokens: np.ndarray) -> Forward:
    model = jax.jit(lambda params, tokens: T5(config).apply({"params": params}, tokens, tokens)[0])
    return lambda: jax.block_until_ready(model(params, tokens))


def t5x(config: T5Config, params, tokens: np.ndarray, path: Path) -> Forward:
    """T5X's minimal example; its parameters have the names and shapes of ours."""
    sys.path.insert(0, str(path))
    from t5x.examples.t5 import network

    theirs = network.Transformer(
        network.T5Config(
            vocab_size=config.vocab_size,
            emb_dim=config.emb_dim,
            num_heads=config.num_heads,
            num_encoder_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            head_dim=config.head_dim,
            mlp_dim=config.mlp_dim,
            mlp_activations=config.mlp_activations,
            dropout_rate=0.0,
            logits_via_embedding=config.logits_via_embedding,
        )
    )
    model = jax.jit(
        lambda params, tokens: theirs.apply(
            {"params": params}, tokens, tokens, tokens, enable_dropout=False
        )
    )
    return lambda: jax.block_until_ready(model(params, tokens))


def hugging_face(config: T5Config, params, tokens: np.ndarray) -> Forward:
    """Transformers' T5ForConditionalGeneration."""
    import torch
    from transformers import T5Config as TorchConfig
    from transformers import T5ForConditionalGeneration

    torch.set_num_threads(os.cpu_count() or 1)
    settings = TorchConfig(
        d_model=config.emb_dim, d_kv=config.head_dim, d_ff=config.mlp_dim,
        num_layers=config.num_encoder_layers, num_heads=config.num_heads,
        vocab_size=config.vocab_size, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(settings).eval()
    state = {
        hugging_face_name(name): torch.from_numpy(oriented(name, np.asarray(array)).copy())
        for name, array in flatten_dict(params, sep="/").items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [
        name for name in missing if not name.endswith(("embed_tokens.weight", "lm_head.weight"))
    ]
    if missing or unexpected:
        raise SystemExit(f"weights do not fit torch's T5: missing {missing}, left {unexpected}")
    model.tie_weights()
    on_gpu = jax.default_backend() == "gpu"
    model = model.to("cuda" if on_gpu else "cpu")
    ids = torch.from_numpy(tokens).long().to(model.device)

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            found = model(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits
        if on_gpu:
            torch.cuda.synchronize()
        return found

    return forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--t5x", type=Path, help="a folder with t5x/examples/t5/network.py")
    parser.add_argument("--torch", action="store_true", help="time Hugging Face's torch model too")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    config = T5Config.published(SIZE)
    tokens = np.random.default_rng(0).integers(1, 32_000, (BATCH, LENGTH)).astype(np.int32)
    params = unbox(jax.jit(T5(config).init)(jax.random.key(0), tokens[:1], tokens[:1])["params"])
    jax.config.update("jax_default_matmul_precision", "highest")
    forwards = {"ours": ours(config, params, tokens)}
    if arguments.t5x:
        forwards["t5x"] = t5x(config, params, tokens, arguments.t5x)
    if arguments.torch:
        forwards["torch"] = hugging_face(config, jax.device_get(params), tokens)
    expected = np.asarray(forwards["ours"]())
    for name, forward in forwards.items():
        found = forward()
        found = found.cpu().numpy() if name == "torch" else np.asarray(found)
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not error < 1e-4:
            raise SystemExit(f"{name}'s logits differ from ours by {error:.1e} of the largest")

    timed = interleaved(forwards, arguments.rounds)
    ratios = {name: ratio(timed, "ours", to=name) for name in forwards if name != "ours"}
    facts = {
        "model": SIZE, "batch": BATCH, "tokens": [LENGTH, LENGTH], "dtype": "float32",
        "cores": os.cpu_count(), "device": jax.devices()[0].device_kind,
        "jax": jax.__version__, "timed": timed, "ours_over": ratios,
    }  # fmt: skip
    print(json.dumps(facts, indent=1))
    seconds = timed["ours"]["median_s"]
    compared = " and ".join(f"{value:.3f} of {name}'s" for name, value in ratios.items())
    print(
        f"{SIZE}, batch {BATCH}, {LENGTH} + {LENGTH} tokens, float32, {os.cpu_count()} cores, "
        f"{facts['device']}: {seconds:.4f} s, {compared or 'nothing to compare with'}."
    )


if __name__ == "__main__":
    main()
