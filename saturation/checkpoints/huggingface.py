"""Hugging Face models: `save_pretrained`'s safetensors, single or in shards.

T5, mT5 and UMT5 get the canonical names; any other model keeps its own. Arrays that are stored
twice because the model ties them are one parameter and are counted once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from saturation.checkpoints import names
from saturation.checkpoints.base import Checkpoint, DiskArray, Source
from saturation.checkpoints.safetensors import is_safetensors, read_header
from saturation.checkpoints.storage import Folder
from saturation.errors import CheckpointFormatError

NAME = "huggingface"
LOOKS_FOR = "a safetensors file, single or with an index of shards (Hugging Face)"

_CONFIG = "config.json"
_INDEX = ".safetensors.index.json"
_LARGEST_JSON = 16 * 1024 * 1024
_T5_TYPES = ("t5", "mt5", "umt5")
# T5 always uses `shared` for these; whether for the output head too is `tie_word_embeddings`.
_TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
# Constants that PyTorch models save beside their weights.
_BUFFERS = re.compile(r"(.*\.)?(inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids)")
_EMBEDDING = re.compile(r"(.*\.)?(\w*embed\w*|wte|wpe|shared)\.weight")
# GPT-2's layers keep their kernels as (in, out).
_CONV1D = re.compile(r"(.*\.)?(c_attn|c_proj|c_fc)\.weight")


def claims(folder: Folder) -> bool:
    """Say whether `folder` holds safetensors."""
    return any(is_safetensors(head) for head in folder.heads.values())


def open_checkpoint(folder: Folder, step: int | None) -> Checkpoint:
    """Open a Hugging Face checkpoint.

    Raises:
      CheckpointFormatError: a file or array is missing or damaged, or names are not understood.
    """
    config = _json(folder, _CONFIG) if _CONFIG in folder.files else {}
    arrays = _arrays(folder)
    if not arrays:
        raise CheckpointFormatError(f"{folder.path} holds no arrays.")
    kind = config.get("model_type")
    if kind in _T5_TYPES or (kind is None and names.is_hugging_face_t5(arrays)):
        arrays = _without_aliases(arrays, tied=config.get("tie_word_embeddings", True) is not False)
        sources = names.hugging_face_t5(arrays, folder.path, per_layer_bias=kind == "umt5")
    else:
        sources = _own_names(arrays)
    return Checkpoint(folder.path, step, NAME, arrays, sources)


def _arrays(folder: Folder) -> dict[str, DiskArray]:
    indices = [name for name in folder.files if name.endswith(_INDEX)]
    if len(indices) == 1:
        return _sharded(folder, indices[0])
    files = [name for name, head in folder.heads.items() if is_safetensors(head)]
    if "model.safetensors" in files:
        files = ["model.safetensors"]
    if len(files) != 1:
        raise CheckpointFormatError(
            f"{folder.path} holds {', '.join(files)}, and no single '*{_INDEX}' that says which "
            "belong together."
        )
    return read_header(folder, files[0])


def _sharded(folder: Folder, index: str) -> dict[str, DiskArray]:
    """Return the arrays of all shards that an index lists, each from the shard it names."""
    placed = _json(folder, index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(f, str) for f in placed.values()):
        raise CheckpointFormatError(f"{folder.where(index)} is damaged: it has no 'weight_map'.")
    shards = {name: read_header(folder, name) for name in sorted(set(placed.values()))}
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
        may_be_alias = key in kept and key != shared and (tied or key != "lm_head.weight")
        if may_be_alias and _same(arrays[key], arrays[shared]):
            del kept[key]
    if shared in _TIED[:2]:
        # Encoder-only files name the shared embedding after its one user.
        kept["shared.weight"] = kept.pop(shared)
    return kept


def _same(one: DiskArray, other: DiskArray) -> bool:
    """Say whether two arrays hold the same bits, judged by their first, middle and last rows."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    rows = one.shape[0]
    for row in {0, rows // 2, max(rows - 1, 0)}:
        box = (slice(row, min(row + 1, rows)), *(slice(0, size) for size in one.shape[1:]))
        if one.read(box).tobytes() != other.read(box).tobytes():
            return False
    return True


def _own_names(arrays: Mapping[str, DiskArray]) -> dict[str, Source]:
    """Map the arrays of a model that is no T5 to themselves."""
    sources = {}
    for key, array in arrays.items():
        if array.is_weight and not _BUFFERS.fullmatch(key):
            kernel = len(array.shape) == 2 and key.endswith(".weight")
            kernel = kernel and not _EMBEDDING.fullmatch(key)
            axis = (0 if _CONV1D.fullmatch(key) else 1) if kernel else None
            sources[key] = Source(key, fan_in_axis=axis)
    return sources


def _json(folder: Folder, name: str) -> dict[str, Any]:
    if folder.size(name) > _LARGEST_JSON:
        raise CheckpointFormatError(f"{folder.where(name)} is too large to be what it is called.")
    folder.head(name, 256)
    try:
        found = json.loads(folder.read(name))
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"{folder.where(name)} is damaged: it is no JSON.") from error
    if not isinstance(found, dict):
        raise CheckpointFormatError(f"{folder.where(name)} is damaged: it is no JSON object.")
    return found
