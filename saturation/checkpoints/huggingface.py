"""Hugging Face models: `save_pretrained`'s safetensors or PyTorch archives, single or in shards.

T5, mT5, UMT5 and the families of `lm_names` get the canonical names; any other model keeps its own.
Arrays that are stored twice because the model ties them are one parameter and are counted once.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from saturation.checkpoints import lm_names, names
from saturation.checkpoints.arrays import bounds
from saturation.checkpoints.arrays.safetensors import is_safetensors, read_header
from saturation.checkpoints.arrays.torch_pickle import is_archive, read_archive
from saturation.checkpoints.base import Checkpoint, LeftOut, ParameterLayout
from saturation.checkpoints.disk_array import DiskArray
from saturation.checkpoints.glance import Glance
from saturation.checkpoints.sift import refuse_adapter_file, sift
from saturation.checkpoints.t5_settings import t5_settings
from saturation.checkpoints.torch_names import (
    aliases,
    one_each,
    same_bits,
    unwrapped,
)
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder
from saturation.storage.listing import Listing

NAME = "huggingface"
LOOKS_FOR = (
    "safetensors files or PyTorch archives, single or with an index of shards (Hugging Face)"
)

_CONFIG = "config.json"
LISTING = Listing(
    extensions=(".safetensors", ".bin", ".pt", ".pth", ".ckpt"),
    beside=(_CONFIG,),
    whole=(r"model\.safetensors", r".*\.index\.json"),
    interior=(r".*-\d+-of-\d+",),
)
_ADAPTER = "adapter_config.json"
# An optimizer's or a trainer's state, beside the weights.
_NO_WEIGHTS = re.compile(
    r"(optimizer|optim|optimizer_state|scheduler|lr_scheduler|scaler|rng_state|random_states?)"
    r"([_-]?\d+)*(_\w+)?\.(pt|pth|bin|pkl|safetensors)"
    r"|(training_args|trainer_state|sampler|dataloader|dl_state_dict|custom_checkpoint_\d+)\.\w+"
    r"|.*_(optim|model)_states\.pt|model_optim_rng\.pt|.*\.distcp"
)
_ADAPTER_FILE = re.compile(r"adapter_model\.|adapters?\.safetensors$|pytorch_lora_weights\.")
_T5_TYPES = ("t5", "mt5", "umt5")
# T5 always uses `shared` for these; whether for the output head too is `tie_word_embeddings`.
_TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


class _Container(NamedTuple):
    """A kind of file that holds a model's arrays."""

    knows: Callable[[bytes], bool]
    read: Callable[[Folder, str], dict[str, DiskArray]]
    usual: str


# The same weights often lie in a repository in several forms: the first of these is read, and of
# each kind the single file before an index of shards, as transformers does.
_CONTAINERS = (
    _Container(is_safetensors, read_header, "model.safetensors"),
    _Container(is_archive, read_archive, "pytorch_model.bin"),
)
_INDEX_SUFFIX = ".index.json"


def claims(folder: Folder) -> bool:
    """Say whether `folder` holds safetensors or PyTorch archives with weights in them."""
    return any(_files(folder, kind) for kind in _CONTAINERS) or bool(_adapters(folder))


def open_checkpoint(folder: Folder, step: int | None) -> Checkpoint:
    """Open a Hugging Face checkpoint.

    Raises:
      CheckpointFormatError: a file or array is missing or damaged, or names are not understood.
    """
    return _opened(folder, step, own=False)


def open_stored(folder: Folder, step: int | None) -> Checkpoint:
    """Open a Hugging Face checkpoint with its arrays under their own names.

    Raises:
      CheckpointFormatError: a file or array is missing or damaged.
    """
    return _opened(folder, step, own=True)


def _opened(folder: Folder, step: int | None, own: bool) -> Checkpoint:
    config = _json(folder, _CONFIG) if _CONFIG in folder.files else {}
    found, files = _arrays(folder)
    if not found:
        raise _no_arrays(folder)
    bounds.refuse_names(found, folder.path)
    arrays, left_out = sift(found, folder.path, config)
    left_out += _others(folder, files)
    stored = _Stored(folder, step, config, found, files, tuple(left_out))
    return _named(stored, arrays, own=own)


def glance(folder: Folder) -> Glance:
    """Look at the headers of a checkpoint's files.

    Raises:
      CheckpointFormatError: a file is missing or damaged.
    """
    arrays, _ = _arrays(folder)
    unsummed = {array.unsummed for array in arrays.values()} - {""}
    return Glance(frozenset(arrays), tuple(sorted(unsummed)))


def settings_beside(folder: Folder) -> dict[str, Any]:
    """Return what the config.json in a folder, if it is of a T5, says of the computation."""
    return _settings(folder, _json(folder, _CONFIG) if _CONFIG in folder.files else {})


def _settings(folder: Folder, config: Mapping[str, Any]) -> dict[str, Any]:
    known = config.get("model_type") in _T5_TYPES
    return t5_settings(config, folder.where(_CONFIG)) if known else {}


class _Stored(NamedTuple):
    """What was found in a folder, before its arrays have their names."""

    folder: Folder
    step: int | None
    config: Mapping[str, Any]
    found: Mapping[str, DiskArray]
    files: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def _named(
    stored: _Stored, arrays: Mapping[str, DiskArray], untied: bool = False, own: bool = False
) -> Checkpoint:
    """Return the checkpoint with its parameters' names.

    Args:
      stored: what lies there.
      arrays: those that can be parameters, by their names on disk.
      untied: count arrays of the same bits each, unless they are one object.
      own: let all keep their names on disk.
    """
    where, config = stored.folder.path, stored.config
    kind = config.get("model_type")
    t5 = not own and (kind in _T5_TYPES or (kind is None and _is_t5(arrays)))
    lm = not own and lm_names.knows(config)
    renamed, wrappers = unwrapped(arrays, t5)
    disk = one_each(renamed, where)
    kept = {name: arrays[old] for name, old in disk.items()}
    tied = config.get("tie_word_embeddings", True) is not False
    again = _t5_aliases(kept, tied) if t5 else aliases(kept, config)
    equal = {name for name, one in again.items() if kept[name] is not kept[one]}
    if untied:
        again = {name: one for name, one in again.items() if name not in equal}
    left_out = [
        *stored.left_out,
        *(LeftOut(disk[n], f"{disk[one]} again, counted once") for n, one in again.items()),
    ]
    kept = {name: array for name, array in kept.items() if name not in again}
    settings = {}
    if t5:
        kept = _with_shared(kept)
        sources = names.hugging_face_t5(kept, where, per_layer_bias=kind == "umt5")
        settings = _settings(stored.folder, config)
    elif lm:
        sources, settings = lm_names.hugging_face_lm(kept, config, where), dict(config)
    else:
        # What stands before all names but those of arrays that are stored twice.
        shorter, more = unwrapped(kept, False)
        kept = {name: kept[old] for name, old in one_each(shorter, where).items()}
        wrappers = ", ".join(word for word in (wrappers, more) if word)
        sources = names.own(kept, where)
    left_out += _uncounted(stored.found, kept, sources, {name for name, _ in left_out})
    kept = {**stored.found, **kept}  # of which those that are not counted can be verified
    return Checkpoint(
        *(where, stored.step, NAME, kept, sources, settings),
        left_out=left_out,
        files=stored.files,
        wrappers=wrappers,
        untied=partial(_named, stored, arrays, True, own) if equal and not untied else None,
    )


def _is_t5(arrays: Mapping[str, DiskArray]) -> bool:
    return names.is_hugging_face_t5(unwrapped(arrays, True)[0].values())


def _no_arrays(folder: Folder) -> CheckpointFormatError:
    if adapters := _adapters(folder):
        settings = _json(folder, _ADAPTER) if _ADAPTER in folder.files else {}
        return refuse_adapter_file(folder.where(adapters[0]), settings)
    return CheckpointFormatError(f"{folder.path} holds no arrays.")


def _uncounted(
    found: Mapping[str, DiskArray],
    arrays: Mapping[str, DiskArray],
    sources: Mapping[str, ParameterLayout],
    known: Container[str],
) -> list[LeftOut]:
    """Return the arrays that could be parameters and that no parameter is read from."""
    used = {source.array for source in sources.values()}
    # One that is counted under another name than its own stands under neither reason.
    renamed = {id(arrays[name]) for name in used if name not in found}
    return [
        LeftOut(name, "an array of other names, counted once" if name not in arrays else "unused")
        for name, array in found.items()
        if name not in used and name not in known and id(array) not in renamed
    ]


def _files(folder: Folder, kind: _Container) -> list[str]:
    """Return the files of one kind that can hold a model's weights."""
    return [
        name
        for name, head in folder.heads.items()
        if kind.knows(head) and not _NO_WEIGHTS.fullmatch(name) and not _ADAPTER_FILE.match(name)
    ]


def _adapters(folder: Folder) -> list[str]:
    return [
        name
        for name, head in folder.heads.items()
        if _ADAPTER_FILE.match(name) and any(kind.knows(head) for kind in _CONTAINERS)
    ]


def _others(folder: Folder, read: Sequence[str]) -> list[LeftOut]:
    """Return the files with weights, and indices of such, beside those that were read."""
    indices = {f"{kind.usual}{_INDEX_SUFFIX}" for kind in _CONTAINERS}.intersection(folder.files)
    names = {name for kind in _CONTAINERS for name in _files(folder, kind)} | indices
    other = [(name, "another version of the weights") for name in sorted(names - set(read))]
    adapters = [(name, "an adapter, no part of the model") for name in _adapters(folder)]
    return [LeftOut(name, f"{what}: {read[0]} was read") for name, what in other + adapters]


def _arrays(folder: Folder) -> tuple[dict[str, DiskArray], tuple[str, ...]]:
    """Return the arrays of the weights in a folder, and the files that were read for them."""
    for kind in _CONTAINERS:
        files, suffix = _files(folder, kind), f".{kind.usual.rpartition('.')[2]}{_INDEX_SUFFIX}"
        if kind.usual in files:
            return kind.read(folder, kind.usual), (kind.usual,)
        indices = [name for name in folder.files if name.endswith(suffix)]
        usual = [name for name in indices if name == f"{kind.usual}{_INDEX_SUFFIX}"]
        if len(usual or indices) == 1:
            return _sharded(folder, (usual or indices)[0], kind)
        if len(files) > 1:
            raise CheckpointFormatError(
                f"{folder.path} holds {_some(files)}, and no single '*{suffix}' "
                "that says which belong together."
            )
        if files:
            return kind.read(folder, files[0]), (files[0],)
    return {}, ()


def _sharded(
    folder: Folder, index: str, kind: _Container
) -> tuple[dict[str, DiskArray], tuple[str, ...]]:
    """Return the arrays of all shards that an index lists, each from the shard it names."""
    placed = weight_map(folder, index)
    shards = {name: kind.read(folder, name) for name in sorted(set(placed.values()))}
    for key, shard in placed.items():
        if key not in shards[shard]:
            raise CheckpointFormatError(
                f"{folder.where(shard)}: the array {key!r} is missing, which {index} says it holds."
            )
    return {key: shards[shard][key] for key, shard in placed.items()}, (index, *shards)


def weight_map(folder: Folder, index: str) -> dict[str, str]:
    """Return which shard an index says holds each array, all of which are there.

    Raises:
      CheckpointFormatError: the index is damaged, or a shard that it asks for is missing.
    """
    placed = _json(folder, index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(f, str) for f in placed.values()):
        raise CheckpointFormatError(f"{folder.where(index)} is damaged: it has no 'weight_map'.")
    if odd := next((name for name in placed.values() if name != posixpath.normpath(name)), None):
        raise CheckpointFormatError(
            f"{folder.where(index)} is damaged: {bounds.shown(odd)} is no plain name of a shard."
        )
    absent = [name for name in sorted(set(placed.values())) if not folder.exists(name)]
    if absent:
        stem = index.split(".")[0]
        listed = {index, *placed.values()}
        there = [name for name in folder.files if name.startswith(stem) and name not in listed]
        raise CheckpointFormatError(
            f"{folder.where(absent[0])} is missing, and {index} asks for it"
            + (f" ({len(absent)} of its shards are missing)" if len(absent) > 1 else "")
            + (f"; {_some(there)}, which it does not list, lie there." if there else ".")
        )
    return placed


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _t5_aliases(arrays: Mapping[str, DiskArray], tied: bool) -> dict[str, str]:
    """Return the arrays that are a T5's `shared.weight` again.

    An untied head is a parameter whatever it holds. Where a file says that arrays are tied and yet
    stores different values for them, they are parameters of their own.
    """
    shared = next((key for key in ("shared.weight", *_TIED) if key in arrays), None)
    found = {}
    for key in _TIED:
        if shared is None or key == shared or key not in arrays:
            continue
        may_be = tied or key != "lm_head.weight"
        one_object = arrays[key] is arrays[shared]
        if one_object or (may_be and same_bits(arrays[key], arrays[shared])):
            found[key] = shared
    return found


def _with_shared(arrays: Mapping[str, DiskArray]) -> dict[str, DiskArray]:
    """Call a T5's only embedding `shared.weight`, after which encoder-only files do not name it."""
    kept = dict(arrays)
    users = [key for key in _TIED[:2] if key in kept]
    if "shared.weight" not in kept and len(users) == 1:
        kept["shared.weight"] = kept.pop(users[0])
    return kept


def _json(folder: Folder, name: str) -> dict[str, Any]:
    if folder.size(name) > bounds.LARGEST_JSON:
        raise CheckpointFormatError(f"{folder.where(name)} is too large to be what it is called.")
    folder.head(name, 256)
    found = bounds.parse_json(folder.where(name), folder.read(name))
    if not isinstance(found, dict):
        raise CheckpointFormatError(f"{folder.where(name)} is damaged: it is no JSON object.")
    return found
