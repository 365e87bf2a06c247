"""Signals that ask a job to stop: the work at hand is finished and written first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

# A batch system signals a process and the scripts above it, which pass the signal on.
_SAME_REQUEST_SECONDS = 1.0


def stop_requested() -> AbstractContextManager[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set; asked again, the process ends at once.

    A second signal of a kind asks again if it comes more than a second after the first.

    Off the main thread, where Python cannot take signals, the event is never set.
    """
    return _set_by((signal.SIGTERM, signal.SIGINT), ends=True)


def interrupt_requested() -> AbstractContextManager[threading.Event]:
    """Yield an event that SIGINT sets, as `stop_requested`, in a process that is not ours to end.

    Such as a notebook's: asked again, what handled the signal before does, a `KeyboardInterrupt`.
    """
    return _set_by((signal.SIGINT,), ends=False)


@contextmanager
def _set_by(signals: Sequence[signal.Signals], ends: bool) -> Iterator[threading.Event]:
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    asked: dict[int, float] = {}

    def handle(number: int, _: Any) -> None:
        stop.set()
        now = time.monotonic()
        if now - asked.setdefault(number, now) > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL if ends else previous[number])
            signal.raise_signal(number)

    previous: dict[int, Any] = {number: signal.signal(number, handle) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            # None stands for a handler that is not Python's: it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
