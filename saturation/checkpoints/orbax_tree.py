"""The tree of arrays that Orbax writes into a folder, in each of its layouts.

Arrays lie in one store (`manifest.ocdbt`) or in a folder each, as zarr; in the layouts of 2023-24
there is also a msgpack file `checkpoint` whose leaves are small arrays or
`'PLACEHOLDER://<folder>'`. `_METADATA`, where present, says which leaves there must be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

from saturation.checkpoints import msgpack_index
from saturation.checkpoints.base import DiskArray
from saturation.checkpoints.ocdbt import MANIFEST, Store
from saturation.checkpoints.storage import Folder
from saturation.checkpoints.t5x import folder_fetch
from saturation.checkpoints.zarr import Fetch, ZarrArray
from saturation.errors import CheckpointFormatError

Keys = tuple[str, ...]

_METADATA = "_METADATA"
_INDEX = "checkpoint"
_PLACEHOLDER = "PLACEHOLDER://"
_LARGEST_METADATA = 64 * 1024 * 1024


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
        if MANIFEST in folder.files or _METADATA in folder.files:
            return True
        return _INDEX in folder.files and msgpack_index.first_key(folder, _INDEX) not in (
            None,
            "version",
            "optimizer",
        )

    @cached_property
    def leaves(self) -> Mapping[Keys, str]:
        """Path of every leaf that is stored as an array, and the array's name on disk."""
        listed = {keys: ".".join(keys) for keys in self._described}
        for keys, leaf in self._index.items():
            if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
                listed[keys] = leaf.removeprefix(_PLACEHOLDER)
            else:
                listed.pop(keys, None)
        known = set(listed.values())
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
        found: dict[str, DiskArray] = {}
        for keys, leaf in self._index.items():
            if isinstance(leaf, DiskArray) and (path := wanted(keys)):
                found["/".join(path)] = leaf
        for keys, name in self.leaves.items():
            if path := wanted(keys):
                found["/".join(path)] = ZarrArray(self.folder.where(name), self._fetch(name))
        return found

    @cached_property
    def _store(self) -> Store | None:
        return Store(self.folder) if MANIFEST in self.folder.files else None

    @cached_property
    def _stored(self) -> Iterable[str]:
        """Names of the arrays that are there."""
        if self._store is not None:
            return sorted(
                {
                    key.removesuffix("/.zarray")
                    for key in self._store.keys
                    if key.endswith("/.zarray")
                }
            )
        return tuple(name for name in self.folder.folders if self.folder.exists(f"{name}/.zarray"))

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
    def _described(self) -> Iterable[Keys]:
        """Paths of the leaves that `_METADATA` says are arrays."""
        if _METADATA not in self.folder.files:
            return ()
        where = self.folder.where(_METADATA)
        try:
            if self.folder.size(_METADATA) > _LARGEST_METADATA:
                raise ValueError("too large")
            described = json.loads(self.folder.read(_METADATA))["tree_metadata"]
            return tuple(
                tuple(str(part["key"]) for part in leaf["key_metadata"])
                for leaf in described.values()
                if not leaf["value_metadata"].get("skip_deserialize")
                and leaf["value_metadata"].get("value_type") not in ("None", "Dict", "List")
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointFormatError(
                f"{where} is damaged: it is not the description of a tree that Orbax writes."
            ) from error


def _flat(node: object, path: Keys) -> Iterable[tuple[Keys, object]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, (*path, str(key)))
    else:
        yield path, node
