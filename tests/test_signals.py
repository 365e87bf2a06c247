"""Signals that ask to stop: the first is a request, a later one an order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from saturation.runtime import signals
from saturation.runtime.signals import stop_requested


def test_a_signal_passed_on_twice_is_one_request():
    previous = signal.getsignal(signal.SIGTERM)
    with stop_requested() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(1)
    assert signal.getsignal(signal.SIGTERM) is previous


def test_asked_again_later_the_process_ends_at_once():
    code = (
        "import os, signal, time\n"
        "from saturation.runtime import signals\n"
        "signals._SAME_REQUEST_SECONDS = 0.0\n"
        "with signals.stop_requested() as stop:\n"
        "    for _ in range(2):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(0.01)\n"
        "        print('on', flush=True)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == -signal.SIGTERM
    assert ended.stdout == "on\n"


def test_an_interrupt_of_a_process_that_is_not_ours_never_ends_it(monkeypatch):
    monkeypatch.setattr(signals, "_SAME_REQUEST_SECONDS", 0.0)
    previous = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with signals.interrupt_requested() as stop:
        assert signal.getsignal(signal.SIGTERM) is previous[1], "SIGTERM is left alone"
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(1)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == previous
