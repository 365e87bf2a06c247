"""Small T5s and how each original tool writes them, for the tests of the readers.

Arrays are made under the canonical names; each writer turns them into what its tool expects, with
rules of its own (never the library's), and lets the original library write the bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import ml_dtypes
import numpy as np
import tensorstore as ts
from safetensors.numpy import save_file

from saturation.storage.local_folder import LocalFolder

Arrays = dict[str, np.ndarray]
EMBED, HEADS, HEAD_DIM, MLP, VOCAB = 16, 4, 3, 24, 40
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def t5_parameters(
    seed: int = 0, layers: int = 2, gated: bool = True, tied: bool = False, umt5: bool = False
) -> Arrays:
    """Random parameters of a T5 under the canonical names (joined heads 12, embedding 16)."""
    joined = HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {"token_embedder/embedding": (VOCAB, EMBED)}
    for stack, attentions in (
        ("encoder", {"attention": "pre_attention"}),
        (
            "decoder",
            {
                "self_attention": "pre_self_attention",
                "encoder_decoder_attention": "pre_cross_attention",
            },
        ),
    ):
        shapes[f"{stack}/{stack}_norm/scale"] = (EMBED,)
        for i in range(layers):
            for attention, norm in attentions.items():
                shapes[f"{stack}/layers_{i}/{norm}_layer_norm/scale"] = (EMBED,)
                for part in ("query", "key", "value"):
                    shapes[f"{stack}/layers_{i}/{attention}/{part}/kernel"] = (EMBED, joined)
                shapes[f"{stack}/layers_{i}/{attention}/out/kernel"] = (joined, EMBED)
            shapes[f"{stack}/layers_{i}/pre_mlp_layer_norm/scale"] = (EMBED,)
            for part in ("wi_0", "wi_1") if gated else ("wi",):
                shapes[f"{stack}/layers_{i}/mlp/{part}/kernel"] = (EMBED, MLP)
            shapes[f"{stack}/layers_{i}/mlp/wo/kernel"] = (MLP, EMBED)
        for place in [f"layers_{i}/" for i in range(layers)] if umt5 else [""]:
            shapes[f"{stack}/{place}relpos_bias/rel_embedding"] = (HEADS, 32)
    if not tied:
        shapes["decoder/logits_dense/kernel"] = (EMBED, VOCAB)
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The tree whose paths are the names."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *path, leaf = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree


def assert_same(checkpoint, expected: Mapping[str, np.ndarray]) -> None:
    """The checkpoint has exactly these parameters, to the bit."""
    assert sorted(checkpoint.parameters) == sorted(expected)
    for name, array in expected.items():
        parameter = checkpoint.parameters[name]
        assert (parameter.shape, parameter.dtype) == (array.shape, array.dtype), name
        read = checkpoint.read(name)
        assert read.tobytes() == np.ascontiguousarray(array).tobytes(), name


class CountingFolder(LocalFolder):
    """A local folder that notes the payload bytes read from each file below it."""

    def __init__(self, path, counts: dict[str, int] | None = None):
        super().__init__(path)
        self.counts: dict[str, int] = {} if counts is None else counts

    def _child(self, name: str) -> CountingFolder:
        return CountingFolder(Path(self.path) / name, self.counts)

    def _read_into(self, name: str, start: int, buffer: memoryview) -> int:
        self._note(name, len(buffer))
        return super()._read_into(name, start, buffer)

    def _read(self, name: str, start: int, stop: int) -> bytes:
        self._note(name, stop - start)
        return super()._read(name, start, stop)

    def _note(self, name: str, count: int) -> None:
        key = str(Path(self.path) / name)
        self.counts[key] = self.counts.get(key, 0) + count

    @property
    def total(self) -> int:
        return sum(self.counts.values())


# -- T5X ------------------------------------------------------------------------------------------


def zarr_metadata(array: np.ndarray, chunks, compressor="gzip", order: str = "C") -> dict[str, Any]:
    """The metadata T5X gives TensorStore for an array."""
    return {
        "shape": list(array.shape),
        "chunks": list(chunks or array.shape),
        "compressor": compressor and {"id": compressor, "level": 1},
        # TensorStore knows no order of a single axis.
        "order": order if array.ndim > 1 else "C",
    }


def write_zarr(folder: Path, array: np.ndarray, metadata: Mapping[str, Any]) -> None:
    """Write a zarr v2 array through TensorStore."""
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(folder)},
        "metadata": {
            **metadata,
            "dtype": "bfloat16" if array.dtype == BFLOAT16 else array.dtype.str,
        },
        "create": True,
        "store_data_equal_to_fill_value": True,
        # Waiting for the disk after each little file would take most of the tests' time.
        "context": {"file_io_sync": False},
    }
    ts.open(spec).result().write(array).result()


def t5x_spec(name: str, array: np.ndarray, metadata: Mapping[str, Any], form: str) -> dict:
    """The leaf that T5X writes into its msgpack file for an array in the folder `name`."""
    spec = {"driver": "zarr", "dtype": str(array.dtype), "metadata": dict(metadata)}
    if form == "top":
        return {**spec, "path": f"{name}/", "kvstore": {"driver": "file"}}
    if form == "gcs":
        kvstore = {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": f"{name}/"}
        return {**spec, "kvstore": kvstore}
    return {**spec, "kvstore": {"driver": form, "path": name}}


def write_t5x(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    chunks=None,
    compressor: str | None = "gzip",
    order: str = "C",
    form: str = "file",
    inline=lambda name: name.endswith("scale"),
    version: int = 3,
) -> Path:
    """Write what `t5x.checkpoints.Checkpointer` writes, with an Adafactor slot per parameter.

    `chunks` maps a shape to a chunk shape; arrays whose name is `inline` go into the msgpack file.
    """
    folder.mkdir(parents=True)
    target: dict[str, Any] = {}
    for name, array in arrays.items():
        if inline(name):
            target[name] = array
            continue
        metadata = zarr_metadata(array, chunks and chunks(array.shape), compressor, order)
        place = f"target.{name.replace('/', '.')}"
        write_zarr(folder / place, array, metadata)
        target[name] = t5x_spec(place, array, metadata, form)
    slots = {f"{name}/{slot}": np.zeros(1, np.float32) for name in arrays for slot in ("m", "v")}
    state = {"step": np.int32(7), "param_states": nested(slots)}
    tree = {"version": version, "optimizer": {"target": nested(target), "state": state}}
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    return folder


def write_t5x_file(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write T5X's single-file form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"step": np.int32(7), "param_states": {}}
    tree = {"version": 3, "optimizer": {"target": nested(arrays), "state": state}}
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def scanned(arrays: Mapping[str, np.ndarray], axis: int = 1, split_heads: bool = True) -> Arrays:
    """The same parameters as `scalable_t5` keeps them: layers stacked on `axis`, heads split."""
    stacked: dict[str, list[np.ndarray]] = {}
    plain: Arrays = {}
    for name, array in arrays.items():
        found = re.fullmatch(r"(\w+)/layers_\d+/(.*)", name)
        if not found:
            plain[name] = array
            continue
        part = re.search(r"attention/(query|key|value|out)/", name)
        if part and split_heads:
            heads = (HEADS, HEAD_DIM)
            array = array.reshape(*heads, -1) if part[1] == "out" else array.reshape(-1, *heads)
        stacked.setdefault(f"{found[1]}/{found[1]}/{found[2]}", []).append(array)
    return plain | {name: np.stack(parts, axis) for name, parts in stacked.items()}


# -- Hugging Face ---------------------------------------------------------------------------------

_HF_RULES = (
    (r"token_embedder/embedding", "shared.weight"),
    (r"(\w+)/\1_norm/scale", r"\1.final_layer_norm.weight"),
    (r"decoder/logits_dense/kernel", "lm_head.weight"),
    (r"(\w+)/relpos_bias/.*", r"\1.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    (
        r"(\w+)/layers_(\d+)/relpos_bias/.*",
        r"\1.block.\2.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    (r"(\w+)/layers_(\d+)/pre_(?:self_)?attention.*", r"\1.block.\2.layer.0.layer_norm.weight"),
    (r"decoder/layers_(\d+)/pre_cross.*", r"decoder.block.\1.layer.1.layer_norm.weight"),
    (r"encoder/layers_(\d+)/pre_mlp.*", r"encoder.block.\1.layer.1.layer_norm.weight"),
    (r"decoder/layers_(\d+)/pre_mlp.*", r"decoder.block.\1.layer.2.layer_norm.weight"),
    (
        r"(\w+)/layers_(\d+)/(?:self_)?attention/(.).*/kernel",
        r"\1.block.\2.layer.0.SelfAttention.\3.weight",
    ),
    (
        r"decoder/layers_(\d+)/encoder_decoder_attention/(.).*/kernel",
        r"decoder.block.\1.layer.1.EncDecAttention.\2.weight",
    ),
    (r"encoder/layers_(\d+)/mlp/(\w+)/.*", r"encoder.block.\1.layer.1.DenseReluDense.\2.weight"),
    (r"decoder/layers_(\d+)/mlp/(\w+)/.*", r"decoder.block.\1.layer.2.DenseReluDense.\2.weight"),
)


def hugging_face(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The same parameters under Hugging Face's names and orientation."""
    found = {}
    for name, array in arrays.items():
        keys = [re.sub(p, r, name) for p, r in _HF_RULES if re.fullmatch(p, name)]
        assert len(keys) == 1, (name, keys)
        turned = array.T if name.endswith(("kernel", "rel_embedding")) else array
        found[keys[0]] = np.ascontiguousarray(turned)
    return found


def write_hugging_face(
    folder: Path, arrays: Mapping[str, np.ndarray], shards: int = 1, **config: Any
) -> Path:
    """Write Hugging Face arrays as `save_pretrained` does, in `shards` files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", **config}))
    if shards == 1:
        save_file(dict(arrays), folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: arrays[name] for name in list(arrays)[number::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
