"""Slurm for the tests: the cluster this machine belongs to, or else one node of its own.

A node of its own needs Debian's packages slurm-wlm and munge, and root.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("slurmctld", "slurmd")
CONFIGURATION = """
ClusterName=saturation
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why no Slurm can be had here, or None where it can."""
    if shutil.which("sbatch") is None:
        return "Slurm is not installed (Debian: slurm-wlm and munge)"
    if answers(os.environ):
        return None
    if os.geteuid() != 0:
        return "no Slurm answers, and starting one of our own needs root"
    if any(shutil.which(daemon) is None for daemon in (*DAEMONS, "munged")):
        return "no Slurm answers, and its daemons or munge are not installed here"
    return None


def answers(environment: os._Environ[str] | dict[str, str]) -> bool:
    """Return whether a Slurm controller answers."""
    ping = ["sinfo", "--noheader", "--format=%t"]
    found = subprocess.run(ping, env=environment, capture_output=True, text=True, check=False)
    return found.returncode == 0 and "idle" in found.stdout


def start(folder: Path) -> dict[str, str]:
    """Start one node and return the environment in which Slurm's commands find it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    cpus = len(os.sched_getaffinity(0))
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, cpus=cpus))
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    _start_munge()
    for daemon in DAEMONS:
        subprocess.run([daemon], env=environment, check=True)
    deadline = time.monotonic() + 30
    while not answers(environment):
        if time.monotonic() > deadline:
            stop(folder)
            raise RuntimeError(f"Slurm did not start; see {folder}/slurmctld.log")
        time.sleep(0.5)
    return environment


def stop(folder: Path) -> None:
    """End the daemons that `start` started in this folder, which no job may use any more."""
    for daemon in reversed(DAEMONS):
        file = folder / f"{daemon}.pid"
        if file.is_file():
            os.kill(int(file.read_text()), signal.SIGTERM)


def _start_munge() -> None:
    works = subprocess.run("munge -n | unmunge", shell=True, capture_output=True, check=False)
    if works.returncode:
        runtime = Path("/run/munge")
        runtime.mkdir(exist_ok=True)
        shutil.chown(runtime, "munge")
        subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "munged"], check=True)
