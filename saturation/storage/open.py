"""Opens the folder at a path or a URL, wherever it lies.

What reads networks is imported where a URL is opened: nobody else needs it.
"""

from __future__ import annotations

import os
import urllib.parse
from importlib import import_module
from pathlib import Path
from typing import Any

from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder
from saturation.storage.listing import Listing
from saturation.storage.local_folder import LocalFolder
from saturation.storage.trust import shown_url

# Where the module of each scheme is; any other is for fsspec. A module has `place_at(url, shared)`,
# which returns a key of the place among those shared, the path there, and how the place is made.
PLACES = {
    "hf": "saturation.storage.hub",
    "http": "saturation.storage.web",
    "https": "saturation.storage.web",
}


def open_folder(
    path: str | os.PathLike[str],
    shared: dict[str, Any] | None = None,
    listing: Listing = Listing(),  # noqa: B008 (immutable)
) -> Folder:
    """Return the `Folder` at a path; of a single file, its folder with that file alone in sight.

    Args:
      path: a local path, or a URL such as `gs://…`, `s3://…`, `https://…` or `hf://…`; of a URL
        nothing is asked yet.
      shared: an empty dict in which folders that are opened together keep what they share, such
        as connections.
      listing: the names by which checkpoints are understood; by default none.

    Raises:
      CheckpointFormatError: nothing is there.
    """
    if "://" in os.fspath(path):
        return open_remote(os.fspath(path), shared, listing)
    local = Path(os.path.expanduser(os.fspath(path)))
    if local.is_dir():
        return LocalFolder(local)
    if local.exists():
        folder = LocalFolder(local.parent)
        if local.name in listing.stands_for_folder:
            return folder
        return folder.restricted_to(local.name)
    # A checkpoint may be called by what the names of its files begin with.
    for suffix, _ in listing.tables:
        table = f"{local.name}{suffix}"
        if (local.parent / table).is_file():
            folder = LocalFolder(local.parent)
            return folder.restricted_to(table, *listing.shards(table, folder.files))
    raise CheckpointFormatError(f"{path}: no such folder or file.")


def open_remote(url: str, places: dict[str, Any] | None, listing: Listing) -> Folder:
    """Return the folder at a URL; nothing is asked of the network yet.

    Args:
      url: `gs://BUCKET/PATH`, `s3://BUCKET/PATH`, `https://HOST/FILE`,
        `hf://ORG/REPO@REVISION/PATH`, or what else fsspec knows, such as `memory://PATH`.
      places: what folders that are opened together share, connections first of all; begun empty.
      listing: the names by which checkpoints are understood.

    Raises:
      CheckpointFormatError: the URL leads nowhere, or something must be installed to follow it.
    """
    from saturation.storage.remote import CachedPlace, RemoteFolder

    places = {} if places is None else places
    scheme, _, rest = url.partition("://")
    _refuse_impossible(url)
    if scheme == "file":
        return open_folder(rest, places, listing)
    module = import_module(PLACES.get(scheme, "saturation.storage.places"))
    key, prefix, made = module.place_at(url, places)
    if key not in places:
        places[key] = CachedPlace(made(), listing.small)
    return RemoteFolder(places[key], prefix)


def _refuse_impossible(url: str) -> None:
    """Raise `CheckpointFormatError` where a text is no URL, whatever lies there."""
    try:
        url.encode()
        if url.startswith(("http:", "https:")):
            urllib.parse.urlsplit(url)
    except ValueError as error:
        raise CheckpointFormatError(f"{shown_url(url)} is no URL: {error}.") from error
