"""Folders of a local disk: read without opening pipes or devices, and watched for changes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder
from saturation.storage.lazy import cached_property
from saturation.storage.local_files import open_regular, regular_file
from saturation.storage.stamps import Mark, Stamps


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
        return regular_file(os.path.join(self.path, name)).st_size

    def _read(self, name: str, start: int, stop: int) -> bytes:
        # In one piece and without a copy, as nearly all is; else as any folder does.
        descriptor = open_regular(os.path.join(self.path, name))
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
            descriptor = open_regular(os.path.join(self.path, self._inside(name)))
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
        descriptor = open_regular(os.path.join(self.path, name))
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
