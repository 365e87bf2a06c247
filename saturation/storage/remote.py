"""Folders on a network: listed once, read by byte ranges, tried again when a server fails.

What a checkpoint costs in requests is kept small: everything below it comes in one listing; the
beginnings by which formats know their files are fetched together, once, and not of files that are
text by their name; and so are the small files that describe the arrays of one checkpoint.
"""

from __future__ import annotations

import posixpath
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from saturation.errors import CheckpointFormatError
from saturation.storage.cache import DiskCache, Recent
from saturation.storage.folder import Folder
from saturation.storage.listing import matches
from saturation.storage.parallel import map_in_threads
from saturation.storage.places import File, Listing, RemoteSource
from saturation.storage.stamps import Mark
from saturation.storage.tensorstore_bridge import serve_for_tensorstore

# Of a file up to the first size all comes with its beginning, of a larger one so many bytes.
_SMALL, _BEGINNING = 16 * 1024, 4 * 1024
_RECENT_BYTES = 64 * 2**20
# No format keeps arrays in such files, so no format needs to look into them.
_TEXT = re.compile(r"(?i).*\.(json|md|txt|gin|py|ya?ml|pbtxt|csv|model|gitattributes)|\.git.*")
_NUMBERED = re.compile(r".*\d")


Result = TypeVar("Result")


class CachedPlace:
    """A place together with what was read from it lately; all folders in it share one."""

    def __init__(self, place: RemoteSource, small: tuple[str, ...] = ()):
        self.place = place
        self.small = small  # patterns of the files that describe arrays
        self.beginnings = Recent(_RECENT_BYTES)
        self.cache = DiskCache.from_environment()

    def fetch(self, path: str, file: File, start: int, stop: int) -> bytes:
        """Return the bytes `start` to `stop` of a file, from the cache where it has them."""
        if self.cache is None:
            return self.place.fetch(path, file, start, stop)
        version = file.digest or file.version or ""
        key = f"{self.place.cache_key(path)} {version} {file.size} {start}-{stop}"
        data = self.cache.get(key, stop - start)
        if data is None:
            data = self.place.fetch(path, file, start, stop)
            self.cache.put(key, data)
        return data

    def beginning(self, path: str, file: File) -> bytes:
        """Return the first bytes of a file, and all of a small one."""
        data = self.beginnings.get(path)
        if data is None:
            data = self.fetch(path, file, 0, _beginning_size(file))
            self.beginnings.put(path, data)
        return data

    def prefetch(self, files: Mapping[str, File]) -> None:
        """Fetch the beginnings of several files together."""
        lacking = {path: file for path, file in files.items() if not self.beginnings.get(path)}
        map_in_threads(lambda path: self.beginning(path, lacking[path]), lacking)


class RemoteFolder(Folder):
    """A folder of a place on a network, or a single file of one as the only one in sight.

    Nothing is asked of the network until a name, a size or bytes are.

    Args:
      store: the place.
      prefix: the folder's path there.
      parent: the folder that this is a child of, if any.
      listing: what is in it, where that is known.
    """

    remote = True

    def __init__(
        self,
        store: CachedPlace,
        prefix: str,
        parent: RemoteFolder | None = None,
        listing: Listing | None = None,
    ):
        self.path = store.place.url(prefix)
        self._store, self._prefix, self._parent = store, prefix, parent
        self._known = listing
        self._lock = threading.Lock()
        self._opened: dict[str, RemoteFolder] = {}

    def exists(self, name: str) -> bool:  # noqa: D102
        return self._entry(self._inside(name))[1]

    def _heads(self) -> Mapping[str, bytes]:
        names = [name for name in self.files if not _TEXT.fullmatch(name)]
        files = {self._at(name): self._file(name) for name in names}
        self._call(lambda: self._store.prefetch(files), "read")
        return {name: self.read(name, 0, min(128, self.size(name))) for name in names}

    def digest(self, name: str) -> str | None:  # noqa: D102
        return self._file(self._inside(name)).digest

    def marks(self) -> Iterator[tuple[str, Mark]]:  # noqa: D102
        for name, entry in sorted(self._listing.items()):
            if isinstance(entry, File):
                yield name, Mark(entry.size, entry.digest or entry.version)
            else:
                with self._lock:
                    child = self._opened.get(name)
                known = entry if child is None else child._known
                if known is not None:
                    # What was not looked into was not needed to open the checkpoint.
                    below = child or RemoteFolder(self._store, self._at(name), self, known)
                    yield from ((f"{name}/{inner}", mark) for inner, mark in below.marks())

    def kvstore(self) -> dict[str, Any]:  # noqa: D102
        return serve_for_tensorstore(self)

    def _children(self) -> Mapping[str, bool]:
        return {name: not isinstance(entry, File) for name, entry in self._listing.items()}

    def _child(self, name: str) -> RemoteFolder:
        first, _, rest = name.partition("/")
        listing = self._listing
        with self._lock:
            if first not in self._opened:
                entry = listing.get(first, {})
                known = {} if isinstance(entry, File) else entry
                self._opened[first] = RemoteFolder(self._store, self._at(first), self, known)
            child = self._opened[first]
        return child._child(rest) if rest else child

    def _size(self, name: str) -> int:
        return self._file(name).size

    def _read_into(self, name: str, start: int, buffer: memoryview) -> int:
        file = self._file(name)
        stop = min(start + len(buffer), file.size)
        path, at = self._at(name), start
        beginning = self._store.beginnings.get(path)
        if beginning is None and stop <= _beginning_size(file):
            self._prefetch_sibling_metadata(name)
            beginning = self._store.beginning(path, file)
        if beginning is not None and start < len(beginning):
            at = min(stop, len(beginning))
            buffer[: at - start] = beginning[start:at]
        if at < stop:
            buffer[at - start : stop - start] = self._store.fetch(path, file, at, stop)
        return max(stop - start, 0)

    @property
    def _listing(self) -> Listing:
        with self._lock:
            if self._known is None:
                self._known = self._call(self._look, "listed")
            return self._known

    def _look(self) -> Listing:
        """List the folder: a trajectory's one level, a checkpoint's to the last file."""
        place = self._store.place
        listing = place.listing(self._prefix, deep=self._parent is not None)
        folders = [name for name, entry in listing.items() if not isinstance(entry, File)]
        unseen = any(listing[name] is None for name in folders)
        if unseen and len(folders) < len(listing) and not any(map(_NUMBERED.fullmatch, folders)):
            # Files beside folders without numbers: this is a checkpoint itself.
            listing = place.listing(self._prefix, deep=True)
        if not listing and self._parent is None:
            file = place.file(self._prefix)
            self._prefix, name = posixpath.split(self._prefix)
            self.path = place.url(self._prefix)
            listing[name] = file
        return listing

    def _entry(self, name: str) -> tuple[File | Listing | None, bool]:
        """Return what the listings have under a path, and whether they have it."""
        parent, _, base = name.rpartition("/")
        listing = self._child(parent)._listing if parent else self._listing
        return listing.get(base), base in listing

    def _file(self, name: str) -> File:
        entry, _ = self._entry(name)
        if not isinstance(entry, File):
            raise FileNotFoundError(name)
        return entry

    def _prefetch_sibling_metadata(self, name: str) -> None:
        """Fetch, with a small file that describes an array, those of the checkpoint's other arrays.

        They lie under the same name in the folders beside its own, `target.a/.zarray` and
        `target.b/.zarray`; not those of `state.a`, which are not asked for.
        """
        folder = self._child(posixpath.dirname(name)) if "/" in name else self
        parent, base = folder._parent, posixpath.basename(name)
        if parent is None or not matches(self._store.small, base):
            return
        kind = posixpath.basename(folder._prefix).partition(".")[0]
        alike = {}
        for beside, listing in parent._listing.items():
            file = listing.get(base) if isinstance(listing, dict) else None
            if beside.partition(".")[0] == kind and isinstance(file, File) and file.size <= _SMALL:
                alike[parent._at(f"{beside}/{base}")] = file
        self._store.prefetch(alike)

    def _at(self, name: str) -> str:
        return posixpath.join(self._prefix, name)

    def _call(self, action: Callable[[], Result], verb: str) -> Result:
        try:
            return action()
        except FileNotFoundError as error:
            raise CheckpointFormatError(f"{self.path}: no such folder or file.") from error
        except OSError as error:
            raise CheckpointFormatError(f"{self.path} cannot be {verb}: {error}.") from error


def _beginning_size(file: File) -> int:
    return file.size if file.size <= _SMALL else _BEGINNING
