"""Repositories of the Hugging Face hub: `hf://ORG/REPO@REVISION/PATH`.

References, trees, the user's token and the addresses of files come from `huggingface_hub`, which
moves with the service, within the bounds of `hub_guard`. Files are read by byte ranges of our own:
the library brings them whole.
"""

from __future__ import annotations

import fnmatch
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from saturation.errors import CheckpointFormatError
from saturation.storage.hub_guard import guarded
from saturation.storage.places import (
    File,
    Listing,
    RemoteSource,
    nested,
    refuse_changed,
    require,
    require_length,
)
from saturation.storage.retry import ATTEMPTS, Denied, PermanentFailure, retrying
from saturation.storage.web import Answered, Client

Result = TypeVar("Result")

_ENDPOINT = "https://huggingface.co"
_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}

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

    @property
    def names_several(self) -> bool:
        """Whether the name stands for all repositories of an organisation that match it."""
        return bool(_PATTERN.search(self.name))


class Hub(RemoteSource):
    """The files of one revision of a repository.

    Args:
      repository: which; of its path nothing is used.
      places: what the folders that are opened together share.
    """

    def __init__(self, repository: Repository, places: dict[str, Any]):
        self.root = repository.root
        self._client, self._repository = Client.shared(places), repository

    def listing(self, path: str, deep: bool) -> Listing:  # noqa: D102
        # All in any case: a tree of a thousand files is one request.
        of = self._repository

        def look(api: Any) -> list[tuple[str, File | None]]:
            entries = api.list_repo_tree(
                of.name,
                path or None,
                recursive=True,
                revision=of.revision,
                repo_type=_TYPES[of.kind],
            )
            return [_entry(entry, path) for entry in entries]

        try:
            # The library tries again itself.
            return nested(_ask(look, attempts=1))
        except FileNotFoundError:
            if path:
                return {}
            raise

    def file(self, path: str) -> File:  # noqa: D102
        folder, _, name = path.rpartition("/")
        entry = self.listing(folder, deep=False).get(name)
        if not isinstance(entry, File):
            raise FileNotFoundError(path)
        return entry

    def fetch(self, path: str, file: File, start: int, stop: int) -> bytes:  # noqa: D102
        from huggingface_hub import hf_hub_url  # pyright: ignore[reportMissingImports]

        _refuse_offline()
        of = self._repository
        address = hf_hub_url(
            of.name,
            path,
            repo_type=_TYPES[of.kind],
            revision=of.revision,
            endpoint=endpoint(),
        )

        def check(said: Answered) -> None:
            refuse_changed("size", file.size, said.size)
            # Of the hub's own answers, as huggingface_hub takes it: those of the network of caches
            # that it leads to have ETags of their own.
            now = _hexadecimal(said.own.get("X-Linked-ETag") or said.own.get("ETag") or "")
            if now and len(now) == len(file.digest or ""):
                refuse_changed("hash", file.digest, now)

        data, _ = self._client.range(address, start, stop, _headers(), check)
        return require_length(data, start, stop)


def _hexadecimal(mark: str) -> str:
    """Return the hash that an ETag is, of 40 digits (git's) or 64 (SHA-256); else ""."""
    found = re.fullmatch(r'(?:W/)?"?([0-9a-f]{40}|[0-9a-f]{64})"?', mark.strip())
    return found[1] if found else ""


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


def place_at(url: str, shared: dict[str, Any]) -> tuple[str, str, Callable[[], Hub]]:
    """Return the place of a URL: see `saturation.storage.open.PLACES`."""
    require(url, "hf")
    repository = parse_url(url)
    return repository.root, repository.path, partial(Hub, repository, shared)


def revisions(url: str) -> dict[str, str]:
    """Return the branches and tags that a URL's revision pattern matches, each with its own URL.

    Raises:
      CheckpointFormatError: there is no such repository, or none of its references matches.
    """
    from saturation.storage.places import require

    require(url, "hf")
    repository = parse_url(url)

    def look(api: Any) -> list[str]:
        found = api.list_repo_refs(repository.name, repo_type=_TYPES[repository.kind])
        return [str(ref.name) for ref in (*found.branches, *found.tags)]

    try:
        names = _ask(look)
    except OSError as error:
        reason = "no such repository" if isinstance(error, FileNotFoundError) else error
        raise CheckpointFormatError(f"{url} cannot be listed: {reason}.") from error
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


def repositories(url: str) -> dict[str, str]:
    """Return the repositories that a URL's name matches, by their names without ORG, with URLs.

    Raises:
      CheckpointFormatError: the hub cannot be asked, or none of its repositories matches.
    """
    from saturation.storage.places import require

    require(url, "hf")
    pattern = parse_url(url)
    organisation, _, name = pattern.name.partition("/")
    if _PATTERN.search(organisation) or pattern.is_pattern:
        raise CheckpointFormatError(
            f"{url}: a pattern of repositories is of one organisation's, at one revision, such as "
            "hf://google/multiberts-seed_0-step_*."
        )
    # The search is by a part of the name, which no pattern may stand in.
    part = max(re.split(r"[*?\[\]]", name), key=len)

    def look(api: Any) -> list[str]:
        listed: Callable[..., Any] = getattr(api, f"list_{pattern.kind}")
        found = listed(author=organisation, search=part or None)
        return [str(one.id) for one in found]

    try:
        names = _ask(look)
    except OSError as error:
        raise CheckpointFormatError(f"{url} cannot be listed: {error}.") from error
    matching = [each for each in names if fnmatch.fnmatchcase(each, pattern.name)]
    if not matching:
        raise CheckpointFormatError(
            f"{url}: no repository of {organisation} matches {name!r}; the hub found "
            f"{len(names)} by {part!r}."
        )
    tail = _below(pattern.path)
    return {
        each.partition("/")[2]: replace(
            pattern, name=each, revision=urllib.parse.quote(pattern.revision, safe="")
        ).root
        + tail
        for each in matching
    }


def _ask(action: Callable[[Any], Result], attempts: int = ATTEMPTS) -> Result:
    """Return what an action does with the hub's client, within bounds.

    Raises:
      FileNotFoundError: there is no such repository, revision or folder.
      OSError: it cannot be had, or is not what a hub says.
    """
    from huggingface_hub import HfApi  # pyright: ignore[reportMissingImports]

    def ask() -> Result:
        _refuse_offline()
        api = HfApi(endpoint=endpoint(), token=_token() or False)
        with guarded(endpoint()):
            try:
                return action(api)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                if isinstance(error, OSError):  # of a server's, which some versions mix in
                    raise
                raise PermanentFailure(
                    f"{endpoint()} answers what no hub does ({type(error).__name__}): the name may "
                    "be none of a repository, or a proxy or a login page may stand between"
                ) from error

    try:
        return retrying(ask, attempts)
    except Denied as error:
        raise Denied(f"{error}; set HF_TOKEN to a token that may read it") from None


def _refuse_offline() -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE"):
        raise PermanentFailure(
            "HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or give a folder"
        )


def _headers() -> Mapping[str, str]:
    token = _token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _token() -> str | None:
    """Return the user's token, from where huggingface_hub takes it.

    Raises:
      PermanentFailure: it has what no token has, such as a line end, which no header can hold.
    """
    from huggingface_hub import constants, get_token  # pyright: ignore[reportMissingImports]

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        _refuse_odd(os.environ.get(name, ""), name)
    file = Path(constants.HF_TOKEN_PATH)
    if file.is_file():
        _refuse_odd(file.read_text(encoding="utf-8", errors="replace"), str(file))
    return get_token()


def _refuse_odd(token: str, where: str) -> None:
    """Raise `PermanentFailure` where a token is none, saying why without saying it."""
    token = token.strip()
    if len(token.splitlines()) > 1:
        raise PermanentFailure(f"{where} has more than one line; a token of the hub is one line")
    if not re.fullmatch(r"[!-~]*", token):
        raise PermanentFailure(
            f"{where} has a character that no token of the hub has; copy the token anew"
        )
    if token[:1] in ("'", '"'):
        raise PermanentFailure(f"{where} stands in quotes, which are no part of a token of the hub")


def _entry(item: Any, path: str) -> tuple[str, File | None]:
    name = str(item.path).removeprefix(f"{path}/" if path else "")
    if not hasattr(item, "blob_id"):
        return name, None
    size, large = item.size, item.lfs
    digest = item.blob_id if large is None else large.sha256
    return name, File(int(size if large is None else large.size), digest)


def _below(path: str) -> str:
    return f"/{urllib.parse.quote(path)}" if path else ""
