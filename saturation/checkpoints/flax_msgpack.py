"""A file of `flax.serialization.to_bytes`: a tree of parameters, ours or Hugging Face's.

Of a train state only `params` is read. Hugging Face's `flax_model.msgpack` has its PyTorch names
as a tree, with kernels already (in, out).
"""

from __future__ import annotations

from collections.abc import Iterator

from saturation.checkpoints import huggingface, msgpack_index, names
from saturation.checkpoints.base import Checkpoint, DiskArray
from saturation.checkpoints.orbax import parameter_path
from saturation.checkpoints.orbax_tree import Tree
from saturation.checkpoints.storage import Folder
from saturation.errors import CheckpointFormatError

NAME = "flax"
LOOKS_FOR = "one msgpack file whose keys are those of a tree of parameters (flax)"


def claims(folder: Folder) -> bool:
    """Say whether `folder` holds one msgpack file of flax, and nothing that goes before it."""
    # Hugging Face's repositories have the same weights in other forms, which are read first.
    return len(_files(folder)) == 1 and not Tree.lies_in(folder) and not huggingface.claims(folder)


def open_checkpoint(folder: Folder, step: int | None) -> Checkpoint:
    """Open a flax msgpack checkpoint.

    Raises:
      CheckpointFormatError: the file is damaged or holds no parameters.
    """
    (name,) = _files(folder)
    where = folder.where(name)
    leaves = dict(_leaves(msgpack_index.read_index(folder, name), ()))
    inside = any(keys[0] == "params" for keys in leaves)
    arrays = {
        "/".join(path): array
        for keys, array in leaves.items()
        if (path := parameter_path(keys, inside))
    }
    if not arrays:
        raise CheckpointFormatError(f"{where} holds no parameters.")
    if names.is_hugging_face_flax_t5(arrays):
        sources = names.hugging_face_flax_t5(arrays, where)
    else:
        sources = names.t5x(arrays, where)
    return Checkpoint(where, step, NAME, arrays, sources)


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
