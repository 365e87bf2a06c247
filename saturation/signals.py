"""Signals that ask a job to stop: the work at hand is finished and written first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# A batch system signals a process and the scripts above it, which pass the signal on.
_SAME_REQUEST_SECONDS = 1.0


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set; asked again, the process ends at once.

    A second signal of a kind asks again if it comes more than a second after the first.

    Off the main thread, where Python cannot take signals, the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    asked: dict[int, float] = {}

    def handle(number: int, _: Any) -> None:
        stop.set()
        now = time.monotonic()
        if now - asked.setdefault(number, now) > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            # None stands for a handler that is not Python's: it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
