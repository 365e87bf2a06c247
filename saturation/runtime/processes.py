"""Several processes of one job: they work together, the first one writes, and all end alike.

JAX finds the processes of a Slurm job, a TPU pod, Open MPI and Kubernetes itself. What they say to
each other are bytes, gathered by all from all; every process must gather the same number of times
in the same order, so only the main thread does. With one process nothing is sent.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from saturation import errors
from saturation.errors import MeasureError, SaturationError

T = TypeVar("T")

# As long as JAX waits; a host whose name nobody knows is not waited for as long.
COORDINATOR_SECONDS, NAME_SECONDS = 300.0, 30.0


def join() -> None:
    """Join the other processes of this job; call it before anything computes.

    Where JAX knows no cluster it takes `JAX_COORDINATOR_ADDRESS` (host:port of the first process),
    and here `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say the rest.

    Raises:
      MeasureError: no cluster is found, or the others do not come.
    """
    # Its handler would swallow SIGTERM; `saturation.runtime.signals` and `any_process` do its work.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    count, number = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address and number not in (None, "0"):
        await_coordinator(address)
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if number is None else int(number),
        )
    except (RuntimeError, ValueError) as error:
        raise MeasureError(
            f"--distributed: JAX found no other processes ({error}). Start the command with srun, "
            "mpirun or on every worker of a TPU pod, or set JAX_COORDINATOR_ADDRESS (host:port), "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process."
        ) from error
    # Gloo, through which CPUs talk, tells stdout of each connection, where results belong.
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def await_coordinator(
    address: str, seconds: float = COORDINATOR_SECONDS, name_seconds: float = NAME_SECONDS
) -> None:
    """Return once the first process listens at `address`, host:port.

    JAX waits for it too, but ends the whole process, with no error to catch, when its time is up.

    Raises:
      MeasureError: it is no address, nobody knows the host, or nobody listens there in time.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise MeasureError(
            f"JAX_COORDINATOR_ADDRESS is host:port of the first process, and not {address!r}."
        )
    begun = time.monotonic()
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            waited, reason = time.monotonic() - begun, error
        if waited > (name_seconds if isinstance(reason, socket.gaierror) else seconds):
            raise MeasureError(
                f"--distributed: the first process does not answer at {address} after {waited:.0f} "
                f"s ({reason.strerror or reason}). Start it with JAX_PROCESS_ID=0, set "
                "JAX_COORDINATOR_ADDRESS to its host and port, and let the network pass them."
            ) from reason
        time.sleep(0.2)


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def gather(content: bytes) -> list[bytes]:
    """Return what every process gave, in the order of the processes."""
    if jax.process_count() == 1:
        return [content]
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    # Each length is compiled by itself; powers of two keep them few.
    padded = np.zeros(1 << int(max(sizes) - 1).bit_length() if max(sizes) else 1, np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def any_process(flag: bool) -> bool:
    """Return whether any process gave true."""
    return any(given == b"1" for given in gather(b"1" if flag else b"0"))


def on_every_process(work: Callable[[], T]) -> T:
    """Return what `work` returns here; where it fails on any process, raise on every one.

    Raises:
      SaturationError: of another process, with its number before the text.
    """
    result, failure = _attempt(work)
    _raise_first(gather(_written(failure)), failure)
    return result  # pyright: ignore[reportReturnType]  # it did not fail


def broadcast_from_first(work: Callable[[], T]) -> T:
    """Return on every process what `work` returns on the first one, which alone does it.

    Args:
      work: returns what JSON holds.

    Raises:
      SaturationError: where it fails there, on every process.
    """
    if jax.process_count() == 1:
        return work()
    result, failure = _attempt(work) if is_first() else (None, None)
    answers = gather(_written(failure, result) if is_first() else b"")
    _raise_first(answers[:1], failure)
    return json.loads(answers[0])["result"]


def refuse_difference(what: str, described: Any) -> None:
    """Raise `MeasureError` where the processes do not all see the same.

    Args:
      what: names it in the error.
      described: what JSON holds.
    """
    text = json.dumps(described, sort_keys=True)
    digests = gather(hashlib.sha256(text.encode()).digest())
    for number, digest in enumerate(digests):
        if digest != digests[0]:
            raise MeasureError(
                f"Process {number} sees other {what} than process 0: all must see the same files "
                "and run the same command."
            )


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _written(failure: Exception | None, result: Any = None) -> bytes:
    if failure is None:
        return json.dumps({"result": result}).encode()
    named = isinstance(failure, SaturationError)
    text = str(failure) if named else f"{type(failure).__name__}: {failure}"
    return json.dumps({"kind": type(failure).__name__, "text": text}).encode()


def _raise_first(answers: list[bytes], failure: Exception | None) -> None:
    """Raise this process's failure, or else the first one there was."""
    if failure is not None:
        raise failure
    for number, answer in enumerate(answers):
        said = json.loads(answer)
        if "text" in said:
            kind = getattr(errors, said["kind"], SaturationError)
            raise kind(f"Process {number}: {said['text']}")
