"""The one way a checkpoint format touches bytes: a `Folder` that cannot be left.

A format is handed a `Folder` and asks it for names, sizes and byte ranges. Where the bytes lie (a
local disk now, a bucket or a hub behind the same methods) is the folder's business alone, and so
are the checks that every format needs: a name that leaves the folder, a file that is missing or
too short, and a Git-LFS pointer where data should be.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from saturation.errors import CheckpointFormatError
from saturation.storage.lazy import cached_property
from saturation.storage.stamps import Mark
from saturation.storage.strangers import is_leftover

_LFS = b"version https://git-lfs"
# What a format needs of a file's beginning to know its own kind.
_HEAD = 128
_LONGEST_PATH = 4096


class Folder(ABC):
    """Files and folders below one place, read by relative name.

    A name is a relative POSIX path such as `"model.safetensors"` or `"target.x/.zarray"`.
    """

    path: str
    remote: bool = False

    @abstractmethod
    def _children(self) -> Mapping[str, bool]:
        """Return the names of the direct children, and whether each is a folder."""

    @abstractmethod
    def _size(self, name: str) -> int: ...

    @abstractmethod
    def _read_into(self, name: str, start: int, buffer: memoryview) -> int: ...

    @abstractmethod
    def _child(self, name: str) -> Folder: ...

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Say whether a file or folder of that name is there."""

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The names of the files directly in it, sorted."""
        return tuple(sorted(name for name, folder in self._seen_children.items() if not folder))

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """The names of the folders directly in it, sorted."""
        return tuple(sorted(name for name, folder in self._seen_children.items() if folder))

    @cached_property
    def _seen_children(self) -> Mapping[str, bool]:
        """The direct children, but for what file managers, network disks and downloads leave."""
        children = self._children()
        return {name: folder for name, folder in children.items() if not is_leftover(name)}

    @cached_property
    def broken_links(self) -> tuple[tuple[str, str], ...]:
        """(name, where it leads) of each link directly in it that leads nowhere."""
        return ()

    @cached_property
    def heads(self) -> Mapping[str, bytes]:
        """The first bytes of each file directly in it, by which formats know their own.

        A place where each costs a request leaves out the files that are text by their names.
        """
        return self._heads()

    def _heads(self) -> Mapping[str, bytes]:
        return {name: self.read(name, 0, min(_HEAD, self.size(name))) for name in self.files}

    def child(self, name: str) -> Folder:
        """Return the folder `name` below this one."""
        return self._child(self._inside(name))

    def folder_that_reads(self, name: str) -> Folder:
        """Return the folder that reads the file `name` itself, under that name."""
        return self

    def restricted_to(self, *names: str) -> Folder:
        """Return this folder with all but these direct children left out of sight."""
        return Selection(self, names)

    def size(self, name: str) -> int:
        """Return the size in bytes of the file `name`.

        Raises:
          CheckpointFormatError: the file is missing or cannot be read.
        """
        try:
            return self._size(self._inside(name))
        except OSError as error:
            raise self._unreadable(name, error) from error

    def digest(self, name: str) -> str | None:
        """Return the hash of a file's content that the place keeps itself, or None."""
        return None

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` (writable, bytes) from the file `name`, beginning at byte `start`.

        Raises:
          CheckpointFormatError: the file is missing, cannot be read, or ends too early.
        """
        try:
            got = self._read_into(self._inside(name), start, buffer)
        except OSError as error:
            raise self._unreadable(name, error) from error
        self._refuse_short(name, start, len(buffer), got)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return the bytes `start` to `stop` (the end, if None) of the file `name`.

        Raises:
          CheckpointFormatError: the file is missing, cannot be read, or ends before `stop`.
        """
        size = self.size(name)
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise CheckpointFormatError(
                f"{self.where(name)} is truncated: bytes {start} to {stop} were expected and it "
                f"has {size}. Copy the file again."
            )
        try:
            data = self._read(self._inside(name), start, stop)
        except OSError as error:
            raise self._unreadable(name, error) from error
        self._refuse_short(name, start, stop - start, len(data))
        return data

    def read_blocks(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes from each start to its stop, as `read` does."""
        return [self.read(name, start, stop) for start, stop in spans]

    def head(self, name: str, count: int) -> bytes:
        """Return the first `count` bytes of a file, or all of it where it is shorter.

        Raises:
          CheckpointFormatError: the file is missing, or is a Git-LFS pointer.
        """
        data = self.read(name, 0, min(count, self.size(name)))
        self.refuse_pointer(name, data)
        return data

    @abstractmethod
    def marks(self) -> Iterator[tuple[str, Mark]]:
        """Yield every file below, to the last folder, as far as that costs no request.

        A local disk remembers size and times of each: whatever is read later must have the same.
        """

    def changed(self, unwatched: bool = False) -> str | None:
        """Return the first file whose size or times are not what they were when it was opened.

        Args:
          unwatched: look only where another library reads, since each read of ours looks itself.
        """
        return None

    def kvstore(self) -> dict[str, Any]:
        """Return the spec by which TensorStore reads the files in it, for formats that need it.

        Raises:
          CheckpointFormatError: TensorStore does not read where this folder lies.
        """
        # TensorStore takes no path that begins with "..".
        return {"driver": "file", "path": f"{os.path.abspath(self.path)}/"}

    def refuse_special(self) -> None:  # noqa: B027 (only a disk has such)
        """Raise `CheckpointFormatError` where a pipe, socket or device lies below.

        Opened by a library, it would block for ever.
        """

    def refuse_pointer(self, name: str, data: bytes) -> None:
        """Raise `CheckpointFormatError` where `data`, the start of a file, is a Git-LFS pointer."""
        if data.startswith(_LFS):
            raise CheckpointFormatError(
                f"{self.where(name)} is a Git-LFS pointer and not the data it points to. "
                "Fetch the data with 'git lfs pull' in the clone it came from."
            )

    def where(self, name: str = "") -> str:
        """Return how an error names the file `name`."""
        return f"{self.path.rstrip('/')}/{name}" if name else self.path

    def _read(self, name: str, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        return bytes(memoryview(buffer)[: self._read_into(name, start, memoryview(buffer))])

    def _refuse_short(self, name: str, start: int, expected: int, got: int) -> None:
        if got != expected:
            raise CheckpointFormatError(
                f"{self.where(name)} is truncated: {expected} bytes from byte {start} were "
                f"expected and {got} are there. Copy the file again."
            )

    def _inside(self, name: str) -> str:
        inside = _normal(name)
        if inside is None:
            raise CheckpointFormatError(
                f"{self.path}: the name {ascii(name)[:200]}, found in the checkpoint, is none or "
                "leads out of the checkpoint's folder and is refused. The checkpoint is damaged or "
                "hostile."
            )
        return inside

    def _unreadable(self, name: str, error: OSError) -> CheckpointFormatError:
        if isinstance(error, FileNotFoundError):
            return CheckpointFormatError(f"{self.where(name)} is missing.")
        return CheckpointFormatError(
            f"{self.where(name)} cannot be read: {error.strerror or error}."
        )


@lru_cache(256)  # the same few files are read block by block
def _normal(name: str) -> str | None:
    """Return a name as a path below a folder, or None where it leads out of it or is no name."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        return None
    if len(name) > _LONGEST_PATH or any("\ud800" <= letter <= "\udfff" for letter in name):
        return None
    return "/".join(parts)


class Selection(Folder):
    """A folder of which only some direct children are seen: a checkpoint among others' files."""

    def __init__(self, folder: Folder, names: tuple[str, ...]):
        self._folder = folder
        self._seen = tuple(sorted(names))
        self.path = folder.path
        self.remote = folder.remote

    def _children(self) -> Mapping[str, bool]:
        return {name: name in self._folder.folders for name in self._seen}

    def exists(self, name: str) -> bool:  # noqa: D102
        return self._sees(name) and self._folder.exists(name)

    def marks(self) -> Iterator[tuple[str, Mark]]:  # noqa: D102
        for name in self._seen:
            if name in self._folder.files:
                yield name, Mark(self._folder.size(name), self._folder.digest(name))
            elif name in self._folder.folders:
                yield from ((f"{name}/{below}", m) for below, m in self._folder.child(name).marks())

    def changed(self, unwatched: bool = False) -> str | None:  # noqa: D102
        return self._folder.changed(unwatched)

    def digest(self, name: str) -> str | None:  # noqa: D102
        return self._folder.digest(name)

    def read_blocks(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:  # noqa: D102
        if not self._sees(name):
            return super().read_blocks(name, spans)
        return self._folder.read_blocks(name, spans)

    def folder_that_reads(self, name: str) -> Folder:  # noqa: D102
        return self._folder.folder_that_reads(name) if self._sees(name) else self

    def _heads(self) -> Mapping[str, bytes]:
        if not self.remote:
            return super()._heads()
        # Over a network, the whole folder asks for all of them at once.
        return {name: head for name, head in self._folder.heads.items() if name in self._seen}

    def kvstore(self) -> dict[str, Any]:  # noqa: D102
        return self._folder.kvstore()

    def refuse_special(self) -> None:  # noqa: D102
        self._folder.refuse_special()

    def _sees(self, name: str) -> bool:
        return self._inside(name).split("/")[0] in self._seen

    def _child(self, name: str) -> Folder:
        return self._folder.child(name)

    def _size(self, name: str) -> int:
        if not self._sees(name):
            raise FileNotFoundError(name)
        return self._folder.size(name)

    def _read_into(self, name: str, start: int, buffer: memoryview) -> int:
        self._folder.read_into(name, start, buffer)
        return len(buffer)
