"""The rooms of the package: what each may import, and what must stay out of a process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

PACKAGE = Path(__file__).resolve().parents[1] / "saturation"
MOST_NAMES, MOST_MODULES, MOST_RANKS = 26, 7, 9

# A room may import from itself and from the ranks above it, never from its own or one below.
RANKS = (
    ("_package", "errors", "scopes"),
    ("storage", "limit", "attention"),
    ("config", "checkpoints", "models", "growth"),
    ("trajectory", "runtime", "text", "plots"),
    ("measures",),
    ("results",),
    ("report", "runs", "training"),
    ("__init__", "experiment", "studies"),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
NEVER_JAX = ("errors", "scopes", "config", "storage", "growth", "plots", "results", "report")

Graph = Mapping[str, Set[str]]


def modules(package: Path) -> dict[str, Path]:
    """Return every module of a package under its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: Set[str]) -> Iterator[str]:
    """Yield each module that a file imports, in functions and for types alone too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def graph(package: Path) -> dict[str, set[str]]:
    """Return which modules of a package each of them imports."""
    paths = modules(package)
    return {
        name: {other for other in imports(path, paths.keys()) if other in paths and other != name}
        for name, path in paths.items()
    }


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def circles(arrows: Graph) -> list[set[str]]:
    """Return the sets of modules that can each be reached from each other."""
    reached: dict[str, set[str]] = {}
    for start in arrows:
        found, left = set(), [start]
        while left:
            for following in arrows.get(left.pop(), set()) - found:
                found.add(following)
                left.append(following)
        reached[start] = found
    found = [{b for b in reached[a] if a in reached.get(b, set())} for a in arrows]
    return [each for number, each in enumerate(found) if each and each not in found[:number]]


def against_the_ranks(arrows: Graph) -> list[str]:
    return [
        f"{here} imports {there}"
        for here, others in arrows.items()
        for there in sorted(others)
        if room(here) != room(there) and RANK[room(there)] >= RANK[room(here)]
    ]


def test_every_name_has_its_rank() -> None:
    names = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name[0] != "."}
    assert names - {"__pycache__", "py.typed"} == RANK.keys()
    assert len(RANK) <= MOST_NAMES
    assert len(RANKS) <= MOST_RANKS
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_MODULES


def test_imports_follow_the_ranks() -> None:
    assert against_the_ranks(graph(PACKAGE)) == []


def test_no_modules_import_each_other() -> None:
    assert circles(graph(PACKAGE)) == []


def test_rooms_that_read_and_draw_import_no_jax() -> None:
    found = [
        f"{name} imports {module}"
        for name, path in modules(PACKAGE).items()
        if room(name) in NEVER_JAX
        for module in imports(path, set())
        if module.split(".")[0] in ("jax", "flax", "optax", "orbax")
    ]
    assert found == []


def test_an_import_against_the_ranks_and_a_circle_are_found(tmp_path: Path) -> None:
    package = tmp_path / "saturation"
    (package / "measures").mkdir(parents=True)
    (package / "measures" / "norms.py").write_text(
        "def f():\n    from saturation.runs import measure\n"
    )
    (package / "runs.py").write_text("measure = 1\n")
    for one, other in (("a", "b"), ("b", "a")):
        (package / "measures" / f"{one}.py").write_text(
            "from typing import TYPE_CHECKING\n"
            f"if TYPE_CHECKING:\n    from saturation.measures import {other}\n"
        )
    found = graph(package)
    assert against_the_ranks(found) == ["saturation.measures.norms imports saturation.runs"]
    assert circles(found) == [{"saturation.measures.a", "saturation.measures.b"}]


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
    assert not heavy - {"numpy"} & loaded_after("import saturation.cli.commands")


def test_reading_results_and_fitting_need_no_jax() -> None:
    code = (
        "from saturation.growth import fit_growth\n"
        "import saturation.results.table, saturation.report\n"
        "import saturation.cli.text; from saturation.report import write_figures, write_summary\n"
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
