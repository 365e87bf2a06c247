"""Hands the files of any folder to TensorStore, which reads Orbax's store (OCDBT) for us.

TensorStore reads web servers by byte ranges; here one runs inside this process, on the loopback
interface, and reads each range that it is asked for through the `Folder`. So identities, the hub's
redirections (which TensorStore does not follow) and token, the attempts and the cache are the
folder's business as ever, and every place will do. A folder's address has a random part that only
this process knows.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_folders: dict[str, Folder] = {}
# Why a folder's files could not be read, last: TensorStore hands on a status alone.
_failures: dict[int, CheckpointFormatError] = {}
_lock = threading.Lock()
_server: ThreadingHTTPServer | None = None


def serve_for_tensorstore(folder: Folder) -> dict[str, Any]:
    """Return the spec by which TensorStore reads a folder's files through this process."""
    global _server
    name = secrets.token_urlsafe(32)
    with _lock:
        if _server is None:
            # A proxy that the environment names could not reach back into this process.
            direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
            os.environ["no_proxy"] = f"{direct},127.0.0.1" if direct else "127.0.0.1"
            _server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
            _server.daemon_threads = True
            threading.Thread(target=_server.serve_forever, name="bridge", daemon=True).start()
        _folders[name] = folder
        port = _server.server_port
    return {"driver": "http", "base_url": f"http://127.0.0.1:{port}/{name}/"}


def failure(folder: Folder) -> CheckpointFormatError | None:
    """Return why TensorStore got no bytes of a bridged folder, the last time, once; or None."""
    return _failures.pop(id(folder), None)


class _Handler(BaseHTTPRequestHandler):
    """Answers one range of one file."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which would hold back each small answer for 40 ms

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        _, place, name = urllib.parse.unquote(self.path.partition("?")[0]).split("/", 2)
        folder = _folders.get(place)
        try:
            if folder is None or not folder.exists(name):
                self._answer(404, b"")
                return
            size = folder.size(name)
            asked = _RANGE.fullmatch(self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            stop = min(int(asked[2]) + 1, size) if asked and asked[2] else size
            if start >= size:
                self._answer(416 if size else 200, b"", f"bytes */{size}")
                return
            content = folder.read(name, start, stop)
            self._answer(206 if asked else 200, content, f"bytes {start}-{stop - 1}/{size}")
        except CheckpointFormatError as error:
            _failures[id(folder)] = error
            # A status that TensorStore does not try again: the folder has done so.
            self._answer(400, str(error).encode())

    def _answer(self, status: int, content: bytes, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        # Checkpoints do not change: one version for all time.
        self.send_header("ETag", '"1"')
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(content)
