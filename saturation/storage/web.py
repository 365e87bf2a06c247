"""Files of a web server, read by byte ranges over connections that are kept.

fsspec's HTTP file system holds the connections. The requests are our own, so that a server that
ignores ranges is found out before it sends a whole file, and no header gets into an error.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from saturation.errors import CheckpointFormatError, escaped
from saturation.storage.places import (
    File,
    Listing,
    RemoteSource,
    refuse_changed,
    require,
    require_length,
)
from saturation.storage.retry import HTTPStatusError, PermanentFailure, retrying
from saturation.storage.trust import refuse_lead, shown_url

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_CONNECT_SECONDS, _SILENCE_SECONDS = 30, 60
# A request as a whole may take a minute, and as long as its bytes take at 20 kB/s.
_LEAST_SECONDS, _LEAST_RATE = 60.0, 20_000.0
_REDIRECTS, _MOST_REDIRECTS = (301, 302, 303, 307, 308), 10


class Answered(NamedTuple):
    """What an answer says of the file whose bytes it holds.

    Attributes:
      size: of the whole file, where it is said.
      headers: the answer's.
      own: those of the last answer that came from the server that was asked first.
    """

    size: int | None
    headers: Mapping[str, str]
    own: Mapping[str, str]


class Client:
    """Makes requests; one client, and so one set of connections, serves many places."""

    def __init__(self) -> None:
        from fsspec.implementations.http import HTTPFileSystem

        # trust_env: proxies are used as the environment sets them.
        kwargs = {"trust_env": True, "auto_decompress": False}
        self._system = HTTPFileSystem(skip_instance_cache=True, client_kwargs=kwargs)

    @classmethod
    def shared(cls, places: dict[str, Any]) -> Client:
        """Return the client of the folders that are opened together."""
        if "client" not in places:
            places["client"] = cls()
        return places["client"]

    def range(
        self,
        url: str,
        start: int,
        stop: int,
        headers: Mapping[str, str],
        check: Callable[[Answered], None] | None = None,
    ) -> tuple[bytes, Answered]:
        """Return the bytes `start` to `stop` of a file, or as many as it has, and what was said.

        Args:
          url: where it lies.
          start: the first byte.
          stop: the byte behind the last.
          headers: for the server.
          check: raises where an answer is not of the file that is meant; called before its bytes
            are read.

        Raises:
          OSError: they cannot be had, or the server would send the whole file.
        """

        async def read(answer: Any, own: Mapping[str, str]) -> tuple[bytes, Answered]:
            if answer.status == 416:
                said = Answered(_whole_size(answer), answer.headers, own)
                if check is not None:
                    check(said)
                return b"", said._replace(size=start)
            if answer.status not in (200, 206):
                raise _refusal(answer)
            first, end, size = _sent(answer, start, stop)
            if first != start or end > stop:
                # Not read: it may be the whole file.
                answer.close()
                raise PermanentFailure("the server ignores byte ranges and sends whole files only")
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                answer.close()
                raise PermanentFailure("the server compresses what was asked for as it is")
            said = Answered(size, answer.headers, own)
            if check is not None:
                try:
                    check(said)
                except OSError:
                    answer.close()  # its bytes are not wanted
                    raise
            return await _body(answer, end - start), said

        asked = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity", **headers}
        seconds = _LEAST_SECONDS + (stop - start) / _LEAST_RATE
        return self._get(url, asked, read, seconds)

    def _get(self, url: str, headers: Mapping[str, str], read: Any, seconds: float) -> Any:
        """Return what `read` makes of the answer, which has to be there after so many seconds."""
        import asyncio

        import aiohttp
        from fsspec.asyn import sync

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
        )

        async def ask() -> Any:
            session = await self._system.set_session()
            try:
                async with asyncio.timeout(seconds):
                    return await _follow(session, url, dict(headers), timeout, read)
            except TimeoutError:
                raise OSError(
                    f"the server had not answered in full after {seconds:.0f} s"
                ) from None

        return retrying(lambda: sync(self._system.loop, ask))


async def _follow(session: Any, url: str, headers: dict[str, str], timeout: Any, read: Any) -> Any:
    """Return what `read` makes of the answer that a request, and redirects of it, lead to.

    `read` is given that answer, and the headers of the last answer from where the request went.
    """
    import yarl

    first, own = _origin(url), {}
    for _ in range(_MOST_REDIRECTS):
        _refuse_unusable(url)
        place = yarl.URL(url, encoded=True)
        asked = session.get(place, headers=headers, timeout=timeout, allow_redirects=False)
        async with asked as answer:
            location = answer.headers.get("Location")
            own = answer.headers if _origin(url) == first else own
            if answer.status not in _REDIRECTS or not location:
                return await read(answer, own)
        following = urllib.parse.urljoin(url, location)
        try:
            refuse_lead(url, following)
        except CheckpointFormatError as error:
            raise PermanentFailure(str(error).rstrip(".")) from None
        if _origin(following) != _origin(url):
            # Secrets go to the server they were given for and to no other.
            headers = {k: v for k, v in headers.items() if k != "Authorization"}
        url = following
    raise PermanentFailure(f"the server redirects more than {_MOST_REDIRECTS} times")


def _refuse_unusable(url: str) -> None:
    """Raise `PermanentFailure` where no server can lie at a URL."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise PermanentFailure(
            "it is no address of a server: HOST or HOST:PORT was expected, PORT ≤ 65535"
        )


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


async def _body(answer: Any, count: int) -> bytes:
    """Return the `count` bytes that an answer announced, and read no further."""
    pieces, left = [], count
    while left and (piece := await answer.content.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return require_length(b"".join(pieces), 0, count)


# A repository's page, or one of a folder in it; the hub's files lie under `resolve`.
_HUB_PAGE = re.compile(
    r"/(?P<name>((datasets|spaces)/)?(?!(api|datasets|spaces)/)[^/]+/[^/]+)"
    r"(/(tree|blob)/(?P<revision>[^/]+)(/(?P<below>.+?))?)?/?"
)


def place_at(url: str, shared: dict[str, Any]) -> tuple[str, str, Callable[[], Web]]:
    """Return the place of a URL: see `saturation.storage.open.PLACES`."""
    require(url, url.partition("://")[0])
    _refuse_page(url)
    base, name = split_url(url)
    return base, name, partial(Web, base, shared)


def _refuse_page(url: str) -> None:
    """Raise `CheckpointFormatError` where a URL is of a page of the hub, which holds no file."""
    parts = urllib.parse.urlsplit(url)
    found = _HUB_PAGE.fullmatch(parts.path)
    if parts.hostname in ("huggingface.co", "hf.co") and found:
        revision = f"@{found['revision']}" if found["revision"] else ""
        below = f"/{found['below']}" if found["below"] else ""
        raise CheckpointFormatError(
            f"{shown_url(url)} is a page of the hub and no file: give "
            f"hf://{found['name']}{revision}{below}."
        )


class Web(RemoteSource):
    """The files below one URL of a web server, which has no listing of them.

    Args:
      base: the URL of the folder, with the query that each of its files' URLs ends with.
      places: what the folders that are opened together share.
    """

    def __init__(self, base: str, places: dict[str, Any]):
        parts = urllib.parse.urlsplit(base)
        self._parts = parts
        self._client = Client.shared(places)
        # Without user, password and query, which may hold a signature.
        host = parts.netloc.rpartition("@")[2]
        self.root = f"{parts.scheme}://{host}{urllib.parse.unquote(parts.path)}".rstrip("/")

    def listing(self, path: str, deep: bool) -> Listing:  # noqa: D102
        if not path:
            raise PermanentFailure(
                "a web server lists no folders; give the URL of one checkpoint file, or a manifest "
                "of such URLs"
            )
        return {}

    def file(self, path: str) -> File:  # noqa: D102
        _, said = self._client.range(self._address(path), 0, 1, {})
        if said.size is None:
            raise PermanentFailure("the server does not say how large the file is")
        etag, date = said.headers.get("ETag"), said.headers.get("Last-Modified")
        return File(said.size, version=etag, mark=etag or date)

    def fetch(self, path: str, file: File, start: int, stop: int) -> bytes:  # noqa: D102
        def check(said: Answered) -> None:
            refuse_changed("size", file.size, said.size)
            name = "Last-Modified" if file.version is None else "ETag"
            refuse_changed(name, file.mark, said.headers.get(name))

        data, _ = self._client.range(self._address(path), start, stop, {}, check)
        return require_length(data, start, stop)

    def cache_key(self, path: str) -> str:  # noqa: D102
        return self._address(path)  # with its query, by which a server may tell files apart

    def _address(self, path: str) -> str:
        folder = self._parts.path.rstrip("/")
        return self._parts._replace(path=f"{folder}/{urllib.parse.quote(path)}").geturl()


def split_url(url: str) -> tuple[str, str]:
    """Return the URL of the folder of a file on the web, and the file's name in it.

    >>> split_url("https://host/runs/a%20b.safetensors?key=1")
    ('https://host/runs?key=1', 'a b.safetensors')
    """
    parts = urllib.parse.urlsplit(url)
    folder, _, name = parts.path.rpartition("/")
    return parts._replace(path=folder, fragment="").geturl(), urllib.parse.unquote(name)


def _whole_size(answer: Any) -> int | None:
    """Return the size of a file of which an answer says that a range lies behind its end."""
    found = re.fullmatch(r"bytes \*/(\d{1,19})", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _sent(answer: Any, start: int, stop: int) -> tuple[int, int, int | None]:
    """Return the first byte and the end of what an answer holds, and the size of the file."""
    length = answer.headers.get("Content-Length", "")
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status == 206 and found:
        size = int(found[3]) if found[3].isdecimal() else None
        return int(found[1]), int(found[2]) + 1, size
    if answer.status == 206:
        # A server that does not say what it sends can only be believed.
        return start, start + int(length) if length.isdecimal() else stop, None
    whole = int(length) if length.isdecimal() else stop + 1
    return 0, whole, whole


def _refusal(answer: Any) -> OSError:
    if answer.status == 404:
        return FileNotFoundError("the server has no such file")
    wait = answer.headers.get("Retry-After", "")
    reason = escaped((answer.reason or "")[:100])
    return HTTPStatusError(answer.status, reason, float(wait[:6]) if wait.isdecimal() else 0.0)
