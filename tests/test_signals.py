"""Signals that ask to stop: the first is a request, a later one an order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from saturation.signals import stop_requested


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
        "from saturation import signals\n"
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
