"""How a process is set up for streaming: threads of BLAS, garbage collection, XLA's dispatch.

The command line asks for all of it before it imports anything, `saturation.measure` for what still
can be changed then, so that a notebook computes as fast.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Imports and arrays make some 10⁵ objects and no garbage, but at Python's own pace it is looked for
# 400 times before anything is measured, and worker threads stand still meanwhile.
_GARBAGE = (10_000, 50, 50)


def before_imports() -> None:
    """Set what NumPy and the hub's library read when they are imported, and rare collections."""
    # Matrices here are small and many: threads within one wait for each other longer than they
    # work, and cores are kept busy by several matrices at a time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # The hub's library prints two lines for each attempt; what came of them is said once.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    gc.set_threshold(*_GARBAGE)


def compute_on_calling_thread() -> None:
    """On the CPU let the thread that has read a block compute on it.

    To hand it to a thread of XLA's costs a sixth of that. JAX heeds it until it looks for devices,
    as whatever asks for processes does.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


@contextmanager
def streaming() -> Iterator[None]:
    """Collect garbage seldom while the block runs, and let CPU threads compute what they read."""
    former = gc.get_threshold()
    gc.set_threshold(*_GARBAGE)
    compute_on_calling_thread()
    try:
        yield
    finally:
        gc.set_threshold(*former)
