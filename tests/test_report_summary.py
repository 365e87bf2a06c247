"""The text of a report: right numbers, right warnings, written whole; and no JAX for any of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_tables import UNIFORM, direction, full, norms, rows, vectors

from saturation.errors import ResultsError
from saturation.report import fit_tables, summarize, write_summary


def text_of(table: pd.DataFrame) -> str:
    """Return the summary with every line break and run of blanks made one blank."""
    return " ".join(lines_of(table).split())


def lines_of(table: pd.DataFrame) -> str:
    tables = {"run": table}
    text = summarize(tables, fit_tables(tables))
    assert max(map(len, text.splitlines())) <= 100
    return text


def test_numbers_of_the_summary():
    text = text_of(full())
    length = np.linalg.norm(vectors(UNIFORM)["blocks"], axis=1)
    assert f"{len(UNIFORM)} checkpoints from step 0 to 2,000, 80 steps apart" in text
    assert f"went from {length[0]:,.4g} at step 0 to {length[-1]:,.4g} at step 2,000" in text
    power = fit_tables({"run": full()})["run"]["blocks"]["power"]
    assert f"p = {power.p:.3f} (95 %: {power.interval[0]:.3f} to" in text
    assert "the best of these laws is power" in text
    assert "Warning" not in text
    assert "Figures not drawn" not in text


def test_three_sentences_for_the_newcomer():
    numbered = re.findall(r"^  (\d)\. (.*)$", lines_of(norms()), flags=re.MULTILINE)
    assert [number for number, _ in numbered] == ["1", "2", "3"]
    starts = ("Each dot is one checkpoint", "The solid line is", "The strip below shows")
    assert all(text.startswith(start) for (_, text), start in zip(numbered, starts, strict=True))


def test_published_series_says_what_holds_and_no_more(reference: Path):
    t, rho = np.loadtxt(reference / "t5_base_norm.csv", delimiter=",", skiprows=1).T
    text = text_of(rows(t, "norms", "l2", "blocks", rho))
    assert "√t leaves 0.14 % of the variance" in text
    assert "Without step 0: p = 0.538 (95 %: 0.528 to 0.548)" in text
    assert "The power is not constant: it grows through the run." in text
    assert "(AR(1) in ln t, φ = 0.999, at its bound: they are nearly a random walk)" in text


def test_too_few_points_are_said():
    assert "3 checkpoints are too few for a growth law: 4 are needed" in text_of(norms((0, 1, 2)))
    assert "No curve is drawn" in text_of(norms((0, 1, 2)))
    few = text_of(norms(UNIFORM[:7]))
    assert "7 checkpoints are too few to tell growth laws apart or to give p an interval" in few
    assert "best by AICc" not in few
    assert "best of these laws" not in few
    assert "best by AICc first" in text_of(norms(UNIFORM[:8]))


def test_what_is_not_finite_is_said():
    table = norms()
    table.loc[(table.scope == "total") & (table.step == 160), "value"] = np.inf
    text = text_of(table)
    assert "the norm of 'total' is NaN or infinite at 1 of the checkpoints (step 160)" in text
    table["value"] = np.nan
    assert "Warning: no norm is finite." in text_of(table)


def test_one_checkpoint_is_said_as_one():
    text = text_of(norms((1000,)))
    assert "Measured: l2, at 1 checkpoint, step 1,000." in text
    assert re.search(r"output head is [\d.]+ at step 1,000\.", text)
    assert "1 checkpoint is too few for a growth law" in text
    heads = text_of(rows((0, 5), "heads", "entropy", "encoder/layers_0/attention/head_0", (2, 1)))
    assert "Measured: entropy, at 2 checkpoints from step 0 to 5, 5 steps apart." in heads


def test_a_curve_that_is_no_power_is_said():
    t = np.arange(1, 41)
    text = text_of(rows(t, "norms", "l2", "blocks", 50 - 40 / t))
    assert "no power of t fits blocks" in text


def test_missing_measures_are_named():
    assert "direction: run has no cosines between checkpoints (measure" in text_of(norms())
    assert "growth: run has no norms (metric l2)" in text_of(direction())


def test_constant_and_zero_norms():
    assert "1.0000" in text_of(rows(range(30), "norms", "l2", "total", [3.0] * 30))
    assert "from nothing" in text_of(rows(range(30), "norms", "l2", "total", range(30)))


def test_written_whole_or_not_at_all(tmp_path: Path):
    tables = {"run": norms()}
    fits = fit_tables(tables)
    path = write_summary(tables, fits, tmp_path / "new" / "summary.txt")
    assert path.read_text(encoding="utf-8") == summarize(tables, fits)
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.txt"]
    with pytest.raises(ResultsError, match=r"Cannot write .*choose another place for the summary"):
        write_summary(tables, fits, path / "summary.txt")


def test_reports_need_no_jax(tmp_path: Path):
    code = (
        "import sys, pathlib\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import report_tables\n"
        "from saturation.report import fit_tables, write_figures, write_page, write_summary\n"
        "tables = {'run': report_tables.rows(range(30), 'norms', 'l2', 'total', range(30))}\n"
        "fits = fit_tables(tables)\n"
        "write_summary(tables, fits, sys.argv[2] + '/summary.txt')\n"
        "write_figures(tables, fits, sys.argv[2])\n"
        "write_page(tables, fits, sys.argv[2] + '/page.html')\n"
        "print('jax' in sys.modules, 'matplotlib.pyplot' in sys.modules)\n"
    )
    here = str(Path(__file__).parent)
    shown = subprocess.run(
        [sys.executable, "-c", code, here, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["False", "False"]
