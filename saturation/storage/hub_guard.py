"""Bounds on what `huggingface_hub` asks and hears while this package lists a repository.

The library's own client has no time limit, follows a listing's next page for as long as one is
named, to any server and with the user's token, and holds whatever an answer contains. Its requests
pass through two hooks of its shared client here, which do nothing outside `guarded`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from saturation.storage.retry import PermanentFailure

MOST_REQUESTS = 2_000  # a page has 1,000 files
MOST_FAILURES = 4  # in a row: the library's pauses, 1, 2, 4 and 8 s, end within 16 s
LARGEST_LISTING = 256 * 2**20
SECONDS = 120.0  # for a listing as a whole
_TELEMETRY = "/api/agent-harnesses"  # once a day, of whatever endpoint is set; an odd answer breaks
_TIMEOUT = {"connect": 10.0, "read": 30.0, "write": 30.0, "pool": 30.0}


@dataclass
class Guard:
    """What one listing may still do.

    Attributes:
      origin: the only server that may be asked: scheme, host and port.
      ends: when the listing must be done, by `time.monotonic`.
      requests, bytes, failures: how many may still come; failures in a row.
      answered: the addresses that answered, each of which a listing needs once.
    """

    origin: str
    ends: float
    requests: int
    bytes: int
    failures: int = MOST_FAILURES
    answered: set[str] = field(default_factory=set)

    def before(self, request: Any) -> None:
        """Let a request go out, or raise `PermanentFailure`."""
        if request.url.path.endswith(_TELEMETRY):
            raise PermanentFailure("nobody asked for it")  # the library goes on without
        self.requests -= 1
        self.failures -= 1
        if not f"{request.url}/".startswith(f"{self.origin}/"):
            # The token goes to the server it was given for and to no other.
            raise PermanentFailure("the hub names a next page on another server")
        if self.requests < 0:
            raise PermanentFailure(
                f"the hub names more than {MOST_REQUESTS:,} pages of one listing"
            )
        if self.failures < 0:
            raise PermanentFailure(
                f"the hub failed {MOST_FAILURES} times in a row; try again later"
            )
        self.refuse_late()
        request.headers["Accept-Encoding"] = "identity"
        request.extensions["timeout"] = dict(_TIMEOUT)

    def after(self, response: Any) -> None:
        """Let an answer be read, no further than is left, or raise `PermanentFailure`."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise PermanentFailure("the hub compresses what was asked for as it is")
        if response.status_code == 200:
            address = str(response.request.url)
            if address in self.answered:
                raise PermanentFailure("the hub names a page of its listing twice")
            self.answered.add(address)
            self.failures = MOST_FAILURES
        response.stream = _bounded(response, self)

    def took(self, count: int) -> None:
        """Count bytes of an answer; too many, or too slow, are a `PermanentFailure`."""
        self.bytes -= count
        if self.bytes < 0:
            raise PermanentFailure(f"the hub's listing is larger than {LARGEST_LISTING:,} bytes")
        self.refuse_late()

    def refuse_late(self) -> None:
        """Raise `PermanentFailure` where the listing takes too long as a whole."""
        if time.monotonic() > self.ends:
            raise PermanentFailure(f"the hub's listing was not there after {SECONDS:.0f} s")


_ACTIVE: ContextVar[Guard | None] = ContextVar("saturation_hub_guard", default=None)


@contextmanager
def guarded(origin: str) -> Iterator[None]:
    """Bound what `huggingface_hub` does in this block, in this thread."""
    from huggingface_hub.utils import get_session  # pyright: ignore[reportMissingImports]

    hooks = get_session().event_hooks
    for kind, hook in (("request", _before), ("response", _after)):
        if hook not in hooks[kind]:
            hooks[kind].append(hook)
    ends = time.monotonic() + SECONDS
    token = _ACTIVE.set(Guard(origin.rstrip("/"), ends, MOST_REQUESTS, LARGEST_LISTING))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def _before(request: Any) -> None:
    if guard := _ACTIVE.get():
        guard.before(request)


def _after(response: Any) -> None:
    if guard := _ACTIVE.get():
        guard.after(response)


def _bounded(response: Any, guard: Guard) -> Any:
    """Return an answer's stream of bytes, counted by a guard."""
    # The library changed its HTTP client between versions; the classes have the same names.
    module: Any = sys.modules[type(response).__module__.partition(".")[0]]
    stream = response.stream

    class Bounded(module.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for chunk in stream:
                guard.took(len(chunk))
                yield chunk

        def close(self) -> None:
            stream.close()

    return Bounded()
