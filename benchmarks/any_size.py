"""Measures of activations on T5s of any size: time and memory, one stage of the model at a time.

    python benchmarks/any_size.py t5-v1_1-xl --dtype bfloat16 --out /tmp/any_size
    python benchmarks/any_size.py t5-v1_1-xxl --dtype bfloat16 --sequences 2 --out /tmp/any_size

Writes a checkpoint of the published shapes into a folder below --out (random values, by fan-in, as
Hugging Face lays them out: shards of about 2 GB, written 64 MB at a time), runs `saturation
measure` on it in a process of its own and deletes it: XL takes 5.7 GB of disk in bfloat16 and 11.4
in float32, XXL 22.3 in bfloat16. The tokens are random ids by Zipf's law, some of them repeated.
Memory is the process's peak as /usr/bin/time gives it, which counts mapped pages of files. Prints
JSON, then a sentence.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from saturation.models import T5Config

DTYPES = {"float32": (np.float32, "F32"), "bfloat16": (ml_dtypes.bfloat16, "BF16")}
SHARD_BYTES, PIECE = 2 * 2**30, 2**24
MEASURES = "saturation,heads,smoothing,scan,spectrum"
BLOCKS = {"encoder": {"attention": (0, "SelfAttention"), "mlp": (1, "DenseReluDense")},
          "decoder": {"self_attention": (0, "SelfAttention"),
                      "encoder_decoder_attention": (1, "EncDecAttention"),
                      "mlp": (2, "DenseReluDense")}}  # fmt: skip
NORMS = {"pre_attention_layer_norm": 0, "pre_self_attention_layer_norm": 0,
         "pre_cross_attention_layer_norm": 1}  # fmt: skip


def hugging_face(name: str) -> str:
    """Hugging Face's name of a T5's parameter."""
    stack, *rest = name.split("/")
    if stack == "token_embedder":
        return "shared.weight"
    if rest[0] == "logits_dense":
        return "lm_head.weight"
    if rest[0] == f"{stack}_norm":
        return f"{stack}.final_layer_norm.weight"
    if rest[0] == "relpos_bias":
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    block = f"{stack}.block.{rest[0].removeprefix('layers_')}.layer"
    last = BLOCKS[stack]["mlp"][0]
    if rest[1].endswith("_layer_norm"):
        return f"{block}.{NORMS.get(rest[1], last)}.layer_norm.weight"
    number, module = BLOCKS[stack][rest[1]]
    leaf = rest[2] if rest[1] == "mlp" else rest[2][0]
    return f"{block}.{number}.{module}.{leaf}.weight"


def deviation(name: str, shape: tuple[int, ...], config: T5Config) -> float:
    """Of an array's values, as T5 starts with: none of a norm's scale, by fan-in of a kernel."""
    if len(shape) == 1:
        return 0.0
    if name.endswith("embedding"):
        return 1.0
    return (shape[0] * (config.head_dim if "/query/" in name else 1)) ** -0.5


def shards(config: T5Config, itemsize: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the arrays of each shard, in the order of the forward pass."""
    found: dict[str, tuple[int, ...]] = {}
    nbytes = 0
    for name, shape in config.parameter_shapes().items():
        found[name] = shape
        nbytes += itemsize * math.prod(shape)
        if nbytes > SHARD_BYTES:
            yield found
            found, nbytes = {}, 0
    if found:
        yield found


def write(folder: Path, config: T5Config, dtype: str) -> int:
    """Write a checkpoint piece by piece; return its bytes."""
    kind, code = DTYPES[dtype]
    noise = np.random.default_rng(0).standard_normal(PIECE + 1009, np.float32)
    index, total = {}, 0
    folder.mkdir(parents=True)
    for number, arrays in enumerate(shards(config, np.dtype(kind).itemsize)):
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in arrays.items():
            # Kernels lie the other way round.
            stored = shape if name.endswith("embedding") else shape[::-1]
            if name.endswith("rel_embedding"):
                stored = shape[::-1]
            nbytes = math.prod(shape) * np.dtype(kind).itemsize
            header[hugging_face(name)] = {
                "dtype": code, "shape": list(stored), "data_offsets": [offset, offset + nbytes],
            }  # fmt: skip
            offset += nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path = folder / f"model-{number:05d}.safetensors"
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for turn, (name, shape) in enumerate(arrays.items()):
                size, scale = math.prod(shape), deviation(name, shape, config)
                for start in range(0, size, PIECE):
                    count = min(PIECE, size - start)
                    shift = (97 * turn + 31 * number + start // PIECE) % 1009
                    piece = 1 + 0 * noise[:count] if not scale else scale * noise[shift:][:count]
                    file.write(piece.astype(kind).tobytes())
        index |= {hugging_face(name): path.name for name in arrays}
        total += path.stat().st_size
    described = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(described))
    settings = {
        "model_type": "t5", "num_heads": config.num_heads, "d_kv": config.head_dim,
        "feed_forward_proj": "gated-gelu" if config.gated else "relu",
        "tie_word_embeddings": config.logits_via_embedding,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    return total


def write_tokens(path: Path, config: T5Config, sequences: int, length: int) -> None:
    """Write sequences of ids by Zipf's law, as `--tokens` takes them."""
    weight = 1 / np.arange(1, 32_000)
    drawn = np.random.default_rng(1).choice(
        np.arange(1, 32_000), (sequences, length), p=weight / weight.sum()
    )
    rows = ({"encoder": row.tolist(), "decoder": [0, *row[:-1].tolist()]} for row in drawn)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def measured(trajectory: Path, tokens: Path, out: Path, arguments: argparse.Namespace) -> dict:
    """Run the command in a process of its own; its time, its peak and the load beside it."""
    command = [
        sys.executable, "-c", "import sys; from saturation.cli import main; sys.exit(main())",
        "measure", str(trajectory), "--measures", arguments.measures, "--out", str(out),
        "--tokens", str(tokens), "--length", str(arguments.length),
        "--batch-size", str(arguments.batch_size),
    ]  # fmt: skip
    load, begun = os.getloadavg(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": time.perf_counter() - begun,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_gb": used.ru_maxrss * 1024 / 1e9,
        "load_before_and_after": [load, os.getloadavg()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", help="a published T5, such as t5-v1_1-xl")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=2, help="sequences at a time")
    parser.add_argument("--measures", default=MEASURES)
    parser.add_argument("--out", type=Path, required=True, help="a folder with room for it")
    arguments = parser.parse_args()
    config = T5Config.published(arguments.size)
    folder = arguments.out / f"{arguments.size}-{arguments.dtype}"
    try:
        nbytes = write(folder / "trajectory" / "step_0", config, arguments.dtype)
        tokens = folder / "tokens.jsonl"
        write_tokens(tokens, config, arguments.sequences, arguments.length)
        found = measured(folder / "trajectory", tokens, folder / "run", arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts = {
        "size": arguments.size, "dtype": arguments.dtype, "parameters": config.num_parameters,
        "bytes": nbytes, "sequences": arguments.sequences, "length": arguments.length,
        "batch_size": arguments.batch_size, "measures": arguments.measures,
        "cores": os.cpu_count(), **found,
    }  # fmt: skip
    print(json.dumps(facts))
    print(
        f"{arguments.size} in {arguments.dtype}, {config.num_parameters / 1e9:.2f} billion "
        f"parameters: {arguments.measures} on {arguments.sequences} sequences of "
        f"{arguments.length} + {arguments.length} tokens took {found['seconds'] / 60:.1f} minutes "
        f"({found['processor_seconds'] / 60:.1f} of processor time) and {found['peak_gb']:.2f} GB "
        "at its peak."
    )


if __name__ == "__main__":
    main()
