"""T5X's own checkpoints: a msgpack tree, and a zarr array for each leaf that is not in it.

`checkpoint_N/checkpoint` holds `{'version': 3, 'optimizer': {'target': ..., 'state': ...}}`. A leaf
is an array written into the file, or a TensorStore spec whose path is a folder beside it. In the
single-file form (`checkpoint_N` is the file) all leaves are inside.
Source: `t5x/checkpoints.py`, `t5x/state_utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from saturation.checkpoints import names
from saturation.checkpoints.arrays import bounds
from saturation.checkpoints.arrays import flax_msgpack_index as msgpack_index
from saturation.checkpoints.arrays.zarr import Fetch, ZarrArray
from saturation.checkpoints.base import Checkpoint, LeftOut
from saturation.checkpoints.disk_array import BFLOAT16, DTYPES, DiskArray
from saturation.checkpoints.sift import sift
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder
from saturation.storage.listing import Listing

NAME = "t5x"
LOOKS_FOR = "a msgpack file with the keys 'version' and 'optimizer' (T5X)"
LISTING = Listing(
    stands_for_folder=("checkpoint",),  # as for T5X's own loader
    interior=(r"(target|state|params)\..*",),
    unfinished=(r".*\.tmp-\d+",),
    small=(r"\.z.*",),
)

_OLDEST_VERSION = 2


def claims(folder: Folder) -> bool:
    """Say whether `folder` holds a T5X checkpoint of the legacy kind."""
    return _index_name(folder) is not None


def open_checkpoint(folder: Folder, step: int | None) -> Checkpoint:
    """Open a T5X checkpoint.

    Raises:
      CheckpointFormatError: an array is missing, damaged, or not as the index describes it.
    """
    name = _index_name(folder) or "checkpoint"
    where = folder.where(name)
    tree = msgpack_index.read_index(folder, name)
    version = tree.get("version", 0)
    optimizer = tree.get("optimizer")
    if not isinstance(optimizer, dict) or type(version) is not int or version < _OLDEST_VERSION:
        raise CheckpointFormatError(
            f"{where}: a T5X checkpoint of version {_OLDEST_VERSION} or later, with an 'optimizer' "
            f"in it, was expected; this one says version {bounds.shown(version)}."
        )
    arrays = dict(_leaves(folder, optimizer.get("target"), (), set()))
    if not arrays:
        # Where files are missing too, that is the error to report.
        dict(_leaves(folder, optimizer.get("state"), (), set()))
        raise CheckpointFormatError(f"{where}: its 'target' holds no parameters.")
    weights, left_out = sift(arrays, where)
    left_out += [LeftOut(key, "outside 'target'") for key in optimizer if key != "target"]
    sources = names.t5x(weights, where)
    return Checkpoint(folder.path, step, NAME, weights, sources, left_out=left_out)


def folder_fetch(folder: Folder) -> Fetch:
    """Return the function from key to bytes of an array that is a folder of its own."""

    def fetch(key: str) -> bytes | None:
        if not folder.exists(key):
            return None
        data = folder.read(key)
        folder.refuse_pointer(key, data)
        return data

    return fetch


def as_bfloat16(array: DiskArray) -> DiskArray:
    """Return the array with uint16 taken for what it is in T5X: the bits of bfloat16."""
    if array.dtype == DTYPES["uint16"]:
        array.dtype = BFLOAT16
    return array


def _index_name(folder: Folder) -> str | None:
    candidates = folder.files if len(folder.files) == 1 else ("checkpoint",)
    for name in candidates:
        if name in folder.files and msgpack_index.first_key(folder, name) in (
            "version",
            "optimizer",
        ):
            return name
    return None


def _leaves(
    folder: Folder, node: object, path: tuple[str, ...], places: set[str]
) -> Iterator[tuple[str, DiskArray]]:
    """Yield (name, array) for every leaf of a msgpack tree; `places` are those read so far."""
    if isinstance(node, DiskArray):
        yield "/".join(path), as_bfloat16(node)
    elif isinstance(node, dict) and isinstance(node.get("driver"), str):
        yield "/".join(path), as_bfloat16(_open_spec(folder, node, "/".join(path), places))
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(folder, value, (*path, str(key)), places)


def _open_spec(folder: Folder, spec: Mapping[str, Any], name: str, places: set[str]) -> DiskArray:
    """Open the array a TensorStore spec points at, beside the index whatever its driver says."""
    kvstore = spec.get("kvstore")
    inner = kvstore.get("path") if isinstance(kvstore, dict) else None
    path = inner if isinstance(inner, str) else spec.get("path")
    if spec["driver"] != "zarr" or not isinstance(path, str) or not path.strip("/"):
        raise CheckpointFormatError(
            f"{folder.path}: the leaf {name!r} points at no zarr array: {bounds.shown(dict(spec))}."
        )
    if path.strip("/") in places:
        raise CheckpointFormatError(
            f"{folder.path}: two leaves, of which one is {name!r}, point at {bounds.shown(path)}."
        )
    places.add(path.strip("/"))
    place = folder.child(path.removesuffix("/"))
    array = ZarrArray(place.path, folder_fetch(place))
    metadata = spec.get("metadata")
    shape = metadata.get("shape") if isinstance(metadata, dict) else None
    if isinstance(shape, list) and tuple(shape) != array.shape:
        raise CheckpointFormatError(
            f"{place.where('.zarray')} says shape {array.shape} and the checkpoint's index says "
            f"{bounds.shown(tuple(shape))}."
        )
    return array
