"""The flow of DESIGN.md: what each module may import, and what must stay out of a process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

PACKAGE = Path(__file__).resolve().parents[1] / "saturation"

# Each line may import from itself and from the lines above it, never from one below: the arrows of
# "Data flows one way". Modules of one line do not import each other, but for packages' own files.
FLOW = (
    ("errors", "autoregression", "local_files", "plain_yaml", "settings"),
    (
        "signals",
        "ties",
        "power_law",
        "progress",
        "scopes",
        "attention",
        "linalg",
        "config",
        "path_order",
        "step_names",
    ),
    ("limit",),
    ("models",),
    ("checkpoints",),
    ("manifest", "folder_steps"),
    ("trajectory",),
    ("audit", "constants", "survey"),
    ("measures",),
    ("seal",),
    ("runfolder",),
    ("training",),
    ("vocabularies",),
    ("batches",),
    ("parts",),
    ("results", "growth", "stream", "description"),
    ("plan", "growth_text"),
    ("processes",),
    ("sharding",),
    ("run_weights", "run_groups", "run_activations"),
    ("run",),
    ("report",),
    ("listing", "experiment", "scan_snap", "demos"),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(FLOW) for name in names}
NEVER_JAX = (
    "report",
    "autoregression",
    "power_law",
    "growth",
    "growth_text",
    "results",
    "parts",
    "runfolder",
    "scopes",
    "errors",
    "listing",
    "config",
)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (module imported, whether only for types) of a file, lazy imports included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in for_types
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module), id(node) in for_types
            if node.module == "saturation":
                for alias in node.names:
                    yield f"saturation.{alias.name}", id(node) in for_types


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def violations(sources: list[Path]) -> list[str]:
    found = []
    for path in sources:
        here = unit(path)
        for module, _ in imports(path):
            parts = module.split(".")
            there = parts[1] if parts[0] == "saturation" and len(parts) > 1 else None
            if there in RANK and here != there and RANK[there] >= RANK[here]:
                found.append(f"{path.name} ({here}) imports {module}")
            if parts[0] in ("jax", "flax", "optax", "orbax") and here in NEVER_JAX:
                found.append(f"{path.name} imports {module}")
    return found


SOURCES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py" or path.parent != PACKAGE
]


def test_every_module_has_its_place_in_the_flow() -> None:
    assert {unit(path) for path in SOURCES} <= set(RANK)


def test_imports_follow_the_flow() -> None:
    assert violations(SOURCES) == []


def test_an_import_against_the_flow_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "measures").mkdir()
    (tmp_path / "measures" / "norms.py").write_text(
        "def f():\n    from saturation.run import measure\n"
    )
    (tmp_path / "growth.py").write_text("import jax\n")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    found = violations(sorted(tmp_path.rglob("*.py")))
    assert found == ["growth.py imports jax", "norms.py (measures) imports saturation.run"]


def loaded_after(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {
        "jax",
        "flax",
        "numpy",
        "pandas",
        "pyarrow",
        "scipy",
        "matplotlib",
        "orbax",
        "tensorstore",
    }
    assert not heavy & loaded_after("import saturation")
    assert not heavy - {"numpy"} & loaded_after("import saturation.cli")


def test_reading_results_and_fitting_need_no_jax() -> None:
    code = (
        "from saturation.growth import fit_growth; import saturation.results, saturation.report\n"
        "import saturation.listing; from saturation.report import write_figures, write_summary\n"
        "fit_growth([0, 1, 4, 9, 16], [2, 5, 8, 11, 14])"
    )
    assert "jax" not in loaded_after(code)


def test_streaming_weights_needs_neither_pandas_nor_orbax(tmp_path: Path) -> None:
    """From the first import to the last part on disk, which holds texts and numbers."""
    for step in (1, 2):
        folder = tmp_path / "trajectory" / f"step_{step}"
        folder.mkdir(parents=True)
        save_file({"layer.weight": np.ones((3, 2), np.float32)}, folder / "model.safetensors")
    loaded = loaded_after(
        "import saturation\n"
        f"trajectory = saturation.open_trajectory({str(tmp_path / 'trajectory')!r})\n"
        f"saturation.measure(trajectory, ('norms', 'direction'), {str(tmp_path / 'run')!r})"
    )
    assert "jax" in loaded
    assert not {"pandas", "orbax", "flax", "optax", "matplotlib"} & loaded
    table = pq.read_table(next((tmp_path / "run").rglob("*.parquet")))
    assert table.schema.field("array").type == pa.string()
    assert table["array"].to_pylist() == ["layer/weight"] * 2
    assert table["sum_squares"].to_pylist() == [6.0, 6.0]
