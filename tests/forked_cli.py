"""Runs the command line many times, each in a process of its own, without importing it each time.

Started as a program it imports what the commands need, and for every line of JSON that it reads,
{"argv": …, "folder": …, "stdout": …, "stderr": …}, forks a process that is the command: its streams
are the named files (null: closed), its folder is the named one ("": one that was deleted). It
answers with a line of JSON, the exit status; 124 where the command ran past `seconds`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from types import TracebackType
from typing import Any

IMPORTED = ("typer", "yaml", "pandas", "pyarrow.parquet", "pydantic", "jax", "saturation.cli.text")
IMPORTED += (
    "saturation.cli.commands",
    "saturation.config",
    "saturation.training.config",
    "saturation.experiment",
    "saturation.runs.settings",
    "saturation.trajectory.audit",
    "saturation.runs.measure",
)
IMPORTED += ("saturation.runs.activations", "saturation.growth.fit", "saturation.report.export")


def serve() -> None:
    """Answer requests until there are no more."""
    for name in IMPORTED:
        importlib.import_module(name)
    # JAX warns of forks; nothing of it has been started here, and there are no threads.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        number = os.fork()
        if not number:
            _become_command(**request["command"])
        answers.write(json.dumps(_wait(number, request["seconds"])) + "\n")
        answers.flush()


def _wait(number: int, seconds: float) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return 124


def _become_command(
    argv: list[str], folder: str, stdout: str | None, stderr: str | None, bare: bool = False
) -> None:
    """Be `saturation ARGV`, from its first line to its exit."""
    from saturation.cli import commands as cli

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, (name, path) in enumerate((("stdout", stdout), ("stderr", stderr)), start=1):
        if path is None:
            os.close(number)
            setattr(sys, name, None)
            continue
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace"))
    if not folder:
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
    else:
        os.chdir(folder)
    sys.argv = ["saturation", *argv]
    status: Any = 0
    try:
        cli.main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                status = 120  # what Python itself exits with
    os._exit(status if isinstance(status, int) else 1 if status else 0)


class Commands:
    """The other end: `with Commands(folder) as run: run("ls", path)`."""

    def __init__(self, folder: str, seconds: float = 60) -> None:
        self.folder, self.seconds, self.count = folder, seconds, 0

    def __enter__(self) -> Commands:
        import subprocess

        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def __call__(
        self, *argv: object, folder: str | None = None, stdout: str = "", stderr: str | None = ""
    ) -> tuple[int, str, str]:
        """Return exit status, stdout and stderr of a command."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.count += 1
        out = stdout or os.path.join(self.folder, f"{self.count}.out")
        err = os.path.join(self.folder, f"{self.count}.err") if stderr == "" else stderr
        command = {"argv": list(map(str, argv)), "stdout": out, "stderr": err}
        command["folder"] = self.folder if folder is None else folder
        request = json.dumps({"command": command, "seconds": self.seconds})
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())
        return status, _text(out), _text(err)


def _text(path: str | None) -> str:
    if path is None or path.startswith("/dev/"):
        return ""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


if __name__ == "__main__":
    serve()
