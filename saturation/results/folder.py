"""A run on disk: `run.json` and Parquet parts, each written whole or not at all.

    run.json                                  what was asked for, of what, by which code
    parts/<measure>/<arrays>.<range>.parquet  statistics of some arrays over a range of steps

A part's name says what it holds, so that a restarted run computes only what is missing, any number
of batch tasks write into one folder, and two that write the same part do no harm.
"""

from __future__ import annotations

import json
import re
from typing import Any

from saturation.errors import ResultsError
from saturation.results.seal import SEAL, seal_of
from saturation.storage.write import Files

RUN_FILE = "run.json"
_PART = re.compile(
    r"^parts/(?P<measure>[^/]+)/(?P<key>[^/]+)\.(?P<start>\d+)-(?P<stop>\d+)\.parquet$"
)


class RunFolder(Files):
    """The files of one run."""

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
        """Return the names of the files that may be parts."""
        return self.names("parts", "*/*.parquet")

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
