"""Checkpoints of every format that is read here, one file a format.

A format is a module with `NAME`, `LOOKS_FOR` (what it knows its own by, for errors),
`LISTING` (its names in a listing), `claims(folder)` and `open_checkpoint(folder, step)`; where the
names of arrays on disk are others, `open_stored(folder, step)` keeps them. Which one reads a folder
is decided by what the folder holds; none or two that claim it is an error.
"""

from __future__ import annotations

import os
from functools import lru_cache
from types import ModuleType
from typing import Any

from saturation.checkpoints import (
    flax_msgpack,
    huggingface,
    mesh_tensorflow,
    orbax,
    t5x,
    t5x_orbax,
)
from saturation.checkpoints.base import Checkpoint, Parameter
from saturation.checkpoints.unread import unread_layout
from saturation.errors import CheckpointFormatError
from saturation.storage import open as storage
from saturation.storage.folder import Folder
from saturation.storage.listing import Listing, combined

__all__ = [
    "FORMATS",
    "Checkpoint",
    "Folder",
    "Parameter",
    "find_format",
    "listing",
    "open_checkpoint",
    "open_folder",
]

FORMATS: tuple[ModuleType, ...] = (
    t5x,
    t5x_orbax,
    orbax,
    huggingface,
    mesh_tensorflow,
    flax_msgpack,
)


def listing() -> Listing:
    """Return the names by which the checkpoints of all formats are understood."""
    return _combined(FORMATS)


@lru_cache
def _combined(formats: tuple[ModuleType, ...]) -> Listing:
    return combined(form.LISTING for form in formats)


def open_folder(path: str | os.PathLike[str], shared: dict[str, Any] | None = None) -> Folder:
    """Return the `Folder` at a path or URL, as `saturation.storage.open.open_folder` does."""
    return storage.open_folder(path, shared, listing())


def find_format(folder: Folder) -> ModuleType | None:
    """Return the one format that claims a folder, or None where none does.

    Raises:
      CheckpointFormatError: several formats claim it.
    """
    claimants = [form for form in FORMATS if form.claims(folder)]
    if len(claimants) > 1:
        raise CheckpointFormatError(
            f"{folder.path} could be a checkpoint of several formats: "
            + "; ".join(f"{form.NAME} found {form.LOOKS_FOR}" for form in claimants)
            + ". Put the files of each into a folder of their own."
        )
    return claimants[0] if claimants else None


def open_checkpoint(
    path: str | os.PathLike[str] | Folder, step: int | None = None, stored_names: bool = False
) -> Checkpoint:
    """Open one checkpoint, whatever its format.

    Args:
      path: a folder or a single file, or a `Folder`.
      step: the training step it was written at, where that is known.
      stored_names: call arrays as they are called on disk, not by the canonical names.

    Raises:
      CheckpointFormatError: nothing is there, it is of no known format, or it is damaged.
    """
    folder = path if isinstance(path, Folder) else open_folder(path)
    form = find_format(folder)
    if form is None:
        raise CheckpointFormatError(why_unknown(folder))
    opened = getattr(form, "open_stored", None) if stored_names else None
    checkpoint = (opened or form.open_checkpoint)(folder, step)
    if not checkpoint.parameters and checkpoint.left_out:
        name, reason = checkpoint.left_out[0]
        raise CheckpointFormatError(
            f"{folder.path} holds no parameters: {len(checkpoint.left_out)} arrays are none, such "
            f"as {name!r} ({reason})."
        )
    return checkpoint


def why_unknown(folder: Folder) -> str:
    """Return the text of the error for a folder that no format claims."""
    for name, head in folder.heads.items():
        folder.refuse_pointer(name, head)
    if (layout := unread_layout(folder)) is not None:
        return layout
    looked = "; ".join(f"{form.NAME} looks for {form.LOOKS_FOR}" for form in FORMATS)
    return f"{folder.path} is no checkpoint of a known format: {looked}."
