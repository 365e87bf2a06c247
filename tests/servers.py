"""Servers on the loopback interface that tests read from: plain files, and the hub's interface.

Each notes what was asked of it and how many bytes of content it sent.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


@dataclass
class Served:
    """What a server has done, and how it is to behave.

    Attributes:
      requests: (method, path with query, Range or None, bytes of content sent).
      authorized: the Authorization headers that came, by path.
      fail_every: every so many requests are answered 503.
      status: answer every request so.
      token: what a request must bear.
      ranges: whether byte ranges are understood.
      cut: send half of each range.
      page: how many entries a page of a listing has.
      delay: seconds that each answer takes.
      etags: the web's answers say an ETag and the hub's own the hash of the file.
      dates: the web's answers say when the file was changed.
      at_once: how many requests were being answered at the same time, at most.
    """

    url: str = ""
    requests: list[tuple[str, str, str | None, int]] = field(default_factory=list)
    authorized: dict[str, str | None] = field(default_factory=dict)
    fail_every: int = 0
    status: int = 0
    token: str = ""
    ranges: bool = True
    cut: bool = False
    page: int = 1000
    delay: float = 0.0
    etags: bool = False
    dates: bool = False
    at_once: int = 0
    under_way: int = 0

    def sent(self, part: str = "") -> int:
        """Bytes of content sent under paths with `part` in them."""
        return sum(count for _, path, _, count in self.requests if part in path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which would hold back each small answer for 40 ms
    served: Served
    lock: threading.Lock

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        served = self.served
        with self.lock:
            served.under_way += 1
            served.at_once = max(served.at_once, served.under_way)
        try:
            time.sleep(served.delay)
            self.handle_request()
        finally:
            with self.lock:
                served.under_way -= 1

    def handle_request(self) -> None:
        served = self.served
        with self.lock:
            self._number = len(served.requests)
            served.requests.append((self.command, self.path, self.headers.get("Range"), 0))
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            served.authorized[path] = self.headers.get("Authorization")
        if served.status:
            return self.answer(served.status)
        if served.fail_every and self._number % served.fail_every == served.fail_every - 1:
            return self.answer(503, b"come back later")
        bears = self.headers.get("Authorization") == f"Bearer {served.token}"
        if served.token and not path.startswith("/cdn/") and not bears:
            return self.answer(401, b"who are you?")
        return self.get(path)

    def get(self, path: str) -> None:
        raise NotImplementedError

    def answer(
        self, status: int, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            with self.lock:
                known = self.served.requests[self._number]
                self.served.requests[self._number] = (*known[:3], len(content))
            self.wfile.write(content)

    def answer_file(self, file: Path) -> None:
        size = file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked or not self.served.ranges:
            return self.answer(200, file.read_bytes(), {"Accept-Ranges": "bytes"})
        start, stop = int(asked[1]), min(int(asked[2]) + 1, size)
        marks = self.marks(file)
        if start >= size:
            return self.answer(416, b"", {"Content-Range": f"bytes */{size}", **marks})
        with file.open("rb") as opened:
            opened.seek(start)
            content = opened.read(stop - start)
        if self.served.cut:
            content = content[: len(content) // 2]
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "Accept-Ranges": "bytes"}
        return self.answer(206, content, headers | marks)

    def marks(self, file: Path) -> dict[str, str]:
        """What an answer with bytes of a file says of its version."""
        marks = {}
        if self.served.etags:
            # Of one answer in two it is weak, as where a proxy stands between.
            weak = "W/" if self._number % 2 else ""
            marks["ETag"] = f'{weak}"{hashlib.md5(file.read_bytes()).hexdigest()}"'
        if self.served.dates:
            marks["Last-Modified"] = formatdate(file.stat().st_mtime, usegmt=True)
        return marks


@contextmanager
def _serving(handler: type[_Handler]) -> Iterator[Served]:
    served = Served()
    bound = type("Bound", (handler,), {"served": served, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def web(folder: Path) -> Iterator[Served]:
    """Serve the files of a folder, without any listing."""

    class Files(_Handler):
        def get(self, path: str) -> None:
            file = folder / path.strip("/")
            return self.answer_file(file) if file.is_file() else self.answer(404)

    with _serving(Files) as served:
        yield served


@contextmanager
def hub(repositories: Mapping[str, Mapping[str, Path]]) -> Iterator[Served]:
    """Serve {"ORG/REPO": {revision: its folder}} as the Hugging Face hub does.

    Files come from another address than the one asked, as from the hub's network of caches.
    """

    class Hub(_Handler):
        def get(self, path: str) -> None:
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(refs|tree)(?:/(.*))?", path)
            if found and found[1] in repositories:
                revisions = repositories[found[1]]
                if found[2] == "refs":
                    return self.answer(200, json.dumps(_refs(revisions)).encode())
                return self.tree(revisions, found[3], query)
            if path == "/api/models":
                return self.models(query)
            found = re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/(.+)", path)
            if found and found[2] in repositories:
                place = _split(repositories[found[2]], found[3])
                if place and place.is_file():
                    if found[1]:
                        return self.answer_file(place)
                    headers = {"Location": f"/cdn{self.path}"}
                    if self.served.etags:
                        # The other's address is none of this server's, as in life.
                        elsewhere = self.served.url.replace("127.0.0.1", "localhost")
                        headers["Location"] = f"{elsewhere}{headers['Location']}"
                        headers["X-Linked-ETag"] = f'"{_hash(place)}"'
                    return self.answer(302, b"", headers)
            return self.answer(404, b'{"error": "not found"}')

        def models(self, query: dict[str, str]) -> None:
            owner, part = query.get("author", ""), query.get("search", "")
            names = [n for n in repositories if n.startswith(f"{owner}/") and part in n]
            self.answer(200, json.dumps([{"id": n, "modelId": n} for n in names]).encode())

        def tree(self, revisions: Mapping[str, Path], rest: str, query: dict[str, str]) -> None:
            folder = _split(revisions, rest)
            if folder is None or not folder.is_dir():
                return self.answer(404)
            root = next(revisions[name] for name in revisions if rest.startswith(name))
            recursive = query.get("recursive", "").lower() == "true"
            entries = [
                _entry(root, file)
                for file in sorted(folder.rglob("*") if recursive else folder.iterdir())
            ]
            at = int(query.get("cursor", "0"))
            page, headers = entries[at : at + self.served.page], {}
            if at + self.served.page < len(entries):
                following = urllib.parse.urlencode({**query, "cursor": at + self.served.page})
                address = f"{self.served.url}{urllib.parse.urlsplit(self.path).path}?{following}"
                headers = {"Link": f'<{address}>; rel="next"'}
            return self.answer(200, json.dumps(page).encode(), headers)

    with _serving(Hub) as served:
        yield served


def _refs(revisions: Mapping[str, Path]) -> dict[str, list[dict[str, str]]]:
    def described(name: str, kind: str) -> dict[str, str]:
        commit = hashlib.sha1(name.encode()).hexdigest()
        return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}

    tags = [described(name, "tags") for name in revisions if name.startswith("v")]
    branches = [described(name, "heads") for name in revisions if not name.startswith("v")]
    return {"branches": branches, "tags": tags, "converts": []}


def _split(revisions: Mapping[str, Path], rest: str) -> Path | None:
    for name, folder in revisions.items():
        if rest == name or rest.startswith(f"{name}/"):
            return folder / rest.removeprefix(name).lstrip("/")
    return None


def _entry(root: Path, file: Path) -> dict[str, object]:
    path = file.relative_to(root).as_posix()
    if file.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
    size = file.stat().st_size
    entry = {"type": "file", "oid": "1" * 40, "size": size, "path": path}
    if file.suffix == ".safetensors":
        entry["lfs"] = {"oid": _hash(file), "size": size, "pointerSize": 134}
    return entry


def _hash(file: Path) -> str:
    """What the hub knows a file by: SHA-256 where it is a large one, else git's name (of any)."""
    if file.suffix == ".safetensors":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return "1" * 40


def write_large(folder: Path) -> int:
    """Write a checkpoint of over 100 MB, `layer/0/weight` … of 10 MB each; return its size."""
    folder.mkdir(parents=True)
    arrays = {f"layer.{i}.weight": np.full((2500, 1000), i, np.float32) for i in range(11)}
    save_file(arrays, folder / "model.safetensors")
    return (folder / "model.safetensors").stat().st_size
