"""What every test runs under: 8 simulated CPU devices, strict dtypes, and the shared fixtures.

With JAX_PLATFORMS set to an accelerator's and `cpu` (`cuda,cpu`), tests run on that instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Both must be set before JAX is first imported, by whichever test comes first.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")

import signal

import jax
import jaxtyping
import pytest

# Started in the background, pytest does not heed SIGINT, and neither would what it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(folder: str) -> Path:
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"{path} is absent: it holds the team's real checkpoints, not the repository's")
    return path


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The real checkpoints written by the original tools, with their golden numbers."""
    return _shared("fixtures")


@pytest.fixture(scope="session")
def reference() -> Path:
    """The published series that the measures must reproduce."""
    return _shared("reference")


@pytest.fixture
def eight_devices() -> None:
    """Eight devices, among which something is shared out."""
    if jax.device_count() != 8:
        pytest.skip(f"needs eight devices, such as simulated ones; found {jax.devices()}")


@pytest.fixture
def highest_precision() -> Iterator[None]:
    """Matrix products as the driver asks for them, where a test calls what the driver calls."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the run-time type checker, which would meet bad input before the package does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
