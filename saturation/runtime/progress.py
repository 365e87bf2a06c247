"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log.

Both go to stderr, so that what a command prints to stdout stays machine-readable.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, TextIO

_SECONDS_BETWEEN_LINES = 10.0


class Forgiving:
    """A text stream that takes what it is given, also where nobody holds its other end.

    A log that cannot be written, on a full disk or closed, is no reason to stop the work.

    Args:
      stream: what to write to; None for a stream that was closed before the program began.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError, ValueError, AttributeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write out what can be."""
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether there is a terminal at the other end."""
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Progress:
    """A counter of work done that shows itself. Use as a context manager; thread-safe.

    Args:
      what: what is being done, e.g. "Reading".
      unit: what is counted; "B" is shown as MB and MB/s.
      quiet: show nothing.
      stream: where to; stderr by default.
    """

    def __init__(
        self, what: str, unit: str, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self.what, self.unit, self.quiet = what, unit, quiet
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()
        self._total = self._done = self._earlier = 0.0
        self._begun = self._shown = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if not self.quiet and self._stream.isatty():
            self._bar = _bar(self.unit, self._stream)
            self._task = self._bar.add_task(self.what, total=None, note="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self.quiet and self._done:
            self._line()

    def start(self, total: float, done: float = 0.0) -> None:
        """Say how much there is to do in all, and how much of it an earlier run did."""
        self._total, self._done, self._earlier = total, done, done
        self._begun = self._shown = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, total=total, completed=done)

    def advance(self, amount: float, note: str = "") -> None:
        """Count `amount` more as done; `note` stands behind the rate (a loss, a norm)."""
        with self._lock:
            self._done += amount
            if self._bar is not None:
                self._bar.update(self._task, advance=amount, note=note)
            elif not self.quiet and time.monotonic() - self._shown >= _SECONDS_BETWEEN_LINES:
                self._line(note)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Say that the device's code is being compiled; that time is in no rate."""
        begun = time.monotonic()
        with self._lock:
            if self._bar is not None:
                self._bar.update(self._task, note="compiling …")
            elif not self.quiet:
                print(f"{self.what}: compiling …", file=self._stream, flush=True)
        yield
        with self._lock:
            self._begun += time.monotonic() - begun
            if self._bar is not None:
                self._bar.update(self._task, note="")

    def say(self, text: str) -> None:
        """Print one line, above the bar where there is one."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def _line(self, note: str = "") -> None:
        self._shown = now = time.monotonic()
        seconds = max(now - self._begun, 1e-9)
        rate = (self._done - self._earlier) / seconds
        left = f"{(self._total - self._done) / rate:,.0f} s left" if rate > 0 else "nothing run yet"
        scale, unit = (1e6, "MB") if self.unit == "B" else (1.0, self.unit)
        print(
            f"{self.what}: {self._done / scale:,.0f} of {self._total / scale:,.0f} {unit}, "
            f"{rate / scale:,.4g} {unit}/s, {left}{'; ' + note if note else ''}",
            file=self._stream,
            flush=True,
        )


def _bar(unit: str, stream: Any) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    amount = [DownloadColumn(), TransferSpeedColumn()] if unit == "B" else [MofNCompleteColumn()]
    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amount,
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=stream),
    )
