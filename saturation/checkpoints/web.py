"""Files of a web server, read by byte ranges over connections that are kept.

fsspec's HTTP file system holds the connections. The requests are our own, so that a server that
ignores ranges is found out before it sends a whole file, and no header gets into an error.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from saturation.checkpoints.places import File, Listing, Place, exactly
from saturation.checkpoints.retry import Answer, Unusable, retrying

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_CONNECT_SECONDS, _SILENCE_SECONDS = 30, 60


class Client:
    """Makes requests; one client, and so one set of connections, serves many places."""

    def __init__(self) -> None:
        from fsspec.implementations.http import HTTPFileSystem

        # trust_env: proxies are used as the environment sets them.
        self._system = HTTPFileSystem(skip_instance_cache=True, client_kwargs={"trust_env": True})

    @classmethod
    def shared(cls, places: dict[str, Any]) -> Client:
        """Return the client of the folders that are opened together."""
        if "client" not in places:
            places["client"] = cls()
        return places["client"]

    def json(self, url: str, headers: Mapping[str, str]) -> tuple[Any, str | None]:
        """Return the JSON at a URL, and the URL of the next page if there is one.

        Raises:
          OSError: it cannot be had.
        """

        async def read(answer: Any) -> tuple[Any, str | None]:
            if answer.status != 200:
                raise _refusal(answer)
            following = answer.links.get("next")
            return await answer.json(content_type=None), str(
                following["url"]
            ) if following else None

        return self._get(url, headers, read)

    def range(
        self, url: str, start: int, stop: int, headers: Mapping[str, str]
    ) -> tuple[bytes, int | None, str | None]:
        """Return the bytes `start` to `stop` of a file, or as many as it has; its size; its ETag.

        Of a server that does not say them, None.

        Raises:
          OSError: they cannot be had, or the server would send the whole file.
        """

        async def read(answer: Any) -> tuple[bytes, int | None, str | None]:
            if answer.status == 416:
                return b"", start, None
            if answer.status not in (200, 206):
                raise _refusal(answer)
            first, end, size = _sent(answer, start, stop)
            if first != start or end > stop:
                # Not read: it may be the whole file.
                answer.close()
                raise Unusable("the server ignores byte ranges and sends whole files only")
            return exactly(await answer.read(), start, end), size, answer.headers.get("ETag")

        asked = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity", **headers}
        return self._get(url, asked, read)

    def _get(self, url: str, headers: Mapping[str, str], read: Any) -> Any:
        import aiohttp
        import yarl
        from fsspec.asyn import sync

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
        )

        async def ask() -> Any:
            session = await self._system.set_session()
            place = yarl.URL(url, encoded=True)
            async with session.get(place, headers=dict(headers), timeout=timeout) as answer:
                return await read(answer)

        return retrying(lambda: sync(self._system.loop, ask))


class Web(Place):
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
            raise Unusable(
                "a web server lists no folders; give the URL of one checkpoint file, or a manifest "
                "of such URLs"
            )
        return {}

    def file(self, path: str) -> File:  # noqa: D102
        _, size, version = self._client.range(self._address(path), 0, 1, {})
        if size is None:
            raise Unusable("the server does not say how large the file is")
        return File(size, version=version)

    def fetch(self, path: str, start: int, stop: int) -> bytes:  # noqa: D102
        return exactly(self._client.range(self._address(path), start, stop, {})[0], start, stop)

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
    return Answer(answer.status, answer.reason or "", float(wait) if wait.isdecimal() else 0.0)
