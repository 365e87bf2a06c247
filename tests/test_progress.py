"""What is shown of long work: its rate is of what has run, and not of what was compiled."""

from __future__ import annotations

import sys

import pytest

import saturation.runtime.progress
from saturation.runtime.progress import Progress


class Clock:
    """A clock that only moves when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(saturation.runtime.progress, "time", clock)
    return clock


def test_the_time_of_compiling_is_said_and_is_in_no_rate(clock, capsys):
    with Progress("Measuring", "steps") as progress:
        progress.start(10)
        with progress.compiling():
            clock.now += 90
        clock.now += 20
        progress.advance(4, "step 3")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "Measuring: compiling …"
    assert rest[0] == "Measuring: 4 of 10 steps, 0.2 steps/s, 30 s left; step 3"


def test_what_an_earlier_run_did_is_in_no_rate_and_without_one_nothing_is_said_to_be_left(
    clock, capsys
):
    with Progress("Measuring", "steps") as progress:
        progress.start(10, done=6)
        clock.now += 20
        progress.advance(0)
        clock.now += 20
        progress.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Measuring: 6 of 10 steps, 0 steps/s, nothing run yet"
    assert lines[1] == "Measuring: 8 of 10 steps, 0.05 steps/s, 40 s left"


def test_quietly_nothing_is_shown(clock, capsys):
    with Progress("Measuring", "steps", quiet=True) as progress:
        with progress.compiling():
            clock.now += 90
        progress.advance(1)
    assert capsys.readouterr().err == ""


def test_a_terminals_bar_says_that_it_compiles(clock, monkeypatch):
    class Bar:
        """What of rich's bar is called; keeps the notes it is given."""

        def __init__(self, *_):
            self.notes = []
            self.start = self.stop = lambda: None

        def add_task(self, what, total, note):
            return what

        def update(self, task, note="", **_):
            self.notes.append(note)

    monkeypatch.setattr(saturation.runtime.progress, "_bar", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("Measuring", "B") as progress:
        progress.start(10)
        with progress.compiling():
            assert progress._bar.notes == ["", "compiling …"]
        progress.advance(3, "step 1")
        assert progress._bar.notes[2:] == ["", "step 1"]
