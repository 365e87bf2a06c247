"""How a process is set up for streaming: threads of BLAS, garbage collection, XLA's dispatch.

The command line asks for all of it before it imports anything, `saturation.measure` for what still
can be changed then, so that a notebook computes as fast.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Imports and arrays make some 10⁵ objects and no garbage, but at Python's own pace it is looked for
# 400 times before anything is measured, and worker threads stand still meanwhile.
_GARBAGE = (10_000, 50, 50)

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_GIVEN_BACK = 4 * 2**20


def before_imports() -> None:
    """Set what NumPy and the hub's library read when they are imported, and rare collections."""
    # Matrices here are small and many: threads within one wait for each other longer than they
    # work, and cores are kept busy by several matrices at a time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # The hub's library prints two lines for each attempt; what came of them is said once.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    gc.set_threshold(*_GARBAGE)


def give_memory_back() -> None:
    """Let freed arrays of 4 MB and more go back to the system at once, where libc is glibc.

    By itself it raises that bound up to 32 MB as such arrays are freed, and keeps what lies between
    them: the stages of a T5 of 2.85 billion parameters then left twice as much behind as they used.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries may have none
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _GIVEN_BACK)


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
