"""Files written whole or not at all, here or at a URL, and never over a pipe or a device."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from saturation.errors import ResultsError
from saturation.storage.local_files import read_regular, refuse_impossible, regular_file


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary neighbour of `path` and rename it; on failure leave nothing.

    The file is flushed to the disk before it gets its name, so that a crash cannot leave it empty.
    """
    _refuse_to_replace(path)
    # Not behind the name itself, which may be as long as a name can be.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with _created(temporary) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _refuse_to_replace(path: Path) -> None:
    """Raise `OSError` where a file cannot take a name, or would take that of no file.

    As root, a rename would replace /dev/null, for everybody.
    """
    refuse_impossible(path)
    with suppress(FileNotFoundError):
        regular_file(path)


def _created(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except FileNotFoundError:  # its folder is made once, not looked for each time
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def refuse_url(path: str | os.PathLike[str], what: str) -> None:
    """Raise `ResultsError` where something goes to local disks alone and `path` is a URL.

    As a path, a URL would make a folder called `gs:` here, with what was meant for a bucket in it.
    """
    if "://" in os.fspath(path):
        raise ResultsError(f"{path}: the {what} is written to a local disk; give a path here.")


def write_text(path: str | os.PathLike[str], text: str, what: str) -> Path:
    """Write a text as UTF-8 by `write_whole` and return its path; `what` names it in the error.

    Raises:
      ResultsError: the file cannot be written.
    """
    path = Path(path)
    try:
        write_whole(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise ResultsError(
            f"Cannot write {path}: {error.strerror or error}. "
            f"Make room or choose another place for the {what}."
        ) from error
    return path


class Files:
    """Files below one place, by relative name, each read and written whole.

    Args:
      path: a local folder, or a URL that fsspec knows (`gs://…`, `s3://…`, `memory://…`).

    Raises:
      ResultsError: the path is empty, or a URL of a kind that is not known or not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path).removeprefix("file://")
        self._remote: Any = None
        if not self.path:
            raise ResultsError("A folder or a URL is needed, and its path is empty.")
        try:
            refuse_impossible(self.path)
        except OSError as error:
            raise ResultsError(f"The folder: {error.strerror}.") from error
        if "://" in self.path:
            if not self.path.partition("://")[2].strip("/"):
                raise ResultsError(f"{self.path}: the URL was expected to name a place there.")
            import fsspec

            from saturation.storage.places import open_alone
            from saturation.storage.trust import shown_url

            make = partial(fsspec.core.url_to_fs, self.path)
            try:
                self._remote, self._root = open_alone(make, self.path.partition("://")[0])
            # Each library raises what it likes: of a missing part of the URL even TypeError.
            except Exception as error:
                raise ResultsError(
                    f"{shown_url(self.path)} cannot be reached: {error}. Install what it needs "
                    "(pip install 'saturation-jax[gcs]' for gs://, [s3] for s3://), or give a "
                    "local folder."
                ) from error

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None where there is no such file."""
        try:
            if self._remote is not None:
                return _asked(lambda: self._remote.cat_file(f"{self._root}/{name}"))
            return read_regular(Path(self.path) / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ResultsError(f"Cannot read {self.path}/{name}: {_reason(error)}.") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole: one object on a bucket, a rename on a local disk.

        Raises:
          ResultsError: the place is full or cannot be written; nothing half-written remains.
        """
        try:
            if self._remote is not None:
                _asked(lambda: self._remote.pipe_file(f"{self._root}/{name}", content))
            else:
                write_whole(Path(self.path) / name, lambda file: file.write(content))
        except OSError as error:
            remedy = "log in or wait" if self._remote is not None else "make room"
            raise ResultsError(
                f"Cannot write {self.path}/{name}: {_reason(error)}. "
                f"What was written before is intact; {remedy}, and run the same command again."
            ) from error

    def names(self, folder: str, pattern: str) -> list[str]:
        """Return the names of the files below a folder; on a disk those of a pattern alone.

        Raises:
          ResultsError: the place cannot be listed.
        """
        if self._remote is not None:
            try:
                self._remote.invalidate_cache()
                found = _asked(lambda: self._remote.find(f"{self._root}/{folder}"))
            except FileNotFoundError:
                return []
            except OSError as error:
                raise ResultsError(f"Cannot list {self.path}: {_reason(error)}.") from error
            return [name[len(self._root) :].lstrip("/") for name in found]
        root = Path(self.path)
        return [path.relative_to(root).as_posix() for path in root.glob(f"{folder}/{pattern}")]


def _asked(action: Callable[[], Any]) -> Any:
    """Return what a place on a network answers, trying again what fails now and then.

    Raises:
      FileNotFoundError, OSError: whatever class the error has in that library.
    """
    from saturation.storage.retry import retrying

    try:
        return retrying(action)
    except ValueError as error:  # of a URL that can lead nowhere, such as a bucket of one letter
        raise OSError(str(error)) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
