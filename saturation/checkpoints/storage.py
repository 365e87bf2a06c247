"""The one way a checkpoint format touches bytes: a `Folder` that cannot be left.

A format is handed a `Folder` and asks it for names, sizes and byte ranges. Where the bytes lie (a
local disk now, a bucket or a hub behind the same methods) is the folder's business alone, and so
are the checks that every format needs: a name that leaves the folder, a file that is missing or
too short, and a Git-LFS pointer where data should be.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from saturation.checkpoints.lazy import cached_property
from saturation.checkpoints.stamps import Mark, Stamps
from saturation.checkpoints.strangers import is_leftover
from saturation.errors import CheckpointFormatError

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

    def owner(self, name: str) -> Folder:
        """Return the folder that reads the file `name` itself, under that name."""
        return self

    def only(self, *names: str) -> Folder:
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


class LocalFolder(Folder):
    """A folder of the local file system.

    Args:
      path: the folder.
      stamps: what is remembered of each file below the folder that was opened first: size and times
        at its first reading. A file that has others at a later one has changed.
    """

    def __init__(self, path: str | os.PathLike[str], stamps: Stamps | None = None):
        self.path = os.fspath(path)
        self._stamps = Stamps() if stamps is None else stamps
        self._unwatched = False

    def marks(self) -> Iterator[tuple[str, Mark]]:  # noqa: D102
        yield from self._marks("")

    def _marks(self, below: str) -> Iterator[tuple[str, Mark]]:
        with os.scandir(os.path.join(self.path, below)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = f"{below}{entry.name}"
            if entry.is_dir(follow_symlinks=False) or (entry.is_dir() and not below):
                # A link to a folder is followed once: links may go in circles.
                yield from self._marks(f"{name}/")
            elif entry.is_file():
                self._remember(name, entry.stat())
                yield name, Mark(entry.stat().st_size)

    def changed(self, unwatched: bool = False) -> str | None:  # noqa: D102
        if unwatched and not self._unwatched:
            return None
        return self._stamps.changed(self.path)

    def _remember(self, name: str, found: os.stat_result) -> None:
        self._stamps.remember(os.path.join(self.path, name), found)

    def kvstore(self) -> dict[str, Any]:  # noqa: D102
        self._unwatched = True
        return super().kvstore()

    def refuse_special(self) -> None:  # noqa: D102
        seen: set[str] = set()
        below = [self.path]
        while below:
            place = below.pop()
            if (real := os.path.realpath(place)) in seen:  # links may go in circles
                continue
            seen.add(real)
            try:
                with os.scandir(place) as entries:
                    found = [(e.path, e.is_dir(), e.is_file()) for e in entries]
            except OSError as error:  # such as a link that leads to itself
                raise CheckpointFormatError(
                    f"{place} cannot be listed: {error.strerror}."
                ) from error
            for path, folder, file in found:
                if not folder and not file and os.path.exists(path):
                    raise CheckpointFormatError(
                        f"{path} is a pipe, a socket or a device, and no file of a checkpoint. "
                        "Remove it, and copy the checkpoint again."
                    )
            below += [path for path, folder, _ in found if folder]

    def _children(self) -> Mapping[str, bool]:
        try:
            with os.scandir(self.path) as entries:
                # Pipes and devices, which could block a reader for ever, are neither.
                return {e.name: e.is_dir() for e in entries if e.is_dir() or e.is_file()}
        except OSError as error:
            raise CheckpointFormatError(
                f"{self.path} cannot be listed: {error.strerror}."
            ) from error

    @cached_property
    def broken_links(self) -> tuple[tuple[str, str], ...]:  # noqa: D102
        with os.scandir(self.path) as entries:
            links = [entry for entry in entries if entry.is_symlink()]
        broken = (link for link in links if not os.path.exists(link.path))
        return tuple(sorted((link.name, os.readlink(link.path)) for link in broken))

    def _unreadable(self, name: str, error: OSError) -> CheckpointFormatError:
        path = os.path.join(self.path, name)
        if isinstance(error, FileNotFoundError) and os.path.islink(path):
            return CheckpointFormatError(
                f"{path} is a broken link: {os.readlink(path)} is not there."
            )
        return super()._unreadable(name, error)

    def exists(self, name: str) -> bool:  # noqa: D102
        return os.path.exists(os.path.join(self.path, self._inside(name)))

    def _child(self, name: str) -> Folder:
        return LocalFolder(os.path.join(self.path, name), self._stamps)

    def _size(self, name: str) -> int:
        return _regular(os.path.join(self.path, name)).st_size

    def _read(self, name: str, start: int, stop: int) -> bytes:
        # In one piece and without a copy, as nearly all is; else as any folder does.
        descriptor = _opened(os.path.join(self.path, name))
        try:
            data = os.pread(descriptor, stop - start, start)
            if len(data) == stop - start:
                self._remember(name, os.fstat(descriptor))
                return data
        finally:
            os.close(descriptor)
        return super()._read(name, start, stop)

    def read_blocks(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:  # noqa: D102
        # Many small ones: opening the file for each would cost more than reading.
        try:
            descriptor = _opened(os.path.join(self.path, self._inside(name)))
        except OSError as error:
            raise self._unreadable(name, error) from error
        try:
            found = [os.pread(descriptor, stop - start, start) for start, stop in spans]
            self._remember(name, os.fstat(descriptor))
        except OSError as error:
            raise self._unreadable(name, error) from error
        finally:
            os.close(descriptor)
        for (start, stop), data in zip(spans, found, strict=True):
            self._refuse_short(name, start, stop - start, len(data))
        return found

    def _read_into(self, name: str, start: int, buffer: memoryview) -> int:
        # preadv lets go of the interpreter lock, keeps no file position that threads could share,
        # and writes straight into the caller's memory.
        descriptor = _opened(os.path.join(self.path, name))
        try:
            done = 0
            while done < len(buffer):
                got = os.preadv(descriptor, [buffer[done:]], start + done)
                if not got:
                    break
                done += got
            if done == len(buffer):
                # One that ends too early is an error of its own.
                self._remember(name, os.fstat(descriptor))
            return done
        finally:
            os.close(descriptor)


def _regular(path: str) -> os.stat_result:
    """Return what is known of a regular file.

    Raises:
      OSError: it is missing, or a folder, pipe, socket or device.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return found


def _opened(path: str) -> int:
    """Open a file for reading, and nothing but a file: opening a pipe waits for its writer."""
    _regular(path)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


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

    def owner(self, name: str) -> Folder:  # noqa: D102
        return self._folder.owner(name) if self._sees(name) else self

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


def open_folder(path: str | os.PathLike[str], shared: dict[str, Any] | None = None) -> Folder:
    """Return the `Folder` at a path; of a single file, its folder with that file alone in sight.

    Args:
      path: a local path, or a URL such as `gs://…`, `s3://…`, `https://…` or `hf://…`; of a URL
        nothing is asked yet.
      shared: an empty dict in which folders that are opened together keep what they share, such
        as connections.

    Raises:
      CheckpointFormatError: nothing is there.
    """
    if "://" in os.fspath(path):
        from saturation.checkpoints.remote import open_remote

        return open_remote(os.fspath(path), shared)
    local = Path(os.path.expanduser(os.fspath(path)))
    if local.is_dir():
        return LocalFolder(local)
    if local.exists():
        # T5X's own loader takes the index file inside a checkpoint for the checkpoint.
        inside = local.name == "checkpoint"
        return LocalFolder(local.parent) if inside else LocalFolder(local.parent).only(local.name)
    # TensorFlow calls a checkpoint by what the names of its files begin with.
    table = f"{local.name}.index"
    if (local.parent / table).is_file():
        folder = LocalFolder(local.parent)
        shards = (name for name in folder.files if name.startswith(f"{local.name}.data-"))
        return folder.only(table, *shards)
    raise CheckpointFormatError(f"{path}: no such folder or file.")
