"""The cache that Hugging Face's tools keep on a disk: `models--ORG--NAME`.

    refs/main, refs/step1000, refs/pr/1     files that hold the hash of a commit
    snapshots/<hash>/model.safetensors      links into blobs/
    blobs/<hash>                            the files

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder

_HASH = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Revisions:
    """What a cache holds.

    Attributes:
      named: {name of a reference: its snapshot}; where no reference has one, {hash: snapshot}.
      left_out: (name, reason) of references and snapshots that are not among them.
    """

    named: dict[str, Folder]
    left_out: tuple[tuple[str, str], ...]


def is_cache(folder: Folder) -> bool:
    """Say whether a folder is a repository in such a cache: `snapshots` of commits lie in it."""
    if "snapshots" not in folder.folders or not {"refs", "blobs"} & set(folder.folders):
        return False
    return any(_HASH.fullmatch(name) for name in folder.child("snapshots").folders)


def revisions(folder: Folder) -> Revisions:
    """Return the revisions that lie in a cache, under the names of its references.

    Raises:
      CheckpointFormatError: a reference is no text of a hash.
    """
    snapshots = folder.child("snapshots")
    named, left_out = {}, []
    references = _references(folder.child("refs"), "") if "refs" in folder.folders else ()
    for name, commit in references:
        if commit in snapshots.folders:
            named[name] = snapshots.child(commit)
        else:
            left_out.append((name, f"incomplete: the snapshot {commit} was not downloaded"))
    used = {place.path for place in named.values()}
    others = [name for name in snapshots.folders if snapshots.child(name).path not in used]
    if not named:
        return Revisions({name: snapshots.child(name) for name in others}, tuple(left_out))
    left_out += [
        (f"snapshots/{name}", "no step in its name: no reference has it") for name in others
    ]
    return Revisions(named, tuple(left_out))


def _references(folder: Folder, below: str) -> Iterator[tuple[str, str]]:
    for name in folder.files:
        text = folder.read(name, 0, min(folder.size(name), 64)).decode("ascii", "replace").strip()
        if not _HASH.fullmatch(text):
            raise CheckpointFormatError(
                f"{folder.where(name)}: the hash of a commit was expected, 40 hexadecimal digits."
            )
        yield f"{below}{name}", text
    for name in folder.folders:
        yield from _references(folder.child(name), f"{below}{name}/")
