"""Write a file whole or not at all, and never over a pipe or a device."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from saturation.errors import ResultsError
from saturation.storage.local_files import refuse_impossible, regular_file


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
