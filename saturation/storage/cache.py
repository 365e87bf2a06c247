"""What was read lately, in memory or on a disk, and never more of it than a number of bytes."""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
import warnings
from collections import OrderedDict
from pathlib import Path

from saturation.errors import ConfigError

FOLDER, LIMIT = "SATURATION_CACHE", "SATURATION_CACHE_BYTES"
_DEFAULT_LIMIT = 10 * 2**30
_DIGEST = 16  # bytes in front of a range


class Recent:
    """The small pieces read last, in memory.

    Args:
      limit: how many bytes are kept at most.
    """

    def __init__(self, limit: int):
        self._limit, self._held = limit, 0
        self._pieces: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """Return the piece under a key, or None where it is not held (any more)."""
        with self._lock:
            if key in self._pieces:
                self._pieces.move_to_end(key)
            return self._pieces.get(key)

    def put(self, key: str, piece: bytes) -> None:
        """Hold a piece, and let go of the oldest where there are too many bytes."""
        with self._lock:
            self._held += len(piece) - len(self._pieces.pop(key, b""))
            self._pieces[key] = piece
            while self._held > self._limit:
                self._held -= len(self._pieces.popitem(last=False)[1])


class DiskCache:
    """The byte ranges read last, a file each, in a folder that several processes may share.

    A range is kept under the hash of its whole URL, its file's version and its bounds: measures ask
    for the same ranges run after run, so nothing but what was asked for is ever fetched or kept. It
    stands behind a digest of itself and of that key, without which it is not believed.

    Args:
      folder: where; it is made when first needed.
      limit: how many bytes are kept at most.
    """

    def __init__(self, folder: Path, limit: int):
        self._folder, self._limit = folder, limit
        self._added: int | None = None  # bytes here as far as this process knows
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls) -> DiskCache | None:
        """Return the cache that SATURATION_CACHE names, or None where it names none.

        Raises:
          ConfigError: SATURATION_CACHE_BYTES is no number of bytes.
        """
        folder, limit = os.environ.get(FOLDER), os.environ.get(LIMIT, str(_DEFAULT_LIMIT))
        if not folder:
            return None
        if not limit.isdecimal():
            raise ConfigError(f"{LIMIT} is a number of bytes, such as 10000000000, not {limit!r}.")
        return cls(Path(folder).expanduser(), int(limit))

    def get(self, key: str, size: int) -> bytes | None:
        """Return the range under a key, or None where it is not here whole."""
        path = self._path(key)
        try:
            found = path.read_bytes()
            os.utime(path)
        except OSError:
            # Not here, or just thrown out by another process: it is fetched again.
            return None
        data = found[_DIGEST:]
        if len(data) == size and found[:_DIGEST] == _digest(key, data):
            return data
        # Damaged, or another range's: it is fetched again, and kept anew.
        path.unlink(missing_ok=True)
        return None

    def put(self, key: str, data: bytes) -> None:
        """Keep a range, and throw out the ones used longest ago where there are too many bytes."""
        if len(data) > self._limit:
            return
        path = self._path(key)
        temporary = path.with_name(f"{uuid.uuid4().hex}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(_digest(key, data) + data)
            temporary.replace(path)
            self._keep_within(len(data))
        except OSError as error:
            temporary.unlink(missing_ok=True)
            warnings.warn(f"The cache in {self._folder} cannot be written: {error}.", stacklevel=2)

    def _keep_within(self, more: int) -> None:
        with self._lock:
            self._added = None if self._added is None else self._added + more
            if self._added is not None and self._added <= self._limit:
                return
            ages = []
            for path in self._folder.glob("*.range"):
                status = path.stat()
                ages.append((status.st_mtime, status.st_size, path))
            total = sum(size for _, size, _ in ages)
            for _, size, path in sorted(ages) if total > self._limit else ():
                path.unlink(missing_ok=True)
                total -= size
                # Somewhat below the limit, so as not to look at the whole folder every time.
                if total <= 0.9 * self._limit:
                    break
            self._added = total

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.range"


def _digest(key: str, data: bytes) -> bytes:
    return hashlib.blake2b(
        data, digest_size=_DIGEST, key=hashlib.sha256(key.encode()).digest()
    ).digest()
