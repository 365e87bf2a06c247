"""What the headers of a checkpoint's files tell, where a format can say it without reading more."""

from __future__ import annotations

from typing import NamedTuple


class Glance(NamedTuple):
    """What a format's `glance(folder)` returns, if it has one.

    Attributes:
      names: of all arrays, on disk.
      unsummed: the files whose writer left out the checksums that their format has.
    """

    names: frozenset[str]
    unsummed: tuple[str, ...]
