"""The notebooks run top to bottom, as they are, on a CPU and without a network."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

import saturation
from saturation.errors import TrajectoryError

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)


@notebooks
def test_every_cell_is_python_and_nothing_that_was_printed_is_kept(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert any(cell["cell_type"] == "code" for cell in cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), notebook.name, "exec")
            assert cell["outputs"] == []


def source_of(notebook: Path, words: str) -> str:
    """The one code cell with these words in it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (found,) = [source for source in sources if words in source]
    return found


@pytest.fixture
def installing(tmp_path, monkeypatch):
    """Carry the install cell out where the package is not installed; what pip was asked for."""
    asked: list[str] = []

    def install(notebook: Path, source: str, folder: Path, fails: bool = False) -> str:
        def run(command, **_):
            asked.append(command[-1])
            return subprocess.CompletedProcess(command, int(fails))

        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(importlib.metadata, "distributions", list)
        exec(source_of(notebook, "def find_source"), {"SOURCE": source})
        return asked[-1]

    return install


@notebooks
def test_it_installs_the_clone_or_wheel_it_stands_in(notebook, installing, tmp_path) -> None:
    clone = tmp_path / "clone"
    assert installing(notebook, "git+https://x/y", clone).endswith("@ git+https://x/y")
    clone.joinpath("setup.cfg").write_text("[metadata]\nname = saturation-jax\n")
    assert installing(notebook, "", clone / "notebooks") == f"{clone}[hub,gcs]"
    wheel = tmp_path / "beside" / "saturation_jax-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"")
    assert installing(notebook, "", wheel.parent) == f"{wheel}[hub,gcs]"


@notebooks
def test_it_stops_with_one_sentence_where_it_cannot_install(notebook, installing, tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"no clone or wheel of it is here: set SOURCE\.$"):
        installing(notebook, "", tmp_path / "alone")
    with pytest.raises(SystemExit, match=r"^pip could not install /x\[hub,gcs\]: its reason"):
        installing(notebook, "/x", tmp_path / "alone", fails=True)


@notebooks
def test_an_error_of_the_trajectory_is_shown_and_nothing_else_is_trained(
    notebook, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"saturation": saturation, "TRAJECTORY": str(tmp_path / "absent"), "STEPS": None}
    with pytest.raises(TrajectoryError, match="absent: no such folder or file"):
        exec(source_of(notebook, "open_trajectory"), given | {"HERE": "here"})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@notebooks
def test_a_notebook_runs_top_to_bottom(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient", reason="it is of the extra `test`")
    pytest.importorskip("ipykernel", reason="it is of the extra `test`")
    import nbformat

    # As a user's kernel has it: one device, and no checking of types.
    for name in ("XLA_FLAGS", "JAX_NUMPY_DTYPE_PROMOTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(Path(__file__).parents[1]), "")))
    node = nbformat.read(notebook, as_version=4)
    first = next(cell for cell in node.cells if cell["cell_type"] == "code")
    first["source"] = re.sub(r'(?m)^TRAJECTORY = ".*"$', "TRAJECTORY = None", first["source"])
    client = nbclient.NotebookClient(
        node, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in node.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "A tiny T5 is pretrained here" in text
    assert "How to read growth.png" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not [output for output in outputs if output.get("name") == "stderr"]
