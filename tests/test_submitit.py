"""What is submitted through submitit: shards that can be queued again, and a report behind them."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from made_trajectory import write_trajectory

import saturation
from saturation.cli import commands as cli

submitit = pytest.importorskip("submitit", reason="the extra `cluster` is not installed")
SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm" / "submit.py"


def script():
    spec = importlib.util.spec_from_file_location("submit_to_slurm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_shards_make_one_run_and_a_preempted_one_is_queued_as_it_is(tmp_path):
    trajectory = str(write_trajectory(tmp_path / "t"))
    out, whole = tmp_path / "out", tmp_path / "whole"
    shards = [script().MeasureShard(trajectory, str(out), ("norms",), i, 2) for i in range(2)]
    assert sum(shard()["computed"] for shard in shards) > 0
    assert [shard()["computed"] for shard in shards] == [0, 0]
    before = signal.getsignal(signal.SIGUSR2)
    try:
        assert shards[1].checkpoint().function is shards[1]
        signal.raise_signal(signal.SIGUSR2)  # once more, by srun: it is too late to matter
    finally:
        signal.signal(signal.SIGUSR2, before)
    saturation.measure(saturation.open_trajectory(trajectory), ["norms"], str(whole))
    pd.testing.assert_frame_equal(saturation.load_results(out), saturation.load_results(whole))


def test_what_scan_counts_in_is_what_the_command_line_counts_in(tmp_path, monkeypatch, capsys):
    """Else neither could go on with the other's run: all of the text, not the sequences it runs."""
    trajectory, tokens = write_trajectory(tmp_path / "t", (0,)), tmp_path / "tokens.jsonl"
    tokens.write_text("".join(f"[{1 + row % 9}, 2, 3]\n" for row in range(40)))
    shard = script().MeasureShard(
        str(trajectory), str(tmp_path / "run"), ("scan",), 0, 1, tokens=str(tokens)
    )
    assert shard()["computed"] == 1
    command = ["measure", trajectory, "--measures", "scan", "--tokens", tokens, "--json"]
    monkeypatch.setattr(sys, "argv", list(map(str, ["s", *command, "--out", tmp_path / "run"])))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert '"computed": 0' in capsys.readouterr().out


@pytest.mark.slow
def test_an_array_of_processes_here_and_its_report(tmp_path):
    write_trajectory(tmp_path / "t")
    options = [
        "--tasks",
        "2",
        "--cluster",
        "local",
        "--measures",
        "norms",
        "--set",
        "timeout_min=5",
    ]
    command = [sys.executable, SCRIPT, "t", "o/", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "o/report.html" in done.stdout
    assert (tmp_path / "o" / "report.html").stat().st_size > 1000
    assert saturation.load_results(tmp_path / "o" / "run").step.nunique() == 3
