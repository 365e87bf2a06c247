"""Tries again what a network fails at now and then, and says in one sentence what stays wrong.

File systems of many libraries meet here, each with errors of its own. They are told apart by their
HTTP status where there is one: a file that is missing, a reader who is not allowed, a request that
will never work, and everything else, which may work the next time.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from saturation.errors import escaped

Result = TypeVar("Result")

ATTEMPTS = 7
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 20.0  # seconds; the six pauses together are at most 16
PATIENCE = 16.0  # seconds, after which a server that does not answer at all is not asked again

# Too many requests, or a server that was too slow: the 4xx that pass.
_PASSING = frozenset({408, 425, 429})
# Whose errors, whatever their class, come from talking to a server.
_NETWORK = frozenset(
    {
        *("aiohttp", "aiobotocore", "botocore", "fsspec", "gcsfs", "google", "requests", "urllib3"),
        *("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2"),
    }
)
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


class Denied(PermissionError):
    """The place does not let this reader in."""


class PermanentFailure(OSError):
    """A place that cannot serve what is needed, however often it is asked."""


class Changed(PermanentFailure):
    """A file that is not what it was when it was listed.

    Args:
      what: which of its marks differs, such as "ETag".
      was: the mark in the listing.
      now: the mark of the answer.
    """

    def __init__(self, what: str, was: object, now: object):
        marks = (escaped(str(mark)[:80]) for mark in (was, now))
        super().__init__(
            "it has changed since it was listed, its {} was {} and is {}: measure a trajectory "
            "that nobody writes to any more, or open it again".format(what, *marks)
        )


_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermanentFailure)


class HTTPStatusError(OSError):
    """A server's answer other than what was asked for.

    Args:
      status: the HTTP status.
      retry_after: the seconds that the server asks to wait.
    """

    def __init__(self, status: int, reason: str = "", retry_after: float = 0.0):
        super().__init__(f"the server answers {status} {reason}".rstrip())
        self.status, self.retry_after = status, retry_after


def retrying(
    action: Callable[[], Result],
    attempts: int = ATTEMPTS,
    pause: Callable[[float], None] = time.sleep,
) -> Result:
    """Return what `action` returns, trying again after an error that may pass.

    The pause before attempt n is drawn evenly from (½, 1]·min(20 s, ¼ s·2ⁿ⁻²), so that many readers
    that failed together do not come back together.

    Raises:
      FileNotFoundError, Denied: the place says so.
      OSError: what the place said, without any secret; after the last attempt, how many there were.
    """
    attempt, started = 0, time.monotonic()
    while True:
        attempt += 1
        try:
            return action()
        except Exception as error:  # judged below: what is no network's is raised as it is
            trouble = _judged(error)
            if trouble is None:
                raise
        if not _may_pass(trouble):
            raise trouble
        silent = not isinstance(trouble, HTTPStatusError) and time.monotonic() - started > PATIENCE
        if attempt == attempts or silent:
            made = f" ({attempt} attempts were made; try again later)" if attempt > 1 else ""
            raise OSError(f"{trouble}{made}")
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1))
        wanted = min(getattr(trouble, "retry_after", 0.0), LONGEST_PAUSE)
        pause(max(wanted, longest * (1 - random.random() / 2)))


def redacted(text: str) -> str:
    """Return a text without the secrets of the environment, of headers and of signed URLs."""
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    text = re.sub(r"(?i)\bbearer\s+[^\s'\"]+", "Bearer ***", text)
    text = re.sub(r"://[^/\s@]+@", "://***@", text)
    return re.sub(r"\?[^\s'\")]*=[^\s'\")]*", "?***", text)


def _may_pass(trouble: OSError) -> bool:
    if isinstance(trouble, (*_FINAL, Denied)):
        return False
    status = getattr(trouble, "status", None)
    return status is None or status >= 500 or status in _PASSING


def _judged(error: Exception) -> OSError | None:
    """Return an error as one of this file's, or None where it does not come from a network."""
    if isinstance(error, (*_FINAL, HTTPStatusError)):
        denied = isinstance(error, HTTPStatusError) and error.status in (401, 403)
        return Denied(str(error)) if denied else error
    ours = type(error).__module__.split(".")[0] in _NETWORK
    if not (ours or isinstance(error, OSError)):
        return None
    status, text = _status(error), _first_line(error)
    credentials = "Credentials" in type(error).__name__
    if isinstance(error, PermissionError) or text.startswith("Forbidden") or credentials:
        return Denied(text)
    if status in (401, 403):
        return Denied(text)
    if status == 404:
        return FileNotFoundError(text)
    # What libraries say begins with the status again, and ends as a sentence.
    said = text.removeprefix(f"{status} ").rstrip(". ")
    return HTTPStatusError(status, said) if status else OSError(text)


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    for holder in (error, response):
        for name in ("status", "code", "status_code"):
            value = getattr(holder, name, None)
            if str(value).isdecimal() and 400 <= int(str(value)) < 600:
                return int(str(value))
    if isinstance(response, dict):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None


def _first_line(error: Exception) -> str:
    lines = redacted(str(error)).strip().splitlines()
    return escaped(lines[0][:200]) if lines else type(error).__name__
