"""Run every case of a folder of cases and print a table of what came out.

    python scripts/run_cases.py DIR [--only WORD] [--out FOLDER] [--seconds N] [--torch PYTHON]

A case that takes a FOLDER (its head says `usage: … FOLDER`) writes checkpoints there; `saturation
ls`, `audit` and `measure --measures norms` then run on each trajectory that was written, or, where
the head goes on `then: saturation …`, that command. A case that takes nothing runs `saturation`
itself, and its own exit code and lines are shown. A shell script is run as `bash CASE SATURATION
TRAJECTORY OUT`. A case that needs a T5 gets `tiny_t5.py`'s as T5=. Cases that need torch or
transformers run with --torch's Python.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TINY = "tiny_t5.py"
_SHARED = frozenset({"common.py", "ties_cpu_fn.py", _TINY})
_STEP = re.compile(r"(global_)?(step|checkpoint)?[_-]?\d+")
_THEN = re.compile(r'\bthen: saturation ([^"\n]+)')
_TELLING = ("parameters ", "read from ", "left out ", "ignored ", "wrapped in ", "checksums ")
_TELLING += ("saturation: ", "[rc=", "rc=", "* ")
_HUNG = 124


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (124: it ran past its time) and what it printed."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """What says most of it: what `ls` counted and left out, else the last line."""
        text = self.err if self.code and self.err.strip() else self.out or self.err
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(_TELLING)]
        return "; ".join(told or lines[-1:])


@dataclass(frozen=True)
class Settings:
    """What a run of cases is told on the command line."""

    out: Path
    saturation: str
    torch: str
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and print the table; return 1 where one hung or could not be made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", type=Path, help="a folder of cases")
    parser.add_argument("--only", default="", help="only cases whose name holds this word")
    parser.add_argument("--out", type=Path, help="where to write (a temporary folder)")
    parser.add_argument("--seconds", type=float, default=120, help="for each command")
    parser.add_argument("--saturation", default=str(Path(sys.executable).with_name("saturation")))
    parser.add_argument("--torch", default=sys.executable, help="a Python that has torch")
    asked = parser.parse_args(arguments)
    out = asked.out or Path(tempfile.mkdtemp(prefix="cases_"))
    settings = Settings(out.resolve(), asked.saturation, asked.torch, asked.seconds)
    cases = [
        path
        for path in sorted(asked.cases.resolve().iterdir())
        if path.suffix in (".py", ".sh") and path.name not in _SHARED and asked.only in path.stem
    ]
    bad = 0
    for path in cases:
        for name, command, outcome in run_case(path, settings):
            print(f"{name:<44} {command:<8} {outcome.code:>4}  {outcome.line[:220]}", flush=True)
            bad += outcome.code == _HUNG or (command == "make" and outcome.code != 0)
    print(f"{len(cases)} cases, {bad} hung or not made; in {settings.out}")
    return 1 if bad else 0


def run_case(path: Path, settings: Settings) -> Iterator[tuple[str, str, Outcome]]:
    """Yield (case or trajectory, command, outcome) of everything that a case has run."""
    head = "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:8])
    place = settings.out / path.stem
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    servers = Path(__file__).resolve().parents[1] / "tests"
    environment = {"SATURATION": settings.saturation, "SERVERS": str(servers)}
    if "T5" in path.read_text(encoding="utf-8") or path.suffix == ".sh":
        environment["T5"] = str(_tiny_t5(path.parent, settings))
    if path.suffix == ".sh":
        command = ["bash", path, settings.saturation, environment["T5"], place]
        yield path.stem, "case", _run(command, settings, environment)
        return
    needs_torch = re.search(r"\((?:[^)]*\b)?(torch|transformers)\b", head) is not None
    python = settings.torch if needs_torch or "import torch" in head else sys.executable
    usage = re.search(r"usage: make\.py((?: [A-Z]+)+)", head)
    words = usage[1].split() if usage else []
    given = {"FOLDER": place, "SATURATION": settings.saturation, "PREFIX": "module."}
    command = [python, path, *(given[word] for word in words if word in given)]
    if "FOLDER" not in words:
        yield path.stem, "case", _run(command, settings, environment)
        return
    yield path.stem, "make", _run(command, settings, environment)
    if (then := _THEN.search(head)) is not None:
        words = shlex.split(then[1].replace("FOLDER", shlex.quote(str(place))))
        yield path.stem, words[0], _run([settings.saturation, *words], settings, environment)
        return
    for trajectory in _trajectories(place):
        name = str(trajectory.relative_to(settings.out))
        run = settings.out / "runs" / name.replace("/", "_")
        shutil.rmtree(run, ignore_errors=True)
        for arguments in (
            ["ls", trajectory],
            ["audit", trajectory, "--full"],
            ["measure", trajectory, "--measures", "norms", "--out", run],
        ):
            found = _run([settings.saturation, *arguments], settings, environment)
            yield name, str(arguments[0]), found


def _trajectories(place: Path) -> list[Path]:
    """Return what was written under a folder, and beside it under its name, that has steps."""
    roots = [path for path in sorted(place.parent.glob(f"{place.name}*")) if path.is_dir()]
    found = []
    for root in roots:
        folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
        # A folder of kinds has a trajectory in each; else it is one itself. A kind may be called
        # `step2`, and other things may lie beside steps, so that most of the names decide.
        steps = sum(_STEP.fullmatch(path.name) is not None for path in folders)
        are_steps = not folders or 2 * steps > len(folders)
        found += [root] if are_steps else folders
    return found


def _tiny_t5(cases: Path, settings: Settings) -> Path:
    """Return a folder of steps of a tiny T5, written once."""
    place = settings.out / "tiny_t5"
    script = next(
        (p for p in (cases / _TINY, cases.parent / "reports" / _TINY) if p.exists()), None
    )
    if script is not None and not place.exists():
        _run([sys.executable, script, place], settings, {})
    return place


def _run(
    command: Sequence[str | Path], settings: Settings, environment: Mapping[str, str]
) -> Outcome:
    """Run a command in its own session, and end that where it takes too long."""
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=settings.seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        return Outcome(_HUNG, out, f"{err}\nran past {settings.seconds:g} seconds")
    return Outcome(process.returncode, out, err)


if __name__ == "__main__":
    sys.exit(main())
