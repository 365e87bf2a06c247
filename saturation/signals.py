"""Signals that ask a job to stop: the work at hand is finished and written first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set; a second one of a kind ends the process at once.

    Off the main thread, where Python cannot take signals, the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            # None stands for a handler that is not Python's: it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
