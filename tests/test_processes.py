"""Several processes agree on everything, one of them writes, and their numbers are those of one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import many_processes
import numpy as np
import pandas as pd
import pytest
from made_trajectory import write_trajectory
from test_kill import UNHURRIED, many_steps

import saturation
from saturation.errors import MeasureError, ResultsError
from saturation.runs.shared_folder import SharedRunFolder
from saturation.runtime import processes
from saturation.runtime.processes import await_coordinator

TALK = """
import json, sys
from pathlib import Path
from saturation.runtime import processes
from saturation.runs.shared_folder import SharedRunFolder
from saturation.errors import CheckpointFormatError, ResultsError, SaturationError

processes.join()
import jax

number, found = jax.process_index(), {}
found["gathered"] = [len(content) for content in processes.gather(bytes(3 ** (9 * number)))]
found["any"] = [processes.any_process(number == 1), processes.any_process(False)]
found["first"] = processes.broadcast_from_first(lambda: {"number": number, "step": None})
found["everywhere"] = processes.on_every_process(lambda: number)

def fail():
    if number == 1:
        raise CheckpointFormatError("its disk is gone.")

def break_down():
    if number == 1:
        raise KeyError("a bug")

def attempt(work):
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]

folder = SharedRunFolder(f"{sys.argv[1]}/{number}")
folder.write("run.json", json.dumps({"measures": [], "by": number}).encode())
found["run"] = folder.read_description()
found["absent"] = folder.read("parts/none")
Path(f"{sys.argv[1]}/file").touch()
found["failures"] = [
    attempt(lambda: processes.on_every_process(fail)),
    attempt(lambda: processes.on_every_process(break_down)),
    attempt(lambda: processes.broadcast_from_first(fail)),
    attempt(lambda: processes.refuse_difference("checkpoints", [0, number])),
    attempt(lambda: processes.refuse_difference("checkpoints", [0, 10])),
    attempt(lambda: SharedRunFolder(f"{sys.argv[1]}/file").write("run.json", b"")),
]
print(json.dumps(found))
"""


def test_two_processes_say_and_do_the_same(tmp_path: Path) -> None:
    ended = many_processes.finish(
        many_processes.start([many_processes.sys.executable, "-c", TALK, tmp_path], 2, 1)
    )
    assert [process.code for process in ended] == [0, 0], ended
    first, second = (json.loads(process.out) for process in ended)
    assert first["gathered"] == second["gathered"] == [1, 3**9]
    assert first["any"] == second["any"] == [True, False]
    assert first["first"] == second["first"] == {"number": 0, "step": None}
    assert (first["everywhere"], second["everywhere"]) == (0, 1)
    assert first["run"] == second["run"] == {"measures": [], "by": 0}
    assert first["absent"] is second["absent"] is None
    assert not (tmp_path / "1").exists(), "only the first process writes"

    differ = "Process 1 sees other checkpoints than process 0: all must see the same files"
    assert [failure and failure[0] for failure in first["failures"]] == [
        *("CheckpointFormatError", "SaturationError", None, "MeasureError", None, "ResultsError")
    ]
    assert first["failures"][0][1] == "Process 1: its disk is gone."
    assert second["failures"][0] == ["CheckpointFormatError", "its disk is gone."]
    assert first["failures"][1][1] == "Process 1: KeyError: 'a bug'"
    assert second["failures"][1] == ["KeyError", "'a bug'"]
    assert second["failures"][2] is None, "the first did not fail, and it alone was asked"
    assert first["failures"][3][1].startswith(differ)
    assert second["failures"][3][1].startswith(differ)
    assert first["failures"][5][1].startswith("Cannot write")
    assert second["failures"][5] == ["ResultsError", "Process 0: " + first["failures"][5][1]]


def test_one_process_alone_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "multihost_utils", None)
    folder = SharedRunFolder(tmp_path)
    folder.write("run.json", b"\xff")
    assert folder.read("run.json") == b"\xff"
    assert folder.parts() == {}
    assert processes.any_process(True)
    processes.refuse_difference("anything", np.pi)
    with pytest.raises(ResultsError, match="not the JSON"):
        processes.on_every_process(folder.read_description)


def write_tokens(path: Path) -> Path:
    """Six sequences that a model of 40 tokens knows, of different lengths."""
    generator = np.random.default_rng(0)
    lines = [generator.integers(1, 12, 9 - row % 3).tolist() for row in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def assert_same_tables(found: Path, expected: Path) -> None:
    """To 1e-6 for weights and 1e-5 for activations; beside 1 where values are near 0."""
    key = ["step", "measure", "metric", "scope"]
    tables = [saturation.load_results(run).set_index(key).value for run in (found, expected)]
    assert list(tables[0].index) == list(tables[1].index)
    activations = tables[0].index.get_level_values("measure").isin(["saturation", "heads"])
    for rows, rtol in ((activations, 1e-5), (~activations, 1e-6)):
        pd.testing.assert_series_equal(*(t[rows] for t in tables), rtol=rtol, atol=rtol)


def measure_here(trajectory: Path, out: Path, *arguments: object) -> None:
    """Measure as one process with one device."""
    command = [many_processes.COMMAND, "measure", trajectory, "--out", out, *arguments]
    subprocess.run(list(map(str, command)), env=many_processes.environment(1), check=True)


def test_two_processes_that_split_the_model_measure_what_one_does(tmp_path: Path) -> None:
    trajectory = write_trajectory(tmp_path / "t", (0, 10))
    tokens = write_tokens(tmp_path / "t.jsonl")
    arguments = ("--measures", "norms,direction,spectrum,heads", "--tokens", tokens)
    measure_here(trajectory, tmp_path / "one", *arguments)
    ended = many_processes.measure(
        *(trajectory, tmp_path / "two", *arguments, "--mesh", "data=1,model=4"),
        processes=2,
        devices=2,
    )
    assert [process.code for process in ended] == [0, 0], ended
    assert "parts computed, 0 reused" in ended[0].out
    assert ended[1].out == "", "only the first process speaks"
    assert_same_tables(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "processes", "devices"), [("v1_0", 2, 4), ("umt5", 2, 4), ("v1_0", 4, 2)]
)
def test_processes_measure_on_the_fixtures_what_one_device_does(
    fixtures: Path, tmp_path: Path, form: str, processes: int, devices: int
) -> None:
    """Issue 5's acceptance 5."""
    tokens = write_tokens(tmp_path / "t.jsonl")
    arguments = ("--measures", "norms,direction,saturation,heads", "--tokens", tokens)
    measure_here(fixtures / form / "hf", tmp_path / "one", *arguments)
    ended = many_processes.measure(
        fixtures / form / "hf",
        tmp_path / "many",
        *arguments,
        processes=processes,
        devices=devices,
    )
    assert [process.code for process in ended] == [0] * processes, ended
    assert_same_tables(tmp_path / "many", tmp_path / "one")


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_at_the_same_job(tmp_path: Path) -> None:
    trajectory = many_steps(tmp_path / "t", 3, 120, vocab=64)
    out, arguments = tmp_path / "two", ("--measures", "norms,direction")
    command = [*UNHURRIED, "measure", trajectory, "--out", out, *arguments, "--distributed"]
    started = many_processes.start(command, 2, 1)
    while not list(out.glob("parts/*/*")) and started[1].poll() is None:
        time.sleep(0.005)
    started[1].send_signal(signal.SIGTERM)
    ended = many_processes.finish(started)
    assert [process.code for process in ended] == [75, 75], ended
    before = len(list(out.glob("parts/*/*.parquet")))
    measure_here(trajectory, out, *arguments)
    measure_here(trajectory, tmp_path / "one", *arguments)
    assert 0 < before < len(list(out.glob("parts/*/*.parquet")))
    assert_same_tables(out, tmp_path / "one")


def test_a_command_that_finds_no_others_says_how_to_start_it(tmp_path: Path) -> None:
    environment = many_processes.environment(1)
    command = [many_processes.COMMAND, "measure", tmp_path, "--measures", "norms", "--out", "run"]
    ended = subprocess.run(
        [*command, "--distributed"], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "--distributed: JAX found no other processes (coordinator_address" in ended.stderr
    assert "Start the command with srun, mpirun or on every worker of a TPU pod" in ended.stderr


def test_the_number_of_processes_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "JAX_NUM_PROCESSES", "many")
    with pytest.raises(MeasureError, match="JAX found no other processes"):
        processes.join()


def test_a_first_process_that_never_answers_is_one_sentence() -> None:
    """JAX itself would end the process, without an error that could be caught."""
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            MeasureError, match=rf"does not answer at {address} after \d+ s \(.*refused"
        ):
            await_coordinator(address, seconds=0.1)
    with pytest.raises(MeasureError, match=r"does not answer at nohost\.invalid:1 after"):
        await_coordinator("nohost.invalid:1", seconds=600, name_seconds=0.1)
    with pytest.raises(MeasureError, match="is host:port of the first process, and not 'here'"):
        await_coordinator("here")


def test_a_first_process_that_comes_late_is_waited_for() -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        started = threading.Timer(0.5, first.listen)
        started.start()
        await_coordinator(f"127.0.0.1:{first.getsockname()[1]}", seconds=60)
        started.join()
