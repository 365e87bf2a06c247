"""Repositories of the Hugging Face hub: `hf://ORG/REPO@REVISION/PATH`.

Three requests of the hub's web interface are all that is needed: the references of a repository,
the tree of a revision, and a byte range of a file ("resolve").
Source: https://huggingface.co/docs/hub/api
"""

from __future__ import annotations

import fnmatch
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saturation.checkpoints.places import File, Listing, Place, exactly, nested
from saturation.checkpoints.retry import Denied
from saturation.checkpoints.web import Client
from saturation.errors import CheckpointFormatError

_ENDPOINT = "https://huggingface.co"

_URL = re.compile(
    r"hf://(?:(?P<kind>models|datasets|spaces)/)?(?P<name>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Repository:
    """What a URL of the hub names.

    Attributes:
      kind: `"models"`, `"datasets"` or `"spaces"`.
      name: `"ORG/REPO"`.
      revision: a branch, a tag, a commit, or a pattern of branches and tags.
      path: of a folder or a file in it; "" for all of it.
    """

    kind: str
    name: str
    revision: str
    path: str

    @property
    def root(self) -> str:
        """The URL without the path."""
        kind = "" if self.kind == "models" else f"{self.kind}/"
        return f"hf://{kind}{self.name}@{self.revision}"

    @property
    def is_pattern(self) -> bool:
        """Whether the revision stands for all references that match it."""
        return bool(_PATTERN.search(self.revision))


class Hub(Place):
    """The files of one revision of a repository.

    Args:
      repository: which; of its path nothing is used.
      places: what the folders that are opened together share.
    """

    def __init__(self, repository: Repository, places: dict[str, Any]):
        self.root = repository.root
        self._client = Client.shared(places)
        self._endpoint, kind, name = endpoint(), repository.kind, repository.name
        revision = urllib.parse.quote(repository.revision, safe="")
        folder = "" if kind == "models" else f"{kind}/"
        self._tree = f"{self._endpoint}/api/{kind}/{name}/tree/{revision}"
        self._resolve = f"{self._endpoint}/{folder}{name}/resolve/{revision}"

    def listing(self, path: str, deep: bool) -> Listing:  # noqa: D102
        # All in any case: a tree of a thousand files is one request.
        address: str | None = f"{self._tree}{_below(path)}?recursive=true"
        found: list[tuple[str, File | None]] = []
        while address:
            try:
                page, address = _ask(self._client, self._endpoint, address)
            except FileNotFoundError:
                if path:
                    return {}
                raise
            found += [_entry(item, path) for item in page]
        return nested(found)

    def file(self, path: str) -> File:  # noqa: D102
        folder, _, name = path.rpartition("/")
        entry = self.listing(folder, deep=False).get(name)
        if not isinstance(entry, File):
            raise FileNotFoundError(path)
        return entry

    def fetch(self, path: str, start: int, stop: int) -> bytes:  # noqa: D102
        address = f"{self._resolve}{_below(path)}"
        data, *_ = self._client.range(address, start, stop, _headers())
        return exactly(data, start, stop)


def endpoint() -> str:
    """Return the hub's address, HF_ENDPOINT as it is now or the public one."""
    return (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")


def parse_url(url: str) -> Repository:
    """Return what a URL of the hub names.

    >>> parse_url("hf://EleutherAI/pile-t5-base@step_*").revision
    'step_*'

    Raises:
      CheckpointFormatError: it is none.
    """
    found = _URL.fullmatch(url)
    if not found:
        raise CheckpointFormatError(
            f"{url} does not name a repository: hf://ORG/REPO@REVISION was expected, such as "
            "hf://EleutherAI/pile-t5-base@step_*."
        )
    revision = urllib.parse.unquote(found["revision"] or "main")
    path = (found["path"] or "").strip("/")
    return Repository(found["kind"] or "models", found["name"], revision, path)


def revisions(url: str) -> dict[str, str]:
    """Return the branches and tags that a URL's revision pattern matches, each with its own URL.

    Raises:
      CheckpointFormatError: there is no such repository, or none of its references matches.
    """
    from saturation.checkpoints.remote import require

    require(url, "hf")
    repository, address = parse_url(url), endpoint()
    try:
        found, _ = _ask(
            Client.shared({}), address, f"{address}/api/{repository.kind}/{repository.name}/refs"
        )
    except OSError as error:
        reason = "no such repository" if isinstance(error, FileNotFoundError) else error
        raise CheckpointFormatError(f"{url} cannot be listed: {reason}.") from error
    names = [str(ref["name"]) for kind in ("branches", "tags") for ref in found.get(kind) or ()]
    matching = [name for name in names if fnmatch.fnmatchcase(name, repository.revision)]
    if not matching:
        known = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        raise CheckpointFormatError(
            f"{url}: no branch or tag matches {repository.revision!r}; there are {known or 'none'}."
        )
    tail = _below(repository.path)
    return {
        name: replace(repository, revision=urllib.parse.quote(name, safe="")).root + tail
        for name in matching
    }


def _ask(client: Client, origin: str, address: str) -> tuple[Any, str | None]:
    """Return a page of the hub's interface and the address of the next, at the same server."""
    try:
        page, following = client.json(address, _headers())
    except Denied as error:
        raise Denied(f"{error}; set HF_TOKEN to a token that may read it") from None
    if following and not following.startswith(f"{origin}/"):
        # The token goes to the server it was given for and to no other.
        raise OSError("the hub names a next page on another server")
    return page, following


def _headers() -> Mapping[str, str]:
    token = _token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _token() -> str | None:
    """Return the user's token, from where huggingface_hub takes it."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(name, "").strip():
            return token
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        # Public repositories need none.
        return None


def _entry(item: Mapping[str, Any], path: str) -> tuple[str, File | None]:
    name = str(item["path"]).removeprefix(f"{path}/" if path else "")
    if item.get("type") != "file":
        return name, None
    large = item.get("lfs") or {}
    size = large.get("size", item.get("size", 0))
    return name, File(int(size), large.get("oid") or item.get("oid"))


def _below(path: str) -> str:
    return f"/{urllib.parse.quote(path)}" if path else ""
