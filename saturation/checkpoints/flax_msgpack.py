"""A file of `flax.serialization.to_bytes`: a tree of parameters, ours or Hugging Face's.

Of a train state only `params` is read. Hugging Face's `flax_model.msgpack` has its PyTorch names
as a tree, with kernels already (in, out).
"""

from __future__ import annotations

from collections.abc import Iterator

from saturation.checkpoints import huggingface, names
from saturation.checkpoints.arrays import flax_msgpack_index as msgpack_index
from saturation.checkpoints.base import Checkpoint, LeftOut
from saturation.checkpoints.disk_array import DiskArray
from saturation.checkpoints.orbax import parameter_path
from saturation.checkpoints.orbax_tree import Keys, Tree
from saturation.checkpoints.sift import sift
from saturation.checkpoints.torch_names import joined
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder
from saturation.storage.listing import Listing

NAME = "flax"
LOOKS_FOR = (
    "one msgpack file whose keys are those of a tree of parameters, or shards of one and their "
    "index (flax)"
)
LISTING = Listing(extensions=(".msgpack",), whole=(r".*\.index\.json",))

_USUAL = "flax_model.msgpack"
_INDEX = f"{_USUAL}.index.json"


def claims(folder: Folder) -> bool:
    """Say whether `folder` holds a flax tree in msgpack, and nothing that goes before it."""
    # Hugging Face's repositories have the same weights in other forms, which are read first.
    readable = len(_read_from(folder)) == 1
    return readable and not Tree.lies_in(folder) and not huggingface.claims(folder)


def open_checkpoint(folder: Folder, step: int | None) -> Checkpoint:
    """Open a flax msgpack checkpoint.

    Raises:
      CheckpointFormatError: a file is damaged or missing, or there are no parameters.
    """
    (name,) = _read_from(folder)
    where = folder.where(name)
    leaves, files = _sharded(folder) if name == _INDEX else (_whole(folder, name), (name,))
    inside = any(keys[0] == "params" for keys in leaves)
    paths = {keys: path for keys in leaves if (path := parameter_path(keys, inside))}
    arrays = joined({keys: leaves[keys] for keys in paths}, paths, where)
    if not arrays:
        raise CheckpointFormatError(f"{where} holds no parameters.")
    weights, left_out = sift(arrays, where)
    if inside:
        rest = {keys[0] for keys in leaves} - {"params"}
        left_out += [LeftOut(key, "outside 'params'") for key in sorted(rest)]
    settings = {}
    if names.is_hugging_face_flax_t5(weights):
        sources = names.hugging_face_flax_t5(weights, where)
        settings = huggingface.settings_beside(folder)
    else:
        sources = names.t5x(weights, where)
    return Checkpoint(where, step, NAME, weights, sources, settings, left_out=left_out, files=files)


def _read_from(folder: Folder) -> list[str]:
    """Return the file, or the index of shards, that there is; several where it is not clear."""
    files = _files(folder)
    if _USUAL in files:
        return [_USUAL]
    return [_INDEX] if _INDEX in folder.files else files


def _whole(folder: Folder, name: str) -> dict[Keys, DiskArray]:
    return dict(_leaves(msgpack_index.read_index(folder, name), ()))


def _sharded(folder: Folder) -> tuple[dict[Keys, DiskArray], tuple[str, ...]]:
    """Return the leaves that the index lists, each from the shard that it names."""
    placed = huggingface.weight_map(folder, _INDEX)
    shards = {name: _whole(folder, name) for name in sorted(set(placed.values()))}
    leaves = {}
    for path, shard in placed.items():
        keys = tuple(path.split("/"))
        if keys not in shards[shard]:
            raise CheckpointFormatError(
                f"{folder.where(shard)}: the array {path!r} is missing, which {_INDEX} says it "
                "holds."
            )
        leaves[keys] = shards[shard][keys]
    return leaves, (_INDEX, *shards)


def _files(folder: Folder) -> list[str]:
    return [
        name
        for name in folder.files
        if msgpack_index.first_key(folder, name) not in (None, "version", "optimizer")
    ]


def _leaves(node: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], DiskArray]]:
    if isinstance(node, DiskArray):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, (*path, str(key)))
