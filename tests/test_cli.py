"""The command line as a user meets it: output, exit codes, and errors of one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_trajectory import write_trajectory
from typer.testing import CliRunner

import saturation
from saturation.cli import commands as cli
from saturation.cli.text import measured_text
from saturation.runs.measure import Outcome


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["saturation", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        output = capsys.readouterr()
        return Result(code, output.out, output.err)

    return run


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trajectory(tmp_path_factory.mktemp("cli") / "t", (0, 10, 20, 30, 40, 50))


@pytest.fixture(scope="module")
def run_folder(trajectory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    opened = saturation.open_trajectory(trajectory)
    saturation.measure(opened, ["norms", "direction"], str(out))
    return out


def test_ls_says_what_is_there(call, trajectory: Path) -> None:
    (trajectory / "step_60.tmp").mkdir(exist_ok=True)
    shown = call("ls", trajectory)
    assert shown.code == 0
    assert "0, 10, 20, 30, 40, 50 (6 checkpoints)" in shown.out
    assert "huggingface" in shown.out
    assert "step_60.tmp" in shown.out, "what is ignored is said"
    data = json.loads(call("ls", trajectory, "--json", "--steps", "10:30:20").out)
    assert data["steps"] == [10, 30]
    assert data["arrays"]["encoder/layers_0/attention/query/kernel"] == {
        "shape": [16, 12],
        "dtype": "float32",
    }
    assert data["bytes_each"] == 4 * data["parameters"]


def test_measures_are_listed_with_their_source(call) -> None:
    shown = call("measures")
    assert "norms\n" in shown.out
    assert "arXiv 2010.09697" in shown.out
    assert set(json.loads(call("measures", "--json").out)) >= {"norms", "direction"}


def test_measure_then_status_fit_report_export(call, trajectory: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    planned = call("measure", trajectory, "--measures", "norms", "--out", out, "--dry-run")
    assert "at 6 steps" in planned.out
    assert not out.exists(), "a dry run writes nothing"
    measured = call("measure", trajectory, "--measures", "norms,direction", "--out", out)
    assert measured.code == 0, measured.err
    assert "0 reused" in measured.err
    again = call("measure", trajectory, "--measures", "norms", "--out", out, "--json")
    assert json.loads(again.out)["computed"] == 0
    assert again.err == "", "--json prints nothing else"
    assert json.loads(call("status", out, "--json").out)["complete"] is True
    assert "complete" in call("status", out).out
    fits = json.loads(call("fit", out, "--scope", "encoder", "--json").out)
    assert set(fits) == {"linear", "sqrt", "fourth_root", "log", "power"}
    assert {"law", "a", "b", "p", "interval", "r2", "aic", "holdout_error"} <= set(fits["power"])
    reported = call("report", out, "--figures", tmp_path / "figures")
    assert reported.code == 0, reported.err
    written = [Path(line) for line in reported.out.split()]
    assert {path.suffix for path in written} == {".png", ".pdf", ".txt"}
    assert all(path.stat().st_size > 0 for path in written)
    page = tmp_path / "page.html"
    assert call("report", out, "--out", page).out.strip() == str(page)
    assert "<html" in page.read_text(encoding="utf-8")[:200]
    assert call("report", out).code == 2, "neither a page nor figures were asked for"
    exported = call("export", out, "--format", "csv", "--out", tmp_path / "table.csv")
    assert exported.code == 0, exported.err
    assert (tmp_path / "table.csv").read_text().startswith("step,measure,metric,scope,value")


def test_fit_of_a_csv_and_of_a_scope_that_is_not_there(
    call, run_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "norm.csv"
    file.write_text("t,rho\n" + "\n".join(f"{t},{3 * t**0.5 + 2}" for t in range(0, 100, 7)))
    fits = json.loads(call("fit", "--csv", file, "--x", "t", "--y", "rho", "--json").out)
    assert fits["sqrt"]["a"] == pytest.approx(3)
    assert fits["sqrt"]["b"] == pytest.approx(2)
    missing = call("fit", "--csv", file)
    assert missing.code == 1
    assert "has no column 'step'; it has: t, rho" in missing.err
    scope = call("fit", run_folder, "--scope", "encoders")
    assert scope.code == 1
    assert "has no l2 norm of scope 'encoders'; it has:" in scope.err
    file.write_text("step,norm\n0,1\n1,x\n")
    assert "line 3: norm is 'x', and a number is needed" in call("fit", "--csv", file).err


def test_published_series_gives_the_published_fit(call, reference: Path) -> None:
    file = reference / "t5_base_norm.csv"
    fits = json.loads(call("fit", "--csv", file, "--x", "step", "--y", "norm", "--json").out)
    assert fits["sqrt"]["a"] == pytest.approx(5.412, abs=5e-4)
    assert fits["sqrt"]["b"] == pytest.approx(193.55, abs=5e-3)
    assert fits["sqrt"]["r2"] == pytest.approx(0.9986, abs=5e-5)
    power = fits["power"]
    assert power["independent"]["p"] == pytest.approx(0.559, abs=5e-4)
    assert power["independent"]["r2"] == pytest.approx(0.9997, abs=5e-5)
    assert power["clock"] == "ln t"
    assert power["phi_at_bound"] is True
    assert power["power_is_constant"] is False
    assert len(power["thirds"]) == 3
    local = power["local_exponent"]
    assert local["measured"][0] == pytest.approx(0.386, abs=5e-4)
    assert len(local["step"]) == len(local["fitted"]) == 102
    index = json.loads(call("fit", "--csv", file, "--clock", "index", "--json").out)["power"]
    assert index["without_first"]["p"] == pytest.approx(0.487, abs=5e-4)
    text = " ".join(call("fit", "--csv", file).out.split())
    assert "* power" in text
    assert "The power is not constant: it grows through the run." in text
    assert "at its bound: they are nearly a random walk" in text
    assert call("fit", "--csv", file, "--clock", "wall").code == 1


def test_fit_of_few_checkpoints_calls_no_law_the_best(call, tmp_path: Path) -> None:
    file = tmp_path / "few.csv"
    file.write_text("step,norm\n" + "\n".join(f"{t},{3 * t**0.5 + 2}" for t in range(1, 8)))
    text = call("fit", "--csv", file).out
    assert "7 checkpoints are too few to tell growth laws apart" in text
    assert "*" not in text
    file.write_text(file.read_text() + f"\n8,{3 * 8**0.5 + 2}")
    assert "* sqrt" in call("fit", "--csv", file).out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("ls", "/nowhere"), "/nowhere: no such folder"),
        (("status", "/nowhere"), "/nowhere holds no run: there is no run.json"),
        (("pretrain", "/nowhere.yaml"), "/nowhere.yaml: the configuration cannot be read"),
    ],
)
def test_a_failure_is_one_sentence_and_exit_1(call, arguments: tuple[str, ...], text: str) -> None:
    failed = call(*arguments)
    assert failed.code == 1
    assert failed.out == ""
    assert failed.err.startswith("saturation: ")
    assert text in failed.err
    assert len(failed.err.strip().splitlines()) == 1
    with pytest.raises(saturation.errors.SaturationError):
        call("--debug", *arguments)


def test_what_is_written_to_local_disks_is_not_given_a_url(
    call, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ("report", run_folder, "--out", "gs://bucket/page.html"),
        ("report", run_folder, "--figures", "gs://bucket/figures"),
        ("export", run_folder, "--format", "csv", "--out", "gs://bucket/table.csv"),
    ):
        failed = call(*arguments)
        assert failed.code == 1
        assert f"{arguments[-1]}: the " in failed.err
        assert "is written to a local disk; give a path here" in failed.err
    assert not list(tmp_path.iterdir()), "no folder called gs:"


@pytest.mark.parametrize("source", ["trajectory: t", "pretrain: {out: t, steps: 10}"])
def test_run_carries_out_its_file_wherever_checkpoints_come_from(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(f"out: r\nreport: f\n{source}\n")
    monkeypatch.setattr("saturation.experiment.run_experiment", lambda asked: f"{asked.out}: done")
    ended = call("run", path)
    assert (ended.code, ended.out) == (0, "r: done\n")


def test_wrong_usage_is_exit_2(call, trajectory: Path) -> None:
    assert call("fit").code == 2
    assert call("measure", trajectory).code == 2
    assert call("nonsense").code == 2
    assert call("pretrain", "x.yaml", "--set", "novalue").code == 2


def test_nan_is_exit_1_and_the_table_is_there(call, tmp_path: Path) -> None:
    import numpy as np

    def poison(step, arrays):
        return {n: np.where(a > 2.5, np.nan, a) if step == 10 else a for n, a in arrays.items()}

    folder = write_trajectory(tmp_path / "t", change=poison)
    failed = call("measure", folder, "--measures", "norms", "--out", tmp_path / "r")
    assert failed.code == 1
    assert "NaN or infinite values in" in failed.err
    assert json.loads(call("status", tmp_path / "r", "--json").out)["complete"] is True


def test_the_installed_command_answers_help() -> None:
    command = Path(sys.executable).with_name("saturation")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    for verb in (
        "ls",
        "measures",
        "measure",
        "status",
        "fit",
        "report",
        "pretrain",
        "run",
        "export",
    ):
        assert verb in shown.stdout


@pytest.mark.parametrize("place", ["pile-t5-base", "gs://bucket/run", "https://host/model.bin"])
def test_a_package_that_is_not_installed_is_named_with_its_command(
    call, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    failed = call("ls", place)
    assert failed.code == 1
    assert "is needed, which is not installed: pip install 'saturation-jax[" in failed.err


def test_a_fit_is_offered_of_what_can_be_fitted():
    done = Outcome(3, 1, ())
    assert "saturation fit out" in measured_text(done, "out", ("norms", "heads"))
    assert measured_text(done, "out", ("heads",)) == (
        "3 parts computed, 1 reused, in out. Next: `saturation report out --figures DIR`."
    )


def test_the_version_is_given_with_jax_platform_and_devices() -> None:
    import jax

    shown = CliRunner().invoke(cli.app, ["--version"])
    assert shown.exit_code == 0
    first, versions, platform, devices = shown.output.splitlines()
    assert first == f"saturation {saturation.__version__}"
    assert versions.startswith(f"jax {jax.__version__}, jaxlib ")
    assert platform.startswith("python 3.")
    device = jax.devices()[0]
    assert devices == f"devices: {jax.device_count()} × {device.device_kind} ({device.platform})"
