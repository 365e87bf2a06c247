"""Hugging Face models: `save_pretrained`'s safetensors or PyTorch archives, single or in shards.

T5, mT5 and UMT5 get the canonical names; any other model keeps its own. Arrays that are stored
twice because the model ties them are one parameter and are counted once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from saturation.checkpoints import names
from saturation.checkpoints.base import Checkpoint, DiskArray, Source, refuse_long_names
from saturation.checkpoints.json_cost import refuse_heavy_json
from saturation.checkpoints.safetensors import is_safetensors, read_header
from saturation.checkpoints.storage import Folder
from saturation.checkpoints.t5_settings import t5_settings
from saturation.checkpoints.torch_pickle import is_archive, read_archive
from saturation.errors import CheckpointFormatError

NAME = "huggingface"
LOOKS_FOR = (
    "safetensors files or PyTorch archives, single or with an index of shards (Hugging Face)"
)

_CONFIG = "config.json"
_LARGEST_JSON = 16 * 1024 * 1024
_T5_TYPES = ("t5", "mt5", "umt5")
# T5 always uses `shared` for these; whether for the output head too is `tie_word_embeddings`.
_TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
# Constants that PyTorch models save beside their weights.
_BUFFERS = re.compile(r"(.*\.)?(inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids)")
_EMBEDDING = re.compile(r"(.*\.)?(\w*embed\w*|wte|wpe|shared)\.weight")
# GPT-2's layers keep their kernels as (in, out).
_CONV1D = re.compile(r"(.*\.)?(c_attn|c_proj|c_fc)\.weight")


class _Container(NamedTuple):
    """A kind of file that holds a model's arrays."""

    knows: Callable[[bytes], bool]
    read: Callable[[Folder, str], dict[str, DiskArray]]
    usual: str
    index_suffix: str


# The same weights often lie in a repository in several forms: the first of these is read.
_CONTAINERS = (
    _Container(is_safetensors, read_header, "model.safetensors", ".safetensors.index.json"),
    _Container(is_archive, read_archive, "pytorch_model.bin", ".bin.index.json"),
)


def claims(folder: Folder) -> bool:
    """Say whether `folder` holds safetensors or PyTorch archives."""
    return any(kind.knows(head) for head in folder.heads.values() for kind in _CONTAINERS)


def open_checkpoint(folder: Folder, step: int | None) -> Checkpoint:
    """Open a Hugging Face checkpoint.

    Raises:
      CheckpointFormatError: a file or array is missing or damaged, or names are not understood.
    """
    config = _json(folder, _CONFIG) if _CONFIG in folder.files else {}
    arrays = _arrays(folder)
    if not arrays:
        raise CheckpointFormatError(f"{folder.path} holds no arrays.")
    refuse_long_names(arrays, folder.path)
    kind, settings = config.get("model_type"), {}
    if kind in _T5_TYPES or (kind is None and names.is_hugging_face_t5(arrays)):
        arrays = _without_aliases(arrays, tied=config.get("tie_word_embeddings", True) is not False)
        sources = names.hugging_face_t5(arrays, folder.path, per_layer_bias=kind == "umt5")
        settings = t5_settings(config, folder.where(_CONFIG)) if kind else {}
    else:
        sources = _own_names(arrays)
    return Checkpoint(folder.path, step, NAME, arrays, sources, settings)


def _arrays(folder: Folder) -> dict[str, DiskArray]:
    for kind in _CONTAINERS:
        indices = [name for name in folder.files if name.endswith(kind.index_suffix)]
        if len(indices) == 1:
            return _sharded(folder, indices[0], kind)
        files = [name for name, head in folder.heads.items() if kind.knows(head)]
        if kind.usual in files:
            files = [kind.usual]
        if len(files) > 1:
            raise CheckpointFormatError(
                f"{folder.path} holds {', '.join(files)}, and no single '*{kind.index_suffix}' "
                "that says which belong together."
            )
        if files:
            return kind.read(folder, files[0])
    return {}


def _sharded(folder: Folder, index: str, kind: _Container) -> dict[str, DiskArray]:
    """Return the arrays of all shards that an index lists, each from the shard it names."""
    placed = _json(folder, index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(f, str) for f in placed.values()):
        raise CheckpointFormatError(f"{folder.where(index)} is damaged: it has no 'weight_map'.")
    shards = {name: kind.read(folder, name) for name in sorted(set(placed.values()))}
    for key, shard in placed.items():
        if key not in shards[shard]:
            raise CheckpointFormatError(
                f"{folder.where(shard)}: the array {key!r} is missing, which {index} says it holds."
            )
    return {key: shards[shard][key] for key, shard in placed.items()}


def _without_aliases(arrays: Mapping[str, DiskArray], tied: bool) -> dict[str, DiskArray]:
    """Return the arrays less those that are `shared.weight` again.

    An untied head is a parameter whatever it holds. Where a file says that arrays are tied and yet
    stores different values for them, they are parameters of their own.
    """
    kept = dict(arrays)
    shared = next((key for key in ("shared.weight", *_TIED) if key in arrays), None)
    if shared is None:
        return kept
    for key in _TIED:
        one_object = key in kept and arrays[key] is arrays[shared]
        may_be = key in kept and (tied or key != "lm_head.weight")
        if key != shared and (one_object or may_be) and _same(arrays[key], arrays[shared]):
            del kept[key]
    if shared in _TIED[:2]:
        # Encoder-only files name the shared embedding after its one user.
        kept["shared.weight"] = kept.pop(shared)
    return kept


def _same(one: DiskArray, other: DiskArray) -> bool:
    """Say whether two arrays hold the same bits, judged by their first, middle and last rows."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype or not one.shape:
        return False
    rows = one.shape[0]
    for row in {0, rows // 2, max(rows - 1, 0)}:
        box = (slice(row, min(row + 1, rows)), *(slice(0, size) for size in one.shape[1:]))
        if one.read(box).tobytes() != other.read(box).tobytes():
            return False
    return True


def _own_names(arrays: Mapping[str, DiskArray]) -> dict[str, Source]:
    """Map the arrays of a model that is no T5 to their own names, "/" between the modules."""
    sources, seen = {}, set()
    for key, array in arrays.items():
        # PyTorch archives say which names are one tensor.
        if array.is_weight and not _BUFFERS.fullmatch(key) and id(array) not in seen:
            seen.add(id(array))
            kernel = len(array.shape) == 2 and key.endswith(".weight")
            kernel = kernel and not _EMBEDDING.fullmatch(key)
            axis = (0 if _CONV1D.fullmatch(key) else 1) if kernel else None
            sources[key.replace(".", "/")] = Source(key, fan_in_axis=axis)
    return sources


def _json(folder: Folder, name: str) -> dict[str, Any]:
    if folder.size(name) > _LARGEST_JSON:
        raise CheckpointFormatError(f"{folder.where(name)} is too large to be what it is called.")
    folder.head(name, 256)
    text = folder.read(name)
    refuse_heavy_json(folder.where(name), text)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"{folder.where(name)} is damaged: it is no JSON.") from error
    if not isinstance(found, dict):
        raise CheckpointFormatError(f"{folder.where(name)} is damaged: it is no JSON object.")
    return found
