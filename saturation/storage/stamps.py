"""What is known of a file without its being read, and whether it is still what it was."""

from __future__ import annotations

import os
from dataclasses import dataclass

from saturation.errors import CheckpointFormatError


@dataclass(frozen=True)
class Mark:
    """What a place says of a file without its being read: its size and the place's own hash."""

    size: int
    digest: str | None = None


class Stamps:
    """Size and times of files, by path, at their first reading; folders below one share them."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int, int]] = {}

    def remember(self, path: str, found: os.stat_result) -> None:
        """Keep what a file is like, or compare it with what it was like before.

        Raises:
          CheckpointFormatError: it has changed.
        """
        if self._known.setdefault(path, now := _stamp(found)) != now:
            raise CheckpointFormatError(
                f"{path} has changed since it was opened: size or time of the file are not what "
                "they were. Measure a trajectory that nobody writes to any more, or open it again."
            )

    def changed(self, folder: str) -> str | None:
        """Return the first file below a folder that is not what it was, or None."""
        root = os.path.join(folder, "")
        for path, before in list(self._known.items()):
            if path.startswith(root):
                try:
                    same = _stamp(os.stat(path)) == before
                except OSError:
                    same = False
                if not same:
                    return path
        return None


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    # No inode: file systems that stand for a bucket number their files anew as they go. The second
    # time changes too where a file is replaced, or its first time is set back.
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
