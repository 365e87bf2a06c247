"""Trajectories that tests make, written by the safetensors library under Hugging Face's names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

EMBED, HEADS, HEAD_DIM, MLP, VOCAB = 16, 4, 3, 24, 40


def t5_arrays(seed: int, scale: float = 1.0, vocab: int = VOCAB) -> dict[str, np.ndarray]:
    """A gated, untied one-layer T5 (v1.1) with random weights, under Hugging Face's names."""
    generator = np.random.default_rng(seed)
    joined = HEADS * HEAD_DIM

    def matrix(*shape: int) -> np.ndarray:
        return (scale * generator.standard_normal(shape)).astype(np.float32)

    def attention(prefix: str) -> dict[str, np.ndarray]:
        shapes = {
            "q": (joined, EMBED),
            "k": (joined, EMBED),
            "v": (joined, EMBED),
            "o": (EMBED, joined),
        }
        return {f"{prefix}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}

    def mlp(prefix: str) -> dict[str, np.ndarray]:
        shapes = {"wi_0": (MLP, EMBED), "wi_1": (MLP, EMBED), "wo": (EMBED, MLP)}
        return {f"{prefix}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}

    arrays = {"shared.weight": matrix(vocab, EMBED), "lm_head.weight": matrix(vocab, EMBED)}
    for stack, inner in (("encoder", ("Self",)), ("decoder", ("Self", "EncDec"))):
        block = f"{stack}.block.0.layer"
        for number, kind in enumerate(inner):
            arrays |= attention(f"{block}.{number}.{kind}Attention")
            arrays[f"{block}.{number}.layer_norm.weight"] = matrix(EMBED)
        arrays |= mlp(f"{block}.{len(inner)}.DenseReluDense")
        arrays[f"{block}.{len(inner)}.layer_norm.weight"] = matrix(EMBED)
        arrays[f"{block}.0.SelfAttention.relative_attention_bias.weight"] = matrix(32, HEADS)
        arrays[f"{stack}.final_layer_norm.weight"] = matrix(EMBED)
    return arrays


def write_checkpoint(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write one checkpoint as `save_pretrained` does."""
    folder.mkdir(parents=True)
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": "t5",
        "d_model": EMBED,
        "num_heads": HEADS,
        "d_kv": HEAD_DIM,
        "tie_word_embeddings": "lm_head.weight" not in arrays,
        "feed_forward_proj": "gated-gelu",
    }
    (folder / "config.json").write_text(json.dumps(config))


def write_trajectory(
    folder: Path,
    steps: tuple[int, ...] = (0, 10, 30),
    change: Callable[[int, dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None,
    vocab: int = VOCAB,
) -> Path:
    """Write a random walk of checkpoints; `change` may alter the arrays of a step."""
    arrays = t5_arrays(0, vocab=vocab)
    for step in steps:
        if step != steps[0]:
            drift = t5_arrays(step, scale=0.1, vocab=vocab)
            arrays = {name: array + drift[name] for name, array in arrays.items()}
        written = change(step, dict(arrays)) if change else arrays
        write_checkpoint(folder / f"step_{step}", written)
    return folder


def canonical(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint in float64, under its canonical name."""
    import saturation

    checkpoint = saturation.open_trajectory(folder)[step]
    return {name: checkpoint.read(name).astype(np.float64) for name in checkpoint.parameters}
