"""What a kind of checkpoint looks like in a listing, by names alone; as data that formats give."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Listing:
    """The names by which folders of checkpoints are understood before a file is read.

    Attributes:
      extensions: of a file that is a checkpoint, or a shard of one: a number in its name may be a
        shard's.
      beside: files that belong to every such file of their folder.
      stands_for_folder: files by whose path the folder around them is meant.
      tables: (suffix, prefix of the rest): a checkpoint `NAME` is the file `NAME` + suffix and
        those that begin with `NAME` + prefix, and the first one has the number.
      whole: patterns of files that make one checkpoint of a folder, whatever lies beside them.
      interior: patterns of numbered things that lie inside one checkpoint.
      unfinished: patterns of what a writer leaves that did not finish.
      small: patterns of small files, one in the folder of each array, that describe the array.
    """

    extensions: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    stands_for_folder: tuple[str, ...] = ()
    tables: tuple[tuple[str, str], ...] = ()
    whole: tuple[str, ...] = ()
    interior: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    small: tuple[str, ...] = ()

    def stem(self, name: str) -> str:
        """Return what a file of a table is called by, and any other name as it is."""
        for suffix, _ in self.tables:
            name = name.removesuffix(suffix)
        return name

    def shards(self, name: str, files: Iterable[str]) -> list[str]:
        """Return which files go with a table of this name; none where it is no table's."""
        begins = [name.removesuffix(s) + rest for s, rest in self.tables if name.endswith(s)]
        return [file for file in files if begins and file.startswith(tuple(begins))]


def combined(listings: Iterable[Listing]) -> Listing:
    """Return what several kinds of checkpoint look like together."""
    all_ = tuple(listings)
    names = [one.name for one in fields(Listing)]
    together = {name: [part for one in all_ for part in getattr(one, name)] for name in names}
    return Listing(**{name: tuple(dict.fromkeys(parts)) for name, parts in together.items()})


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Say whether one of the patterns is of the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)
