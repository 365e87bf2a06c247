"""Places on a network that hold files: buckets here; the web and the hub in files of their own.

A `RemoteSource` lists and reads; it knows nothing of checkpoints. `saturation.storage.remote` makes
folders of it.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import threading
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import fsspec

from saturation.errors import CheckpointFormatError, escaped
from saturation.storage.retry import (
    PATIENCE,
    Changed,
    Denied,
    PermanentFailure,
    redacted,
    retrying,
)
from saturation.storage.trust import shown_url

Result = TypeVar("Result")

# A bucket is read anonymously first; if that is refused, with the user's own credentials.
_IDENTITIES: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "gs": ({"token": "anon"}, {}),
    "s3": ({"anon": True}, {}),
}
_LOGIN = {
    "gs": "; log in with 'gcloud auth application-default login'",
    "s3": "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
}
# What must be installed for a URL, and the extra that brings it.
_NEEDS = {
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "s3": ("s3fs", "s3"),
    "http": ("aiohttp", "hub"),
    "https": ("aiohttp", "hub"),
    "hf": ("huggingface_hub", "hub"),
}
# The versions that the answers to one read were of; a task of the event loop takes it over from the
# thread that began it.
_marks: ContextVar[list[str] | None] = ContextVar("_marks", default=None)
_DIGESTS = ("md5Hash", "ETag", "etag", "checksum")


@dataclass(frozen=True)
class File:
    """What a listing says of a file.

    Attributes:
      size: in bytes.
      digest: the place's own hash of its content.
      version: what the place changes with the content, where it has no hash.
      mark: what each answer with bytes of the file says again as long as it is the same.
    """

    size: int
    digest: str | None = None
    version: str | None = None
    mark: str | None = None


# Name -> file, or the listing of a folder, or None for a folder that was not looked into.
Listing: TypeAlias = "dict[str, File | Listing | None]"


class RemoteSource(ABC):
    """Somewhere that holds files under paths such as `"a/b.safetensors"`.

    Attributes:
      root: the URL that paths are relative to, as it is shown: without secrets.
    """

    root: str

    @abstractmethod
    def listing(self, path: str, deep: bool) -> Listing:
        """Return what lies under `path`, to the last file where `deep`; nothing where it is none.

        Raises:
          OSError: the place cannot be listed.
        """

    @abstractmethod
    def file(self, path: str) -> File:
        """Describe one file.

        Raises:
          OSError: there is none, or it cannot be reached.
        """

    @abstractmethod
    def fetch(self, path: str, file: File, start: int, stop: int) -> bytes:
        """Return the bytes `start` to `stop` of a file, asking the server for no other.

        Args:
          path: which file.
          file: what the listing said of it.
          start: the first byte.
          stop: the byte behind the last.

        Raises:
          Changed: the answer is of another file than the listing.
          OSError: they cannot be had.
        """

    def url(self, path: str) -> str:
        """Return how a path is shown."""
        return f"{self.root}/{path}".rstrip("/")

    def cache_key(self, path: str) -> str:
        """Return what tells a file from every other, of this place and of others; never shown."""
        return self.url(path)


class Bucket(RemoteSource):
    """A bucket, or another file system that fsspec knows by the URL's scheme.

    Args:
      scheme: such as `"gs"`.
      name: the bucket.
    """

    def __init__(self, scheme: str, name: str):
        self.root = f"{scheme}://{name.rpartition('@')[2]}"
        self._scheme, self._name = scheme, name
        self._identities = list(_IDENTITIES.get(scheme, ({},)))
        self._lock = threading.Lock()
        self._system: Any = None

    def listing(self, path: str, deep: bool) -> Listing:  # noqa: D102
        root = f"{self._name}/{path}".strip("/")

        def look(system: Any) -> Iterable[Mapping[str, Any]]:
            if deep:
                return system.find(root, detail=True).values()
            return system.ls(root, detail=True)

        try:
            found = self._call(look)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        # An empty object whose name ends with a slash is how some tools draw a folder.
        entries = (info for info in found if not info["name"].endswith("/"))
        return nested((_below(info["name"], root), _entry(info)) for info in entries)

    def file(self, path: str) -> File:  # noqa: D102
        info = self._call(lambda system: system.info(f"{self._name}/{path}"))
        if info["type"] != "file":
            raise IsADirectoryError(f"{self.url(path)} is a folder")
        return _described(info)

    def fetch(self, path: str, file: File, start: int, stop: int) -> bytes:  # noqa: D102
        whole = f"{self._name}/{path}"

        def read(system: Any) -> bytes:
            answers: list[str] = []
            token = _marks.set(answers)
            try:
                # By keyword: s3fs has another argument second.
                data = system.cat_file(whole, start=start, end=stop)
            finally:
                _marks.reset(token)
            for mark in answers:
                refuse_changed("version", file.mark, mark)
            return require_length(data, start, stop)

        return self._call(read)

    def _call(self, action: Callable[[Any], Any]) -> Any:
        """Do `action` with the file system, as the first identity that the place lets in."""
        while True:
            system = self._opened()
            try:
                return retrying(partial(action, system))
            except ValueError as error:
                # fsspec's word for a URL that can lead nowhere, such as a bucket of one letter.
                raise OSError(redacted(str(error))) from None
            except Denied as error:
                with self._lock:
                    if self._system is system and len(self._identities) > 1:
                        self._identities.pop(0)
                        self._system = None
                    elif self._system is system:
                        raise Denied(f"{error}{_LOGIN.get(self._scheme, '')}") from None

    def _opened(self) -> Any:
        import fsspec

        with self._lock:
            if self._system is None:
                try:
                    self._system = open_alone(
                        partial(fsspec.filesystem, self._scheme, use_listings_cache=False),
                        self._scheme,
                        self._identities[0],
                    )
                except (
                    Exception
                ) as error:  # of any library: some need what no URL has, some connect
                    raise PermanentFailure(
                        f"{self._scheme}:// cannot be used ({type(error).__name__}: "
                        f"{escaped(redacted(str(error)))[:200]})"
                    ) from None
                _note_marks(self._system)
            return self._system


def open_alone(
    make: Callable[..., Result], scheme: str, identity: Mapping[str, Any] = MappingProxyType({})
) -> Result:
    """Return what `make` makes with a file system that nothing else in the process uses.

    A shared one would keep the listings and the endpoint of an earlier day, and others may want its
    own way of trying again.

    Args:
      make: takes fsspec's options, and returns a file system, or it and a path.
      scheme: such as `"gs"`.
      identity: who reads; by default the user, as far as credentials are found.
    """
    _prepare_gcsfs()
    made = _as_user(make, scheme) if not identity else make(skip_instance_cache=True, **identity)
    _leave_retrying_to_us(made[0] if isinstance(made, tuple) else made)
    return made


def _as_user(make: Callable[..., Result], scheme: str) -> Result:
    if scheme in ("gs", "gcs"):
        from google.auth.exceptions import GoogleAuthError

        # As gcsfs does, but for one step: where Google's library has found no machine of Google's,
        # gcsfs asks that machine for another 15 s.
        for token in ("google_default", "cache"):
            with suppress(GoogleAuthError, ValueError):  # none of that kind
                return make(skip_instance_cache=True, token=token)
        return make(skip_instance_cache=True, token="anon")
    return make(skip_instance_cache=True)


def _leave_retrying_to_us(system: Any) -> None:
    """Make a file system ask once, and end a silence: its own attempts times ours are minutes."""
    plain = getattr(getattr(type(system), "_request", None), "__wrapped__", None)
    if type(system).__module__.startswith("gcsfs") and plain is not None:
        import aiohttp

        system._request = types.MethodType(plain, system)
        # Of silence, not of a request as a whole: many bytes may take long.
        system.requests_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=PATIENCE, sock_read=PATIENCE
        )
    if type(system).__module__.startswith("s3fs") and hasattr(system, "retries"):
        system.retries = 1


def _note_marks(system: Any) -> None:
    """Make a file system tell `_marks` which version of a file each answer is of.

    They return the bytes alone; what they call for one request is wrapped, of this instance.
    """
    module = type(system).__module__
    if module.startswith("gcsfs") and hasattr(system, "_request"):
        request = system._request

        async def requested(method: str, *arguments: Any, **options: Any) -> Any:
            answer = await request(method, *arguments, **options)
            _note(answer[1].get("X-Goog-Generation") if method == "GET" else None)
            return answer

        system._request = requested
    if module.startswith("s3fs") and hasattr(system, "_call_s3"):
        call = system._call_s3

        async def called(method: str, *arguments: Any, **options: Any) -> Any:
            answer = await call(method, *arguments, **options)
            _note(answer.get("ETag") if method == "get_object" else None)
            return answer

        system._call_s3 = called


def _note(mark: object) -> None:
    answers = _marks.get()
    if answers is not None and mark:
        answers.append(str(mark))


def refuse_changed(what: str, was: object, now: object) -> None:
    """Raise `Changed` where a mark of an answer is known and not that of the listing, also known.

    Whether an ETag is said to be weak, or stands in quotes, does not count.
    """
    if was is None or now is None:
        return
    if _bare(was) != _bare(now):
        raise Changed(what, was, now)


def _bare(mark: object) -> str:
    return str(mark).strip().removeprefix("W/").strip('"')


def _prepare_gcsfs() -> None:
    """Keep gcsfs, before it is imported, from asking and saying more than is needed."""
    # What it is refused becomes an error of ours, or is asked for by name: nothing for the screen.
    logger = logging.getLogger("gcsfs")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
    # It would otherwise be set to ask first which kind a bucket is, which takes a right that
    # readers of public buckets lack.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def _below(name: str, root: str) -> str:
    """Return a name of a listing relative to the folder that was listed ("" for itself)."""
    return name.strip("/").removeprefix(root).strip("/")


def _described(info: Mapping[str, Any]) -> File:
    digest = next((str(info[key]) for key in _DIGESTS if info.get(key)), None)
    # What answers with bytes have too: Google's generation, S3's ETag.
    mark = next((str(info[key]) for key in ("generation", "ETag") if info.get(key)), None)
    return File(int(info.get("size") or 0), digest, mark=mark)


def _entry(info: Mapping[str, Any]) -> File | None:
    return _described(info) if info["type"] == "file" else None


def nested(found: Iterable[tuple[str, File | None]]) -> Listing:
    """Return the listing of (relative path, file or None for a folder) pairs.

    Names that no folder of a disk could have are left out: `..`, and a path with `//` in it.
    """
    listing: Listing = {}
    for path, entry in found:
        *parents, name = path.split("/")
        if any(part in ("", ".", "..") for part in (*parents, name)):
            continue
        node: Listing = listing
        for part in parents:
            inner = node.get(part)
            if not isinstance(inner, dict):
                inner = node[part] = {}
            node = inner
        if not isinstance(node.get(name), dict):
            node[name] = entry
    return listing


def require_length(data: bytes, start: int, stop: int) -> bytes:
    """Return `data` where it has as many bytes as were asked for, or raise `OSError`."""
    if len(data) != stop - start:
        raise OSError(f"{len(data)} bytes came where {stop - start} were asked for")
    return data


def place_at(url: str, shared: dict[str, Any]) -> tuple[str, str, Callable[[], Bucket]]:
    """Return the place of a URL that fsspec knows: see `saturation.storage.open.PLACES`."""
    scheme, _, rest = url.partition("://")
    require(url, scheme)
    scheme = "gs" if scheme == "gcs" else scheme
    name, _, path = rest.strip("/").partition("/")
    return f"{scheme}://{name}", path, partial(Bucket, scheme, name)


def require(url: str, scheme: str) -> None:
    """Raise `CheckpointFormatError` where the package that reads a scheme is not installed."""
    module, extra = _NEEDS.get(scheme, ("", ""))
    shown = shown_url(url)
    if module and importlib.util.find_spec(module) is None:
        raise CheckpointFormatError(
            f"{shown}: to read {scheme}:// the package {module} is needed, which is not installed: "
            f"pip install 'saturation-jax[{extra}]'."
        )
    if not module:
        try:
            made = fsspec.get_filesystem_class(scheme)
        except (ValueError, ImportError) as error:
            raise _unknown(shown, scheme, str(error)) from error
        if lacking := _required(made):
            raise _unknown(shown, scheme, f"it needs {' and '.join(lacking)}, which no URL has")


def _unknown(shown: str, scheme: str, reason: str) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"{shown}: there is no way to read {scheme}:// ({reason}); gs://, s3://, https:// and "
        "hf:// are known here."
    )


def _required(made: type) -> list[str]:
    """Return the arguments without which a file system cannot be made."""
    known = list(inspect.signature(made.__init__).parameters.values())[1:]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in known if one.default is one.empty and one.kind not in kinds]
