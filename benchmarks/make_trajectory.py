"""Write a trajectory of T5-sized safetensors checkpoints, for the other benchmarks.

    python benchmarks/make_trajectory.py --size base --steps 4 --out /tmp/t5-base

The first checkpoint is normal noise of the published shapes; each later one adds a tenth of it in
another order, so that neighbours differ as in training. T5-base: 0.89 GB a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

SIZES = {  # layers of a stack, d_model, heads × d_kv, d_ff: arXiv 1910.10683, §3.1 and §3.7
    "tiny": (2, 64, 64, 128),
    "small": (6, 512, 512, 2048),
    "base": (12, 768, 768, 3072),
    "large": (24, 1024, 1024, 4096),
}
VOCAB, HEADS = 32128, {"tiny": 4, "small": 8, "base": 12, "large": 16}


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names and shapes of T5 v1.0 of a published size."""
    layers, embed, joined, mlp = SIZES[size]
    found: dict[str, tuple[int, ...]] = {"shared.weight": (VOCAB, embed)}
    for stack, attentions in (("encoder", ("Self",)), ("decoder", ("Self", "EncDec"))):
        for block in range(layers):
            prefix = f"{stack}.block.{block}.layer"
            for number, kind in enumerate(attentions):
                for name in "qkv":
                    found[f"{prefix}.{number}.{kind}Attention.{name}.weight"] = (joined, embed)
                found[f"{prefix}.{number}.{kind}Attention.o.weight"] = (embed, joined)
                found[f"{prefix}.{number}.layer_norm.weight"] = (embed,)
            last = f"{prefix}.{len(attentions)}"
            found[f"{last}.DenseReluDense.wi.weight"] = (mlp, embed)
            found[f"{last}.DenseReluDense.wo.weight"] = (embed, mlp)
            found[f"{last}.layer_norm.weight"] = (embed,)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[bias] = (32, HEADS[size])
        found[f"{stack}.final_layer_norm.weight"] = (embed,)
    return found


def write(out: Path, size: str, steps: int) -> None:
    """Write `steps` checkpoints, step_0, step_1000, …, each through the safetensors library."""
    from safetensors.numpy import save_file

    generator = np.random.default_rng(0)
    noise = generator.standard_normal(2**24, np.float32)
    layout = shapes(size)
    for step in range(steps):
        arrays = {}
        for number, (name, shape) in enumerate(layout.items()):
            count = math.prod(shape)
            start = np.resize(np.roll(noise, 97 * number), count)
            drift = np.resize(np.roll(noise, 89 * number + 31 * step), count)
            arrays[name] = (start + np.float32(0.1 * step) * drift).reshape(shape)
        folder = out / f"step_{1000 * step}"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(arrays, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(
            json.dumps({"model_type": "t5", "num_heads": HEADS[size]})
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write(arguments.out, arguments.size, arguments.steps)
    total = sum(path.stat().st_size for path in arguments.out.rglob("*.safetensors"))
    print(json.dumps({"size": arguments.size, "steps": arguments.steps, "bytes": total}))


if __name__ == "__main__":
    main()
