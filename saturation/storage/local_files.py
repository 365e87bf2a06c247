"""Local files by any name: one that no file can have is an `OSError` like a missing file."""

from __future__ import annotations

import errno
import os
import stat


def read_regular(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """Return the bytes of a regular file.

    Pipes and devices are not opened: some never answer, and others never end.

    Args:
      path: its name, of whatever characters.
      most: how many bytes it may have; None for any number.

    Raises:
      OSError: there is none, it cannot be read, it is something else or larger, or no file can
        have that name.
    """
    refuse_impossible(path)
    with open(open_regular(path), "rb") as file:
        content = file.read() if most is None else file.read(most + 1)
    if most is not None and len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))
    return content


def open_regular(path: str | os.PathLike[str]) -> int:
    """Return a descriptor by which a regular file is read; nothing else is opened.

    Raises:
      OSError: there is none, it cannot be read, or it is something else.
    """
    regular_file(path)
    # One that a pipe replaced meanwhile does not block either.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def regular_file(path: str | os.PathLike[str]) -> os.stat_result:
    """Return what is known of a regular file.

    Raises:
      OSError: there is none, or it is a folder, a pipe, a socket or a device.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise OSError(errno.EINVAL, f"it is no regular file, it is {kind}", os.fspath(path))
    return found


def refuse_impossible(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` where no file can have a name: of no character, with NUL or half a character.

    Python raises `ValueError` for such names, and some libraries cut them off at the NUL.
    """
    name = os.fspath(path)
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        encoded = b"\0"
    if not encoded or b"\0" in encoded:
        raise OSError(errno.EINVAL, f"no file can have the name {name!r}", name)
