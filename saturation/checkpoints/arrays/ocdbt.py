"""Orbax's key-value store in one folder (OCDBT), read through TensorStore."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from saturation.checkpoints.arrays.zarr import Fetch
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder
from saturation.storage.retry import redacted
from saturation.storage.tensorstore_bridge import failure

MANIFEST = "manifest.ocdbt"
# A store of a few kilobytes can describe a tree of keys without end.
_LIST_SECONDS = 15
_CACHE_BYTES = 4 * 2**20  # for the nodes of the tree that leads to the values


class OcdbtStore:
    """The keys and values under one `manifest.ocdbt`, or under those of several processes.

    A job of several processes writes a store for each, and merges them by copying every key into
    one. Where it ended before that, a key is read from the store that has it; of a key that several
    have (the descriptions of arrays, the same in each) the first counts, as in TensorStore's merge.

    Args:
      folder: how errors name the store.
      parts: the folders that hold a manifest.

    Raises:
      CheckpointFormatError: a store cannot be opened or is damaged, or a process's is missing.
    """

    def __init__(self, folder: Folder, parts: Sequence[Folder]):
        import tensorstore as ts

        self._where, self._parts = folder.path, parts
        # A checkpoint does not change: nodes of the tree read since now need no second look,
        # which over a network would be a request for each chunk.
        self._opened = time.time()
        self._place: dict[str, Any] = {}
        for part in parts:
            part.refuse_special()
            spec = {
                "driver": "ocdbt",
                "base": part.kvstore(),
                "context": {"cache_pool": {"total_bytes_limit": _CACHE_BYTES}},
            }
            store = self._call(lambda spec=spec: ts.KvStore.open(spec).result())
            for key in self._call(lambda store=store: store.list().result(_LIST_SECONDS)):
                self._place.setdefault(key.decode(errors="replace"), store)
        self.keys = frozenset(self._place)

    def fetch(self, name: str) -> Fetch:
        """Return the function from key to bytes of the array called `name`."""
        return lambda key: self._read(f"{name}/{key}")

    def _read(self, key: str) -> bytes | None:
        if key not in self._place:
            return None
        store, fresh = self._place[key], self._opened
        found = self._call(lambda: store.read(key, staleness_bound=fresh).result())
        return bytes(found.value)

    def _call(self, action):
        try:
            return action()
        except TimeoutError as error:
            raise CheckpointFormatError(
                f"{self._where}: Orbax's store (OCDBT) does not end: its keys were not listed "
                f"within {_LIST_SECONDS} s."
            ) from error
        except (ValueError, OSError, RuntimeError, KeyError, NotImplementedError) as error:
            if (why := next(filter(None, map(failure, self._parts)), None)) is not None:
                raise why from error
            reason = redacted(str(error)).split(" [")[0].splitlines()[0]
            raise CheckpointFormatError(
                f"{self._where}: Orbax's store (OCDBT) is damaged or incomplete: {reason}"
            ) from error
