"""A run on disk: `run.json` and Parquet parts, each written whole or not at all.

    run.json                                  what was asked for, of what, by which code
    parts/<measure>/<arrays>.<range>.parquet  statistics of some arrays over a range of steps

A part's name says what it holds, so that a restarted run computes only what is missing, any number
of batch tasks write into one folder, and two that write the same part do no harm.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from saturation.errors import ResultsError
from saturation.results.seal import SEAL, seal_of
from saturation.storage.local_files import read_regular, refuse_impossible
from saturation.storage.write import write_whole

RUN_FILE = "run.json"
_PART = re.compile(
    r"^parts/(?P<measure>[^/]+)/(?P<key>[^/]+)\.(?P<start>\d+)-(?P<stop>\d+)\.parquet$"
)


class RunFolder:
    """The files of one run, by relative name.

    Args:
      path: a local folder, or a URL that fsspec knows (`gs://…`, `s3://…`, `memory://…`).

    Raises:
      ResultsError: the path is empty, or a URL of a kind that is not known or not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path).removeprefix("file://")
        self._remote: Any = None
        if not self.path:
            raise ResultsError("A run needs a folder or a URL, and its path is empty.")
        try:
            refuse_impossible(self.path)
        except OSError as error:
            raise ResultsError(f"A run's folder: {error.strerror}.") from error
        if "://" in self.path:
            if not self.path.partition("://")[2].strip("/"):
                raise ResultsError(f"{self.path}: a run's URL was expected to name a place there.")
            import fsspec

            from saturation.storage.places import open_alone
            from saturation.storage.trust import shown_url

            make = partial(fsspec.core.url_to_fs, self.path)
            try:
                self._remote, self._root = open_alone(make, self.path.partition("://")[0])
            # Each library raises what it likes: of a missing part of the URL even TypeError.
            except Exception as error:
                raise ResultsError(
                    f"{shown_url(self.path)} cannot be reached: {error}. Install what it needs "
                    "(pip install 'saturation-jax[gcs]' for gs://, [s3] for s3://), or give a "
                    "local folder."
                ) from error

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None where there is no such file."""
        try:
            if self._remote is not None:
                return _asked(lambda: self._remote.cat_file(f"{self._root}/{name}"))
            return read_regular(Path(self.path) / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ResultsError(f"Cannot read {self.path}/{name}: {_reason(error)}.") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole: one object on a bucket, a rename on a local disk.

        Raises:
          ResultsError: the place is full or cannot be written; nothing half-written remains.
        """
        try:
            if self._remote is not None:
                _asked(lambda: self._remote.pipe_file(f"{self._root}/{name}", content))
            else:
                write_whole(Path(self.path) / name, lambda file: file.write(content))
        except OSError as error:
            remedy = "log in or wait" if self._remote is not None else "make room"
            raise ResultsError(
                f"Cannot write {self.path}/{name}: {_reason(error)}. "
                f"What was written before is intact; {remedy}, and run the same command again."
            ) from error

    def parts(self) -> dict[tuple[str, str], list[tuple[int, int]]]:
        """Return the parts that lie here: {(measure, array): ranges (first step, last step)}."""
        found: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for name in self.list_parts():
            match = _PART.match(name)
            if match:
                key = (match["measure"], unescape(match["key"]))
                found.setdefault(key, []).append((int(match["start"]), int(match["stop"])))
        return {key: sorted(ranges) for key, ranges in found.items()}

    def list_parts(self) -> list[str]:
        """Return the names of the files that may be parts.

        Raises:
          ResultsError: the place cannot be listed.
        """
        if self._remote is not None:
            try:
                self._remote.invalidate_cache()
                names = _asked(lambda: self._remote.find(f"{self._root}/parts"))
            except FileNotFoundError:
                return []
            except OSError as error:
                raise ResultsError(f"Cannot list {self.path}: {_reason(error)}.") from error
            return [name[len(self._root) :].lstrip("/") for name in names]
        root = Path(self.path)
        return [path.relative_to(root).as_posix() for path in root.glob("parts/*/*.parquet")]

    def read_description(self) -> dict[str, Any] | None:
        """Return what `run.json` says, or None where there is none.

        Raises:
          ResultsError: `run.json` is not the JSON object that a run writes.
        """
        content = self.read(RUN_FILE)
        if content is None:
            return None
        try:
            described = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ResultsError(
                f"{self.path}/{RUN_FILE} is not the JSON that `saturation measure` writes "
                f"({error}); restore it, or measure into a new folder."
            ) from error
        if not isinstance(described, dict) or "measures" not in described:
            raise ResultsError(
                f"{self.path}/{RUN_FILE} does not describe a run of `saturation measure`: "
                "it has no `measures`."
            )
        return described

    def write_run_json(self, described: dict[str, Any]) -> None:
        """Write `run.json`, with the seal by which an edit of it is noticed."""
        content = {**described, SEAL: seal_of(described)}
        self.write(RUN_FILE, (json.dumps(content, indent=1) + "\n").encode())


def part_name(measure: str, key: str, start: int, stop: int) -> str:
    """Return the name of the part of `measure` for one array from step `start` to `stop`."""
    return f"parts/{measure}/{escape(key)}.{start}-{stop}.parquet"


def escape(key: str) -> str:
    """Return an array name as one path segment, reversibly: '/' becomes '+'.

    >>> escape("encoder/layers_0")
    'encoder+layers_0'
    """
    return key.replace("%", "%25").replace("+", "%2B").replace("/", "+")


def unescape(segment: str) -> str:
    """Return the array name that `escape` turned into `segment`."""
    return segment.replace("+", "/").replace("%2B", "+").replace("%25", "%")


def _asked(action: Callable[[], Any]) -> Any:
    """Return what a place on a network answers, trying again what fails now and then.

    Raises:
      FileNotFoundError, OSError: whatever class the error has in that library.
    """
    from saturation.storage.retry import retrying

    try:
        return retrying(action)
    except ValueError as error:  # of a URL that can lead nowhere, such as a bucket of one letter
        raise OSError(str(error)) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
