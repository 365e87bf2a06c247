"""The tree of arrays that Orbax writes into a folder, in each of its layouts.

Arrays lie in one store (`manifest.ocdbt`) or in a folder each, as zarr; in the layouts of 2023-24
there is also a msgpack file `checkpoint` whose leaves are small arrays or
`'PLACEHOLDER://<folder>'`. `_METADATA`, where present, says which leaves there must be.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from saturation.checkpoints.arrays import bounds, zarr, zarr3
from saturation.checkpoints.arrays import flax_msgpack_index as msgpack_index
from saturation.checkpoints.arrays.ocdbt import MANIFEST, OcdbtStore
from saturation.checkpoints.arrays.zarr import Fetch, ZarrArray
from saturation.checkpoints.arrays.zarr3 import Zarr3Array
from saturation.checkpoints.disk_array import DiskArray, UnreadArray
from saturation.checkpoints.t5x import folder_fetch
from saturation.checkpoints.torch_names import joined
from saturation.errors import CheckpointFormatError, UnreadTypeError
from saturation.storage.folder import Folder
from saturation.storage.lazy import cached_property

Keys = tuple[str, ...]

_METADATA = "_METADATA"
_INDEX = "checkpoint"
_PLACEHOLDER = "PLACEHOLDER://"
_PROCESS = re.compile(r"ocdbt\.process_\d+")
# T5X's arrays, under `target`, are a checkpoint only with the index beside them.
_ARRAY = re.compile(r"(params|model)\..+")


class Tree:
    """The leaves of one Orbax tree.

    Args:
      folder: the folder that holds `manifest.ocdbt`, `_METADATA`, `checkpoint` or the arrays.
    """

    def __init__(self, folder: Folder):
        self.folder = folder

    @staticmethod
    def lies_in(folder: Folder) -> bool:
        """Say whether a folder directly holds an Orbax tree."""
        if MANIFEST in folder.files or _METADATA in folder.files or _unmerged(folder):
            return True
        if _INDEX not in folder.files:
            return any(_holds_array(folder, name) for name in _dotted(folder))
        return msgpack_index.first_key(folder, _INDEX) not in (
            None,
            "version",
            "optimizer",
        )

    @cached_property
    def leaves(self) -> Mapping[Keys, str]:
        """Path of every leaf that is stored as an array, and the array's name on disk."""
        listed = {keys: ".".join(keys) for keys in self._shapes}
        for keys, leaf in self._index.items():
            if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
                listed[keys] = leaf.removeprefix(_PLACEHOLDER)
            else:
                listed.pop(keys, None)
        known = set(listed.values())
        if len(known) < len(listed):
            twice = Counter(listed.values()).most_common(1)[0][0]
            raise CheckpointFormatError(
                f"{self.folder.path}: two leaves of its tree point at {bounds.shown(twice)}."
            )
        for name in self._stored:
            if name not in known:
                listed[tuple(name.split("."))] = name
        return listed

    @cached_property
    def top(self) -> frozenset[str]:
        """The first key of every leaf."""
        return frozenset(keys[0] for keys in (*self.leaves, *self._index) if keys)

    def arrays(self, wanted: Callable[[Keys], Keys | None]) -> dict[str, DiskArray]:
        """Open the arrays whose path `wanted` maps to a path, under that path joined by "/".

        Raises:
          CheckpointFormatError: an array that should be there is missing or damaged.
        """
        inline = {keys: leaf for keys, leaf in self._index.items() if isinstance(leaf, DiskArray)}
        paths = {keys: path for keys in (*inline, *self.leaves) if (path := wanted(keys))}
        found = {
            keys: self._open(self.leaves[keys], self._shapes.get(keys))
            if keys in self.leaves
            else inline[keys]
            for keys in paths
        }
        return joined(found, paths, self.folder.path)

    def _open(self, name: str, described: Sequence[int] | None) -> DiskArray:
        """Open one stored array, of which `_METADATA` may give the piece that a device writes."""
        where, fetch = self.folder.where(name), self._fetch(name)
        elided = self._metadata.get("store_array_data_equal_to_fill_value") is not True
        kind = Zarr3Array if self._stored.get(name) == zarr3.DESCRIPTION else ZarrArray
        try:
            array: DiskArray = kind(where, fetch, elided)
        except UnreadTypeError as error:
            return UnreadArray(where, tuple(described or ()), error.reason)
        if described is not None and not _is_piece(tuple(described), array.shape):
            raise CheckpointFormatError(
                f"{where}/{self._stored.get(name)} says shape {array.shape} and {_METADATA} says "
                f"that devices wrote pieces of {tuple(described)}, which do not make it up."
            )
        return array

    @cached_property
    def _store(self) -> OcdbtStore | None:
        if MANIFEST in self.folder.files:
            return OcdbtStore(self.folder, (self.folder,))
        # Each process wrote a store of its own, and the job ended before they were merged.
        parts = (self.folder.child(name) for name in _unmerged(self.folder))
        found = tuple(part for part in parts if MANIFEST in part.files)
        return OcdbtStore(self.folder, found) if found else None

    @cached_property
    def _stored(self) -> Mapping[str, str]:
        """Names of the arrays that are there, and of the file that describes each."""
        found = {}
        for description in (zarr.DESCRIPTION, zarr3.DESCRIPTION):
            if self._store is not None:
                ends = f"/{description}"
                names = [k.removesuffix(ends) for k in sorted(self._store.keys) if k.endswith(ends)]
            else:
                folders = self.folder.folders
                names = [name for name in folders if self.folder.exists(f"{name}/{description}")]
            found |= dict.fromkeys(names, description)
        return found

    def _fetch(self, name: str) -> Fetch:
        if self._store is not None:
            return self._store.fetch(name)
        return folder_fetch(self.folder.child(name))

    @cached_property
    def _index(self) -> Mapping[Keys, object]:
        """Leaves of the msgpack file, where there is one."""
        if _INDEX not in self.folder.files:
            return {}
        tree = msgpack_index.read_index(self.folder, _INDEX)
        return dict(_flat(tree, ()))

    @cached_property
    def _metadata(self) -> Mapping[str, Any]:
        """What `_METADATA` says, empty where there is none."""
        if _METADATA not in self.folder.files:
            return {}
        if self.folder.size(_METADATA) > bounds.LARGEST_JSON:
            raise self._damaged()
        try:
            described = bounds.parse_json(self.folder.where(_METADATA), self.folder.read(_METADATA))
        except CheckpointFormatError as error:
            raise self._damaged() from error
        if not isinstance(described, dict):
            raise self._damaged()
        return described

    @cached_property
    def _shapes(self) -> Mapping[Keys, Sequence[int] | None]:
        """Path of each leaf that `_METADATA` says is an array, and a device's piece's shape."""
        if not self._metadata:
            return {}
        found: dict[Keys, Sequence[int] | None] = {}
        try:
            for leaf in self._metadata["tree_metadata"].values():
                keys = tuple(str(part["key"]) for part in leaf["key_metadata"])
                said = leaf["value_metadata"]
                if said.get("skip_deserialize"):
                    continue
                if said.get("value_type") not in ("jax.Array", "np.ndarray"):
                    continue
                if not keys or keys in found:
                    raise self._damaged()
                found[keys] = self._written(said.get("write_shape"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged() from error
        return found

    def _written(self, shape: Any) -> tuple[int, ...] | None:
        where = self.folder.where(_METADATA)
        return None if shape is None else bounds.sizes(where, "write_shape", shape)

    def _damaged(self) -> CheckpointFormatError:
        return CheckpointFormatError(
            f"{self.folder.where(_METADATA)} is damaged: it is not the description of a tree that "
            "Orbax writes."
        )


def _unmerged(folder: Folder) -> list[str]:
    return [name for name in folder.folders if _PROCESS.fullmatch(name)]


def _dotted(folder: Folder) -> list[str]:
    """Return a few folders whose names are paths in a tree of parameters, such as `params.w`."""
    names = (name for name in folder.folders if _ARRAY.fullmatch(name))
    return list(itertools.islice(names, 2))


def _holds_array(folder: Folder, name: str) -> bool:
    return any(folder.exists(f"{name}/{file}") for file in (zarr.DESCRIPTION, zarr3.DESCRIPTION))


def _is_piece(piece: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Say whether an array can have been written in pieces of one shape, the last ones cut off."""
    # How many devices there were is not written anywhere, so that any smaller piece will do.
    return len(piece) == len(shape) and all(
        part <= size for part, size in zip(piece, shape, strict=True)
    )


def _flat(node: object, path: Keys) -> Iterable[tuple[Keys, object]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, (*path, str(key)))
    else:
        yield path, node
