"""Write a trajectory of T5-sized checkpoints, by the original libraries, for the other benchmarks.

    python benchmarks/make_trajectory.py --size base --steps 4 --out /tmp/t5-base
    python benchmarks/make_trajectory.py --steps 4 --out /tmp/t5-tf --format mesh_tensorflow
    python benchmarks/make_trajectory.py --steps 4 --out /tmp/t5-t5x --format t5x
    python benchmarks/make_trajectory.py --steps 4 --out /tmp/t5-bf16 --dtype bfloat16

The first checkpoint is normal noise of the published shapes; each later one adds a tenth of it in
another order, so that neighbours differ as in training. Steps beyond --distinct are hard links to
the earlier ones. T5-base: 0.89 GB a checkpoint. `mesh_tensorflow` needs TensorFlow; `t5x` is
written by TensorStore and flax, as T5X writes it: zarr, gzip level 1, chunks of up to 64 MiB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

SIZES = {  # layers of a stack, d_model, heads × d_kv, d_ff: arXiv 1910.10683, §3.1 and §3.7
    "tiny": (2, 64, 64, 128),
    "small": (6, 512, 512, 2048),
    "base": (12, 768, 768, 3072),
    "large": (24, 1024, 1024, 4096),
}
VOCAB, HEADS = 32128, {"tiny": 4, "small": 8, "base": 12, "large": 16}
CHUNK_BYTES = 64 * 2**20
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

Arrays = dict[str, np.ndarray]

# T5X's names within a layer, and those of Hugging Face and of Mesh-TensorFlow.
ATTENTIONS = {
    "attention": (0, "SelfAttention"),
    "self_attention": (0, "SelfAttention"),
    "encoder_decoder_attention": (1, "EncDecAttention"),
}
NORMS = {"pre_attention": 0, "pre_self_attention": 0, "pre_cross_attention": 1}


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """T5X's names and shapes of T5 v1.0 of a published size."""
    layers, embed, joined, mlp = SIZES[size]
    found: dict[str, tuple[int, ...]] = {"token_embedder/embedding": (VOCAB, embed)}
    for stack, kinds in (
        ("encoder", {"attention": "pre_attention"}),
        (
            "decoder",
            {
                "self_attention": "pre_self_attention",
                "encoder_decoder_attention": "pre_cross_attention",
            },
        ),
    ):
        for number in range(layers):
            layer = f"{stack}/layers_{number}"
            for kind, norm in kinds.items():
                for name in ("query", "key", "value"):
                    found[f"{layer}/{kind}/{name}/kernel"] = (embed, joined)
                found[f"{layer}/{kind}/out/kernel"] = (joined, embed)
                found[f"{layer}/{norm}_layer_norm/scale"] = (embed,)
            found[f"{layer}/mlp/wi/kernel"] = (embed, mlp)
            found[f"{layer}/mlp/wo/kernel"] = (mlp, embed)
            found[f"{layer}/pre_mlp_layer_norm/scale"] = (embed,)
        found[f"{stack}/relpos_bias/rel_embedding"] = (HEADS[size], 32)
        found[f"{stack}/{stack}_norm/scale"] = (embed,)
    return found


def renamed(name: str, block: str, layer: str, norm: str, final: str, last: str) -> str:
    """A name within the blocks that Hugging Face and Mesh-TensorFlow have in common."""
    stack, *rest = name.split("/")
    if rest[0].endswith("_norm"):
        return f"{stack}{final}"
    if rest[0] == "relpos_bias":
        return f"{stack}{block.format(0)}{layer.format(0)}SelfAttention{last}"
    place = f"{stack}{block.format(int(rest[0].removeprefix('layers_')))}"
    mlp = 1 if stack == "encoder" else 2
    if rest[1] == "mlp":
        return f"{place}{layer.format(mlp)}DenseReluDense.{rest[2]}.kernel"
    if rest[1].endswith("_layer_norm"):
        return f"{place}{layer.format(NORMS.get(rest[1].removesuffix('_layer_norm'), mlp))}{norm}"
    number, kind = ATTENTIONS[rest[1]]
    return f"{place}{layer.format(number)}{kind}.{rest[2][0]}"


def hugging_face(name: str) -> str:
    """Hugging Face's name of an array."""
    if name.startswith("token"):
        return "shared.weight"
    parts = (".block.{}", ".layer.{}.", "layer_norm", ".final_layer_norm")
    found = renamed(name, *parts, ".relative_attention_bias")
    return f"{found.removesuffix('.kernel')}.weight"


def mesh_tensorflow(name: str) -> str:
    """Mesh-TensorFlow's name of an array."""
    if name.startswith("token"):
        return "shared/embedding"
    parts = ("/block_{:03d}", "/layer_{:03d}/", "layer_norm/scale", "/final_layer_norm/scale")
    return renamed(name, *parts, "/relative_attention_bias").replace(".", "/")


def write_hugging_face(folder: Path, arrays: Arrays, size: str) -> None:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        hugging_face(name): array if name.startswith("token") else np.ascontiguousarray(array.T)
        for name, array in arrays.items()
    }
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "t5", "num_heads": HEADS[size], "feed_forward_proj": "relu"}
    (folder / "config.json").write_text(json.dumps(config))


def write_mesh_tensorflow(folder: Path, arrays: Arrays, size: str) -> None:
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        step = v1.get_variable("global_step", dtype=tf.int64, initializer=np.int64(0))
        for name, array in arrays.items():
            variable = v1.get_variable(mesh_tensorflow(name), array.shape, tf.float32)
            variable.load(array, session)
        step.load(int(folder.name.removeprefix("step_")), session)
        prefix = folder.with_name(f"model.ckpt-{folder.name.removeprefix('step_')}")
        saver = v1.train.Saver(sharded=True)
        saver.save(session, str(prefix), write_meta_graph=False)


def write_t5x(folder: Path, arrays: Arrays, size: str) -> None:
    import tensorstore
    from flax import serialization

    folder = folder.with_name(folder.name.replace("step_", "checkpoint_"))
    tree: dict = {}
    for name, array in arrays.items():
        rows = max(CHUNK_BYTES // max(array[:1].nbytes, 1), 1)
        spec = {
            "driver": "zarr",
            "dtype": "float32",
            "kvstore": {"driver": "file", "path": f"target.{name.replace('/', '.')}/"},
            "metadata": {
                "shape": list(array.shape),
                "chunks": [min(rows, len(array)), *array.shape[1:]],
                "compressor": {"id": "gzip", "level": 1},
            },
        }
        place = {**spec["kvstore"], "path": f"{folder}/{spec['kvstore']['path']}"}
        opened = tensorstore.open({**spec, "kvstore": place}, create=True).result()
        opened.write(array).result()
        *path, leaf = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = spec
    optimizer = {"target": tree, "state": {"step": np.int32(folder.name.split("_")[-1])}}
    content = serialization.msgpack_serialize({"version": 3, "optimizer": optimizer})
    (folder / "checkpoint").write_bytes(content)


FORMATS: dict[str, Callable[[Path, Arrays, str], None]] = {
    "huggingface": write_hugging_face,
    "mesh_tensorflow": write_mesh_tensorflow,
    "t5x": write_t5x,
}


def write(out: Path, size: str, steps: int, form: str, dtype: str) -> None:
    """Write `steps` checkpoints: 0, 1000, ..."""
    out.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).standard_normal(2**24, np.float32)
    layout = shapes(size)
    for step in range(steps):
        arrays = {}
        for number, (name, shape) in enumerate(layout.items()):
            count = math.prod(shape)
            start = np.resize(np.roll(noise, 97 * number), count)
            drift = np.resize(np.roll(noise, 89 * number + 31 * step), count)
            array = (start + np.float32(0.1 * step) * drift).reshape(shape)
            arrays[name] = array.astype(DTYPES[dtype], copy=False)
        FORMATS[form](out / f"step_{1000 * step}", arrays, size)


def link(out: Path, distinct: int, steps: int) -> None:
    """Make the steps from `distinct` on out of hard links to those before."""
    for step in range(distinct, steps):
        source, target = out / f"step_{1000 * (step % distinct)}", out / f"step_{1000 * step}"
        target.mkdir()
        for path in source.iterdir():
            os.link(path, target / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--distinct", type=int, help="how many differ (huggingface only)")
    parser.add_argument("--format", choices=FORMATS, default="huggingface")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(huggingface only)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    distinct = min(arguments.distinct or arguments.steps, arguments.steps)
    if arguments.format != "huggingface" and arguments.dtype != "float32":
        parser.error("--dtype goes with --format huggingface")
    write(arguments.out, arguments.size, distinct, arguments.format, arguments.dtype)
    link(arguments.out, distinct, arguments.steps)
    files = {p.stat().st_ino: p.stat().st_size for p in arguments.out.rglob("*") if p.is_file()}
    print(
        json.dumps({"size": arguments.size, "steps": arguments.steps, "bytes": sum(files.values())})
    )


if __name__ == "__main__":
    main()
