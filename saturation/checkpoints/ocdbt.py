"""Orbax's key-value store in one folder (OCDBT), read through TensorStore."""

from __future__ import annotations

import time

from saturation.checkpoints.retry import redacted
from saturation.checkpoints.storage import Folder
from saturation.checkpoints.zarr import Fetch
from saturation.errors import CheckpointFormatError

MANIFEST = "manifest.ocdbt"
_CACHE_BYTES = 4 * 2**20  # for the nodes of the tree that leads to the values


class Store:
    """The keys and values under a `manifest.ocdbt`.

    Raises:
      CheckpointFormatError: the store cannot be opened or is damaged.
    """

    def __init__(self, folder: Folder):
        import tensorstore as ts

        self._where = folder.path
        spec = {
            "driver": "ocdbt",
            "base": folder.kvstore(),
            "context": {"cache_pool": {"total_bytes_limit": _CACHE_BYTES}},
        }
        # A checkpoint does not change: nodes of the tree read since now need no second look,
        # which over a network would be a request for each chunk.
        self._opened = time.time()
        self._store = self._call(lambda: ts.KvStore.open(spec).result())
        listed = self._call(lambda: self._store.list().result())
        self.keys = frozenset(key.decode(errors="replace") for key in listed)

    def fetch(self, name: str) -> Fetch:
        """Return the function from key to bytes of the array called `name`."""
        return lambda key: self._read(f"{name}/{key}")

    def _read(self, key: str) -> bytes | None:
        if key not in self.keys:
            return None
        fresh = self._opened
        found = self._call(lambda: self._store.read(key, staleness_bound=fresh).result())
        return bytes(found.value)

    def _call(self, action):
        try:
            return action()
        except (ValueError, OSError, RuntimeError, KeyError, NotImplementedError) as error:
            reason = redacted(str(error)).split(" [")[0].splitlines()[0]
            raise CheckpointFormatError(
                f"{self._where}: Orbax's store (OCDBT) is damaged or incomplete: {reason}"
            ) from error
