"""Several processes on this machine that find each other as `--distributed` lets them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("saturation"))
SECONDS = 300


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    code: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(devices: int, **more: str) -> dict[str, str]:
    """The environment of a process of its own with so many simulated devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    # Not of a job that the tests themselves may run in.
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith("SLURM_")
    }
    return {**kept, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **more}


def start(command: Sequence[object], processes: int, devices: int) -> list[subprocess.Popen[str]]:
    """Start one command as so many processes, each with so many simulated devices."""
    address = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            list(map(str, command)),
            env=environment(
                devices,
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES=str(processes),
                JAX_PROCESS_ID=str(number),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def finish(started: Sequence[subprocess.Popen[str]]) -> list[Ended]:
    """Wait for all; kill what outlives the time."""
    ended = []
    try:
        for process in started:
            out, err = process.communicate(timeout=SECONDS)
            ended.append(Ended(process.returncode, out, err))
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
    return ended


def run_code(code: str, processes: int = 2, devices: int = 1) -> list[Ended]:
    """Run Python code as so many processes."""
    return finish(start([sys.executable, "-c", code], processes, devices))


def measure(
    trajectory: Path | str, out: Path | str, *arguments: object, processes: int, devices: int
) -> list[Ended]:
    """Run `saturation measure … --distributed` as so many processes."""
    command = [COMMAND, "measure", trajectory, "--out", out, "--distributed", *arguments]
    return finish(start(command, processes, devices))
